"""Find the files that DALI cannot decode, by trying."""

from collections.abc import Sequence
from contextlib import closing

from amcl_fast.data.reader import Reader
from amcl_fast.data.trial import Trial

_TOGETHER = 32


def find_undecodable(files: Sequence[str]) -> list[str]:
    """The files that cannot be read or that DALI fails to decode, in their order.

    Raises:
        OSError: DALI decodes nothing at all in a new process.
    """
    undecodable: list[str] = []
    with closing(Reader()) as reader, closing(Trial()) as trial:
        for start in range(0, len(files), _TOGETHER):
            group = list(files[start : start + _TOGETHER])
            encoded = reader.read(group)
            undecodable += [
                path
                for place, (path, image) in enumerate(zip(group, encoded.images, strict=True))
                if place in encoded.bad or trial(image)
            ]
    return undecodable
