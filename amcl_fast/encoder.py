"""A trained encoder, read back from what a run or `amcl-fast export` has left."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .data.scan.limits import DEFAULT_LIMITS, Limits
from .extras import extras_named
from .models import BackboneConfig, build_backbone
from .models.resnet import RESNETS
from .runs.checkpoint import load_checkpoint
from .runs.directory import LAST, RunDirectory
from .runs.reading import naming

__all__ = ["Encoder", "find_weights", "load_encoder"]

SUFFIX = ".safetensors"
_PREFIX = "backbone."
_SHAPE = ("name", "stem", "width", "size", "arguments")  # of an encoder; its other settings are of its training
_OWN = "A backbone of your own is evaluated by amcl_fast.evaluate.evaluate"
_METADATA_KEYS = {"amcl_fast", "backbone", "size", "mean", "std"}


@dataclass(frozen=True)
class Encoder:
    """An encoder and how it was trained.

    Attributes:
        backbone: normalised images (n, 3, H, W) to features (n, feature_dim), in evaluation mode, on the CPU.
        config: what the backbone is; `size` is None if it takes images of any, and settings of its training are not
            among them.
        size: side of the training images, in pixels.
        mean, std: normalisation of its inputs, per channel, of pixels in [0, 1].
        crop_pct: share of the shorter side that evaluations see.
        origin: where it comes from, as text: amcl_fast (version), method, recipe, run, epochs, steps; what is
            not known is left out.
        data: the training data, as the run's data.root; None for an exported file.
        held_out: what was measured on, as the run's data.held_out; None for a part of `data`.
        evaluation: a data set of its own that was measured on, as the run's data.evaluation.
        limits: above which images were left out.
    """

    backbone: nn.Module
    config: BackboneConfig
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    origin: dict[str, str]
    data: str | None = None
    held_out: str | None = None
    evaluation: str | None = None
    limits: Limits = DEFAULT_LIMITS

    @property
    def published(self) -> nn.Module:
        """The module whose parameters have the names of torchvision, of timm or of one's own class."""
        return _published(self.backbone)

    @property
    def metadata(self) -> dict[str, str]:
        """All but the weights as text, for the header of an exported file; `load_encoder` reads it back."""
        return {
            **self.origin,
            "backbone": json.dumps(_told(self.config)),
            "size": str(self.size),
            "mean": json.dumps(list(self.mean)),
            "std": json.dumps(list(self.std)),
            "crop_pct": str(self.crop_pct),
        }


def find_weights(path: Path) -> Path:
    """The file to which a path leads: itself, or the last checkpoint of a run directory.

    Raises:
        FileNotFoundError: there is none.
    """
    file = RunDirectory(path).last if path.is_dir() else path
    if not file.is_file():
        what = f"{path} holds no {LAST}" if path.is_dir() else f"{path} does not exist"
        raise FileNotFoundError(f"{what}; expected a run directory, a checkpoint or an exported {SUFFIX} file")
    return file


def load_encoder(path: Path, *, trust: bool = False, backbone: nn.Module | None = None) -> Encoder:
    """The encoder of a run directory, of a checkpoint or of an exported safetensors file.

    The file is read as data. Nothing in it is executed, imported or looked up by name, except the name of the
    backbone among torchvision's and timm's of `build_backbone`.

    Args:
        path: which of them.
        trust: import the class that the file names, where the encoder is one of its maker's own.
        backbone: a module of the encoder's kind, which gets the weights; of a run that was begun with such an object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of the three, damaged, from elsewhere, or names a class without `trust`.
        ImportError: timm or safetensors is needed and missing.
    """
    file = find_weights(path)
    if file.suffix == ".onnx":
        raise ValueError(f"{file} is for other programs and is not read back; give the checkpoint or a {SUFFIX} file")
    # A file may be well formed, and its entries not those of an encoder of ours.
    with naming(file, "holds no encoder of amcl-fast"):
        found = (_from_exported if file.suffix == SUFFIX else _from_checkpoint)(file, trust, backbone)
        if found.size < 1 or not len(found.mean) == len(found.std) == 3 or not 0 < found.crop_pct <= 1:
            raise ValueError(f"images must be normalised and of a size, got {found.metadata}")
    return found


