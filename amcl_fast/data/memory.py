"""Memory that the images of a run take at the most, by its settings and by the largest images that were found.

Nothing here decides what is trained on: that is the same on every machine.
"""

from collections.abc import Sequence
from typing import NamedTuple

from amcl_fast.data.graph import Output
from amcl_fast.data.reading.reduction import AT_ONCE, FACTORS, Reduction
from amcl_fast.data.scan.largest import KEPT, Largest

# Of a batch decoded: DALI holds one at a time however many it computes ahead, and its pool keeps up to half as much
# again (measured once, by hand, at batches of 16 to 64 images of 1 and 4 megapixels).
_DECODED = 1.5
_LISTS = 5  # of encoded batches: those that are read ahead, the one in use, one out of turn, and DALI's copy
_REDUCED = 12  # bytes a pixel that Pillow takes while it makes a WebP smaller; others take up to 8


class Memory(NamedTuple):
    """Bytes of one process, of the machine's memory.

    Attributes:
        decoded: a batch of the largest images; 0 where the GPU decodes.
        encoded: the same as they lie in files.
        reduced: images while they are made smaller.
        views: what comes out; 0 where the GPU computes it.
    """

    decoded: int
    encoded: int
    reduced: int
    views: int


def most_memory(output: Output, sides: Sequence[int], largest: Largest) -> Memory:
    """What a loader takes if the largest images meet in a batch.

    Args:
        output: of the loader.
        sides: of each view, pixels.
        largest: of the images.
    """
    pixels, sizes, reduced = largest.pixels, largest.bytes, 0
    if output.reduce_above is not None:
        reduction = Reduction(output.reduce_above, 1)
        large = [many for many in pixels if many > reduction.above][: min(output.num_threads, AT_ONCE)]
        reduced = _REDUCED * sum(large) + sum(sizes[: 2 * output.num_threads if large else 0])
        pixels = [min(many, max(reduction.most_pixels, many // FACTORS[-1] ** 2)) for many in pixels]
        sizes = [min(many, reduction.most_bytes) for many in sizes]
    on_gpu = output.device == "gpu"
    return Memory(
        decoded=0 if on_gpu else round(_DECODED * 3 * _most(pixels, output.batch_size)),
        encoded=_LISTS * _most(sizes, output.batch_size),
        reduced=reduced,
        views=0 if on_gpu else 12 * (output.prefetch + 1) * output.batch_size * sum(side**2 for side in sides),
    )


def _most(falling: Sequence[int], count: int) -> int:
    """The most that so many images have together; those beyond `KEPT` may have as much as the last of these."""
    beyond = (count - KEPT) * falling[-1] if count > KEPT == len(falling) else 0
    return sum(falling[:count]) + beyond
