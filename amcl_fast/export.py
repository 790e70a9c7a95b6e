"""The encoder as a file for others: safetensors with the names of torchvision or timm, or ONNX."""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch

from .encoder import SUFFIX, Encoder, load_encoder
from .extras import extras_named, require
from .models.backbones import BackboneConfig
from .models.timm_models import TIMM_PREFIX
from .runs.files import check_output, write_file

__all__ = ["export", "loading_code"]

Format = Literal["safetensors", "onnx"]
SUFFIXES: dict[Format, str] = {"safetensors": SUFFIX, "onnx": ".onnx"}


def export(weights: Path, *, format: Format = "safetensors", output: Path | None = None, trust: bool = False) -> Path:
    """Write the encoder of a run directory, a checkpoint or an exported file.

    Both formats carry, as metadata, the name of the backbone, recipe, epochs and version, and the normalisation and
    size of the images (see `Encoder.metadata`). ONNX has the input `images` (batch, 3, size, size), normalised, with
    any batch, and the output `features` (batch, feature_dim).

    Args:
        weights: what to export.
        format: safetensors or onnx.
        output: file to write, replaced when the new one is whole, with the suffix of its format; default:
            `backbone.safetensors` or `backbone.onnx` in the run directory, or beside the weights under their name.
        trust: see `load_encoder`.

    Returns:
        The file written.

    Raises:
        FileNotFoundError, ValueError: see `load_encoder`; nothing is written.
        ValueError: the suffix of `output` is not that of the format.
        ImportError: a package of the extra `export` is missing.
        OSError: the file cannot be written.
    """
    suffix = SUFFIXES[format]
    if output is not None:
        if output.suffix != suffix:
            raise ValueError(f"output must end in {suffix}, by which {format} files are known, got {output}")
        check_output(output)
    encoder = load_encoder(weights, trust=trust)
    path = output or (weights / f"backbone{suffix}" if weights.is_dir() else weights.with_suffix(suffix))
    check_output(path)
    write_file(path, as_safetensors(encoder) if format == "safetensors" else _onnx(encoder))
    return path


def loading_code(config: BackboneConfig, file: str = "FILE") -> str:
    """Python lines that load an exported safetensors file into `model`, strictly.

    torchvision's ResNet has one width and one stem. Another stem takes two lines more; another width is loaded by
    this package, which builds the same network. A class of one's own is imported.
    """
    load = f'model.load_state_dict(safetensors.torch.load_file("{file}"))'
    if config.name.startswith(TIMM_PREFIX):
        name = config.name.removeprefix(TIMM_PREFIX)
        given = {"num_classes": 0, **({} if config.size is None else {"img_size": config.size}), **config.arguments}
        return f'import safetensors.torch, timm\nmodel = timm.create_model("{name}", {_as_arguments(given)})\n{load}'
    if config.is_own:
        # A nested class cannot be imported by its name.
        model = f"model = pydoc.locate({config.name!r})({_as_arguments(config.arguments)})"
        return "\n".join(["import pydoc, safetensors.torch", model, load])
    if config.width != BackboneConfig().width:
        return (
            "from pathlib import Path\nfrom amcl_fast.encoder import load_encoder\n"
            f'model = load_encoder(Path("{file}")).backbone  # width {config.width}; torchvision has 64 alone'
        )
    lines = [
        "import safetensors.torch, torch, torchvision",
        f"model = torchvision.models.{config.name}()",
        "model.fc = torch.nn.Identity()",
    ]
    if config.stem == "small":
        lines += [
            "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)  # the stem for small images",
            "model.maxpool = torch.nn.Identity()",
        ]
    return "\n".join([*lines, load])


def _as_arguments(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def as_safetensors(encoder: Encoder) -> bytes:
    """An encoder as a safetensors file, with all but the weights in its header."""
    with extras_named("export"):
        from safetensors.torch import save
    # Clones: a module of one's own may have the same weights twice, which safetensors refuses to write.
    state = encoder.published.state_dict()
    weights = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    return save(weights, {"format": "pt", **encoder.metadata, "load": loading_code(encoder.config)})


def _onnx(encoder: Encoder) -> bytes:
    require("export", "onnx", "onnxscript")
    # A batch of one would be taken for a constant.
    example = torch.zeros(2, 3, encoder.size, encoder.size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # torch 2.11 inside itself
        program = torch.onnx.export(
            encoder.backbone,
            (example,),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(encoder.metadata)
    return program.model_proto.SerializeToString()
