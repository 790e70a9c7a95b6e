"""Find the files that DALI cannot decode, by trying."""

from collections.abc import Callable, Sequence
from contextlib import closing

from amcl_fast.data.decoding.trial import NOT_DECODED, Trial
from amcl_fast.data.locations import size_of, spans
from amcl_fast.data.reading.reader import Reader
from amcl_fast.data.scan.headers import UNREADABLE
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits

UNDECODABLE = "corrupt: it cannot be decoded"
"""The reason for which such a file is left out."""
_TOGETHER = 32
_TOGETHER_BYTES = 32 << 20  # or one larger file


def find_undecodable(
    files: Sequence[str], done: Callable[[int], None] = lambda files: None, limits: Limits = DEFAULT_LIMITS
) -> dict[str, bool]:
    """The files that cannot be read or that DALI fails to decode, in their order: whether that is certain.

    It is not where the process that decodes them did not live or took too long, which may be the machine's fault.

    Args:
        files: their paths.
        done: called with the number of files that were tried since the last call.
        limits: what is too large.

    Raises:
        OSError: DALI decodes nothing at all in a new process.
    """
    undecodable: dict[str, bool] = {}
    with closing(Reader(limits=limits)) as reader, closing(Trial()) as trial:
        for start, end in spans([size_of(path) for path in files], _TOGETHER, _TOGETHER_BYTES):
            group = list(files[start:end])
            reader.request(group)
            encoded = reader.take()
            for place, (path, image) in enumerate(zip(group, encoded.images, strict=True)):
                if place in encoded.bad:
                    undecodable[path] = not encoded.bad[place].startswith(UNREADABLE)
                elif problem := trial(image):
                    undecodable[path] = problem == NOT_DECODED
            done(len(group))
    return undecodable
