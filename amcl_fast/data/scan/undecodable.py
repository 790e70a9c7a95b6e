"""Find the files that DALI cannot decode, by trying."""

from collections.abc import Callable, Sequence
from contextlib import closing

from amcl_fast.data.decoding.trial import NOT_DECODED, Trial
from amcl_fast.data.reading.reader import Reader
from amcl_fast.data.scan.headers import UNREADABLE

UNDECODABLE = "corrupt: it cannot be decoded"
"""The reason for which such a file is left out."""
_TOGETHER = 32


def find_undecodable(files: Sequence[str], done: Callable[[int], None] = lambda files: None) -> dict[str, bool]:
    """The files that cannot be read or that DALI fails to decode, in their order: whether that is certain.

    It is not where the process that decodes them did not live or took too long, which may be the machine's fault.

    Args:
        files: their paths.
        done: called with the number of files that were tried since the last call.

    Raises:
        OSError: DALI decodes nothing at all in a new process.
    """
    undecodable: dict[str, bool] = {}
    with closing(Reader()) as reader, closing(Trial()) as trial:
        for start in range(0, len(files), _TOGETHER):
            group = list(files[start : start + _TOGETHER])
            encoded = reader.read(group)
            for place, (path, image) in enumerate(zip(group, encoded.images, strict=True)):
                if place in encoded.bad:
                    undecodable[path] = not encoded.bad[place].startswith(UNREADABLE)
                elif problem := trial(image):
                    undecodable[path] = problem == NOT_DECODED
            done(len(group))
    return undecodable
