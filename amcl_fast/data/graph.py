"""The DALI graphs, written once for the CPU and the GPU: only the decoder's device differs.

Every graph outputs HWC images, float32 or, where asked for, float16. What they decode is handed in by a function:
DALI's own reader would wait for ever for a FIFO, and its decoder must not see what nobody has checked (docs/damage.md).
"""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakSet

import numpy as np

from amcl_fast.data.augment import Augmentation
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits
from amcl_fast.data.views import side
from amcl_fast.extras import extras_named

with extras_named("the data pipeline"):
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import pipeline_def
    from nvidia.dali.tensors import TensorCPU, TensorListCPU

Device = Literal["cpu", "gpu"]
Dtype = Literal["float32", "float16"]

Source = Callable[[int], Sequence[np.ndarray]]
"""Called once a batch, in their order: the encoded images, as (bytes,) uint8 arrays. What it raises, `run` raises."""

_RGB = types.DALIImageType.RGB
_DTYPES = {"float32": types.DALIDataType.FLOAT, "float16": types.DALIDataType.FLOAT16}


@dataclass(frozen=True)
class Output:
    """What the graphs have in common: where they run, and what their images look like.

    Attributes:
        size: side of the square output, in pixels; of several sizes of views the largest.
        batch_size: images per batch, of this process.
        device: where everything after the reader runs.
        device_id: the GPU's index; None for the CPU.
        num_threads: DALI's worker threads; the bits do not depend on it.
        prefetch: batches computed ahead; below 2 nothing overlaps with the consumer.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        crop_pct: share of the shorter side that images without augmentation show, above 0 and up to 1.
        reduce_above: images of more pixels than this are decoded at a smaller scale if the crops do not need
            all of it; None: never.
        limits: images above these are left out.
        dtype: of the images that come out; float16 is the nearest to the same values.
        reader: makes what reads the images, of how far to reduce them and the threads to use; None: files are read.
    """

    size: int
    batch_size: int
    device: Device = "cpu"
    device_id: int | None = None
    num_threads: int = 2
    prefetch: int = 2
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_pct: float = 1.0
    reduce_above: int | None = 2_000_000
    limits: Limits = DEFAULT_LIMITS
    dtype: Dtype = "float32"
    reader: Callable[[Any, int], Any] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the DALI pipeline itself."""
        return {
            "batch_size": self.batch_size,
            "num_threads": self.num_threads,
            "device_id": self.device_id,
            "prefetch_queue_depth": self.prefetch,
        }


def training_pipeline(
    source: Source,
    views: Sequence[Augmentation],
    output: Output,
    *,
    seed: int,
    shard: int,
    checkpoint: bytes | None = None,
) -> Any:
    """An endless pipeline of augmented views: each image decoded once and augmented `len(views)` times.

    Args:
        source: the encoded images.
        views: one augmentation a view, as of `each_view`.
        output: size, device and so on.
        seed: base seed of the augmentations; they follow from it and the shard.
        shard: index of this process.
        checkpoint: of an earlier pipeline with the same arguments, whose augmentations go on.

    Returns:
        A DALI pipeline with one (batch, side, side, 3) output a view.
    """
    return _made(
        _training_graph(
            _tensors(source),
            list(views),
            output,
            seed,
            shard,
            **output.settings,
            enable_checkpointing=True,
            checkpoint=checkpoint,
        )
    )


def evaluation_pipeline(source: Source, output: Output) -> Any:
    """An endless pipeline without augmentation; its output is that of `training_pipeline` for one view.

    The shorter side is scaled to `output.size / output.crop_pct` and the centre cropped; with all of it, an
    image that already has that size keeps its pixels.
    """
    return _made(_evaluation_graph(_tensors(source), output, **output.settings))


def decoding_pipeline(source: Source, output: Output) -> Any:
    """Decode, for finding what DALI rejects."""
    return _made(_decoding_graph(_tensors(source), output, **output.settings))


_pipelines: "WeakSet[Any]" = WeakSet()


def _made(pipeline: Any) -> Any:
    _pipelines.add(pipeline)
    return pipeline


def _never_end() -> None:
    """A forked process lacks the threads for which a pipeline waits when it ends."""
    for pipeline in _pipelines:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pipeline))


os.register_at_fork(after_in_child=_never_end)


def _tensors(source: Source) -> Callable[[int], TensorListCPU]:
    # Given arrays, DALI takes twice the time for the same.
    return lambda batch: TensorListCPU([TensorCPU(image) for image in source(batch)])


@pipeline_def(enable_conditionals=True)
def _training_graph(source: Source, views: list[Augmentation], output: Output, seed: int, shard: int) -> Any:
    images = _decode(source, output.device)
    return tuple(_view(images, view, output, operator_seeds(seed, shard, number)) for number, view in enumerate(views))


@pipeline_def
def _evaluation_graph(source: Source, output: Output) -> Any:
    images = _decode(source, output.device)
    return _normalise(_centre(images, output.size, output.crop_pct), output, mirror=0)


@pipeline_def
def _decoding_graph(source: Source, output: Output) -> Any:
    # The sizes of the images keep the decoder in the graph without keeping the pixels.
    return _decode(source, output.device).shape()


def operator_seeds(seed: int, shard: int, view: int) -> list[int]:
    """Seeds of one view's eleven random operators, distinct across operators, views, shards and base seeds.

    More seeds leave those before them as they are.
    """
    return [int(s) for s in np.random.SeedSequence((seed, shard, view)).generate_state(11)]


def without_seeds(checkpoint: str, seed: int, shard: int, views: int) -> str:
    """A training pipeline's checkpoint, in which names stand for its seeds: those of all shards are nearly the same.

    Args:
        checkpoint: its bytes, as latin-1.
        seed: of the pipeline.
        shard: of the pipeline.
        views: their number.
    """
    for name, key in _keys(seed, shard, views):
        checkpoint = checkpoint.replace(key, name)
    return checkpoint


def with_seeds(checkpoint: str, seed: int, shard: int, views: int) -> str:
    """The reverse of `without_seeds`; a checkpoint without names stays as it is."""
    for name, key in _keys(seed, shard, views):
        checkpoint = checkpoint.replace(name, key)
    return checkpoint


def _keys(seed: int, shard: int, views: int) -> Iterator[tuple[str, str]]:
    """For each operator a name, and how DALI writes the key of its random generator, which is its seed."""
    for view in range(views):
        for number, operator in enumerate(operator_seeds(seed, shard, view)):
            yield f"Philox_<{view}.{number}>_", f"Philox_{operator:016X}_"


def _decode(source: Source, device: Device) -> Any:
    encoded = fn.external_source(source=source, batch=True, dtype=types.DALIDataType.UINT8, ndim=1)
    return fn.decoders.image(encoded, device="mixed" if device == "gpu" else "cpu", output_type=_RGB)


def _view(images: Any, augmentation: Augmentation, output: Output, seeds: list[int]) -> Any:
    """One augmented, normalised view; uint8 until the normalisation.

    `color_twist` is one pass over the pixels and differs from torchvision's ColorJitter: contrast is scaled
    around 128 instead of the image's mean grey, the order of the four changes is fixed instead of drawn, and
    the hue is turned linearly in YIQ instead of in HSV.
    """
    size = side(augmentation, output.size)
    # Nested ifs: Python decides the outer ones when the graph is built, DALI the inner ones for every image.
    if augmentation.crop_scale is None:
        x = _centre(images, size)
    else:
        x = fn.random_resized_crop(
            images,
            size=(size, size),
            random_area=augmentation.crop_scale,
            random_aspect_ratio=augmentation.crop_ratio,
            seed=seeds[0],
        )
    if augmentation.jitter > 0:
        reach = 0.8 * augmentation.jitter_strength
        factor = (1 - reach, 1 + reach)
        turn = 0.2 * 360 * augmentation.jitter_strength
        if fn.random.coin_flip(probability=augmentation.jitter, dtype=types.DALIDataType.BOOL, seed=seeds[1]):
            x = fn.color_twist(
                x,
                brightness=fn.random.uniform(range=factor, seed=seeds[2]),
                contrast=fn.random.uniform(range=factor, seed=seeds[3]),
                saturation=fn.random.uniform(range=factor, seed=seeds[4]),
                hue=fn.random.uniform(range=(-turn, turn), seed=seeds[5]),
            )
    if augmentation.grey > 0:  # noqa: SIM102
        if fn.random.coin_flip(probability=augmentation.grey, dtype=types.DALIDataType.BOOL, seed=seeds[6]):
            # hsv(saturation=0) leaves the channels a level apart.
            grey = fn.color_space_conversion(x, image_type=_RGB, output_type=types.DALIImageType.GRAY)
            x = fn.color_space_conversion(grey, image_type=types.DALIImageType.GRAY, output_type=_RGB)
    if augmentation.blur > 0:  # noqa: SIM102
        if fn.random.coin_flip(probability=augmentation.blur, dtype=types.DALIDataType.BOOL, seed=seeds[7]):
            # Without a window size DALI takes 2 ceil(3 sigma) + 1 pixels: half the time of a fixed 23.
            x = fn.gaussian_blur(x, sigma=fn.random.uniform(range=augmentation.blur_sigma, seed=seeds[8]))
    if augmentation.solarise > 0:  # noqa: SIM102
        if fn.random.coin_flip(probability=augmentation.solarise, dtype=types.DALIDataType.BOOL, seed=seeds[10]):
            # A table takes three quarters of the time of arithmetic.
            solarised = [v if v < augmentation.solarise_threshold else 255 - v for v in range(256)]
            x = fn.lookup_table(x, keys=list(range(256)), values=solarised, dtype=types.DALIDataType.UINT8)
    return _normalise(x, output, mirror=fn.random.coin_flip(probability=augmentation.flip, seed=seeds[9]))


def _centre(images: Any, size: int, share: float = 1.0) -> Any:
    # Resizing only the central square keeps memory bounded for very long images.
    extent = fn.cast(images.shape()[0:2], dtype=types.DALIDataType.FLOAT)
    side = fn.reductions.min(extent) * share
    return fn.resize(images, size=(size, size), roi_start=(extent - side) * 0.5, roi_end=(extent + side) * 0.5)


def _normalise(images: Any, output: Output, mirror: Any) -> Any:
    return fn.crop_mirror_normalize(
        images,
        mirror=mirror,
        dtype=_DTYPES[output.dtype],
        output_layout="HWC",
        mean=[255 * m for m in output.mean],
        std=[255 * s for s in output.std],
    )
