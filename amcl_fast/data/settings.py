"""Which settings of a data module are refused, each by its name."""

from typing import Any

from amcl_fast.data.pixels import check_of_pixels
from amcl_fast.data.views import MOST_SIZE
from amcl_fast.setting_types import LARGEST_WHOLE, WIDEST, whole

_POSITIVE = (
    *("size", "batch_size", "num_threads", "prefetch", "limit", "reduce_above", "shuffle_pool"),
    *("max_image_bytes", "max_image_pixels"),
)
# Of a process: what every thread and every batch ahead takes of its memory is more than any machine has.
_MOST = {"size": MOST_SIZE, "batch_size": WIDEST, "num_threads": 1024, "prefetch": 1024}


def check_settings(data: Any) -> None:
    """Raise ValueError, in one line, for a setting of a `ContrastiveDataModule` that is out of range or contradicts."""
    for name in _POSITIVE:
        if (value := getattr(data, name)) is not None:
            whole(name, value, 1, _MOST.get(name, LARGEST_WHOLE))
    if data.device not in ("auto", "cpu", "gpu"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'gpu', got {data.device!r}")
    if data.dtype not in ("auto", "float32", "float16"):
        raise ValueError(f"data.dtype must be auto, float32 or float16, got {data.dtype!r}")
    check_of_pixels("mean", data.mean)
    check_of_pixels("std", data.std)
    if not 0.01 <= data.crop_pct <= 1:  # images are made so much larger than what is shown of them
        raise ValueError(f"crop_pct must be at least 0.01 and at most 1, got {data.crop_pct}")
    if data.held_out and data.evaluation:
        raise ValueError(
            f"data.held_out must be unset beside data.evaluation, which holds out its own, got {data.held_out}"
        )
