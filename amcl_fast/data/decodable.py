"""Find the files that DALI cannot decode, by trying."""

import logging
from collections.abc import Sequence

from amcl_fast.data.pipeline import Output, decoding_pipeline

log = logging.getLogger(__name__)

_BATCH = 32


def find_undecodable(files: Sequence[str], output: Output | None = None) -> list[str]:
    """The files that DALI fails to read or decode, in their order.

    One bad file makes a whole DALI pipeline invalid, so groups that fail are halved until the culprits are
    alone.

    Args:
        files: paths.
        output: the device to decode on; the CPU by default.
    """
    if not files or _decodes(list(files), output):
        return []
    if len(files) == 1:
        return list(files)
    middle = len(files) // 2
    return find_undecodable(files[:middle], output) + find_undecodable(files[middle:], output)


def _decodes(files: list[str], output: Output | None) -> bool:
    device, device_id = (output.device, output.device_id) if output else ("cpu", None)
    batch = min(_BATCH, len(files))
    pipeline = decoding_pipeline(
        files, Output(size=1, batch_size=batch, device=device, device_id=device_id, num_threads=2)
    )
    try:
        for _ in range(-(-len(files) // batch)):
            pipeline.run()
    except RuntimeError as error:
        log.debug("%d files do not decode: %s", len(files), error)
        return False
    return True