def _from_checkpoint(file: Path, trust: bool, own: nn.Module | None) -> Encoder:
    checkpoint = load_checkpoint(file)
    settings = checkpoint.get("settings")
    if not settings:
        raise ValueError(
            f"{file} lacks the settings of its run; `amcl-fast pretrain` writes them into checkpoints. {_OWN}"
        )
    model, data = settings["model"], settings["data"]
    given = settings.get("given") or {}
    lost = "init_args" not in model if "method" in given else "backbone" in given and not trust
    if own is None and lost:
        raise ValueError(
            f"{file} was trained with an object as its encoder, {given.get('backbone', given.get('method'))}, of which "
            "it holds the weights alone: give one of its kind from Python, load_encoder(PATH, backbone=…)"
        )
    config = BackboneConfig(**model.get("init_args", {}).get("backbone", {}))
    weights = {
        name.removeprefix(_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    backbone, config = _built(config, file, trust, own)
    backbone.load_state_dict(weights)
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["total"]
    origin = {
        "amcl_fast": settings["amcl_fast"],
        "method": model["class_path"],
        "recipe": settings.get("recipe"),
        "run": settings["run"],
        "epochs": progress["processed"],
        "steps": checkpoint["global_step"],
    }
    return Encoder(
        backbone=backbone.eval(),
        config=config,
        size=int(data["size"]),
        mean=tuple(map(float, data["mean"])),
        std=tuple(map(float, data["std"])),
        crop_pct=float(data.get("crop_pct", 1.0)),
        origin={name: str(value) for name, value in origin.items() if value is not None},
        data=data["root"],
        held_out=data.get("held_out"),
        evaluation=data.get("evaluation"),
        limits=Limits(
            int(data.get("max_image_bytes", DEFAULT_LIMITS.bytes)),
            int(data.get("max_image_pixels", DEFAULT_LIMITS.pixels)),
        ),
    )


def _from_exported(file: Path, trust: bool, own: nn.Module | None) -> Encoder:
    metadata, weights = _read_safetensors(file)
    if not metadata.keys() >= _METADATA_KEYS:
        raise ValueError(
            f"{file} was not written by `amcl-fast export`: its header lacks "
            f"{', '.join(sorted(_METADATA_KEYS - metadata.keys()))}. {_OWN}"
        )
    config = BackboneConfig(**json.loads(metadata["backbone"]))
    backbone, config = _built(config, file, trust, own)
    _published(backbone).load_state_dict(weights)
    facts = {"backbone", "size", "mean", "std", "crop_pct", "load", "format"}
    return Encoder(
        backbone=backbone.eval(),
        config=config,
        size=int(metadata["size"]),
        mean=tuple(map(float, json.loads(metadata["mean"]))),
        std=tuple(map(float, json.loads(metadata["std"]))),
        crop_pct=float(metadata.get("crop_pct", "1.0")),
        origin={name: value for name, value in metadata.items() if name not in facts},
    )


def _built(config: BackboneConfig, file: Path, trust: bool, own: nn.Module | None) -> tuple[nn.Module, BackboneConfig]:
    """The backbone, and what it is: without the size if it is not built for one, and without how it is trained."""
    if own is not None:
        name = f"{type(own).__module__}.{type(own).__qualname__}"
        return build_backbone(own), BackboneConfig(name, size=config.size)
    if config.is_own and not trust:
        raise ValueError(
            f"{file} names a class as its encoder, {config.name}, and loading it would import and run that; if you "
            "trust whoever made the file, add --trust (from Python: trust=True)"
        )
    shape = {name: getattr(config, name) for name in _SHAPE}
    if config.name in RESNETS:  # which older runs gave one, without effect
        shape["size"] = None
    config = BackboneConfig(**shape)
    backbone = build_backbone(config)
    return backbone, config if getattr(backbone, "takes_size", False) else replace(config, size=None)


def _read_safetensors(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with extras_named(str(file)):
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(file, framework="pt") as content:
            return content.metadata() or {}, {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file, or is damaged: {error}") from error


def _published(backbone: nn.Module) -> Any:
    return getattr(backbone, "model", backbone)


def _told(config: BackboneConfig) -> dict[str, Any]:
    """Settings of an encoder, those of all encoders and what else is set; earlier versions know no others."""
    return {name: value for name in _SHAPE if (value := getattr(config, name)) not in (None, {})}
