"""An encoder as a folder for the Hugging Face hub: weights that timm's `hf-hub:` loads, and a card with its figures."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

from . import __version__
from .encoder import SUFFIX, Encoder, find_weights, load_encoder
from .export import as_safetensors, loading_code
from .extras import require
from .models.backbones import BackboneConfig
from .models.resnet import RESNETS, STANDARD_WIDTH
from .models.timm_models import TIMM_PREFIX
from .runs.directory import RunDirectory
from .runs.files import write_file
from .runs.in_place import refuse_links
from .runs.read import Run, read_run
from .runs.reading import naming

__all__ = ["push_to_hub", "write_for_hub"]

WEIGHTS, CONFIG, CARD = f"model{SUFFIX}", "config.json", "README.md"
_NAME = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*", re.ASCII)
_LONGEST_NAME = 96
_CITATION = """\
@inproceedings{wang2024amcl,
  title     = {Adaptive Multi-head Contrastive Learning},
  author    = {Wang, Lei and Koniusz, Piotr and Gedeon, Tom and Zheng, Liang},
  booktitle = {European Conference on Computer Vision},
  year      = {2024},
}"""


def write_for_hub(
    weights: Path, name: str, *, output: Path | None = None, license: str | None = None, trust: bool = False
) -> Path:
    """Write the encoder of a run directory, a checkpoint or an exported file as a folder for the hub.

    It holds the weights (model.safetensors), what timm builds the encoder from (config.json) and a card (README.md).
    `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it, or `hf-hub:NAME` once it is there. An encoder
    that timm cannot build, a ResNet of another stem or width or a class of one's own, has no config.json; its card
    says how it is loaded. What is in the folder under these names is replaced.

    Args:
        weights: what to write.
        name: of the repository, `USER/MODEL` or `MODEL`.
        output: the folder; None: `hub` in the run directory, or `NAME-hub` beside the weights.
        license: of the weights, as the hub names it (apache-2.0, cc-by-nc-4.0); None: none is stated.
        trust: see `load_encoder`.

    Returns:
        The folder.

    Raises:
        ValueError: name or licence cannot be one of the hub's; or see `load_encoder`.
        FileNotFoundError: see `load_encoder`.
        ImportError: safetensors is missing.
        OSError: the folder cannot be written.
    """
    check_hub_name(name)
    if license is not None and not re.fullmatch(r"[\w][\w.-]*", license, re.ASCII):
        raise ValueError(f"--license must be a name of the hub's, such as apache-2.0 or cc-by-nc-4.0, got {license!r}")
    folder = output or (weights / "hub" if weights.is_dir() else weights.with_name(f"{weights.stem}-hub"))
    if output is None:
        refuse_links(folder)
    encoder = load_encoder(weights, trust=trust)
    folder.mkdir(parents=True, exist_ok=True)
    config = timm_config(encoder)
    write_file(folder / WEIGHTS, as_safetensors(encoder))
    if config is None:
        (folder / CONFIG).unlink(missing_ok=True)  # of another encoder
    else:
        write_file(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    with naming(find_weights(weights)):
        card = _card(encoder, _run_of(weights), name, license, of_timm=config is not None)
    write_file(folder / CARD, card)
    return folder


def push_to_hub(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a folder that `write_for_hub` has made; returns its address.

    The repository is made if there is none. Who may write there is told to huggingface_hub, by `hf auth login` or
    HF_TOKEN.

    Args:
        folder: what to upload.
        name: of the repository.
        private: of a new one, whether others may not see it.

    Raises:
        ImportError: huggingface_hub is missing.
        ConnectionError: the hub cannot be reached, or refuses.
    """
    require("--push", "huggingface_hub")
    from huggingface_hub import HfApi

    try:
        api = HfApi(library_name="amcl_fast", library_version=__version__)
        repository = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="Weights and card")
    except Exception as error:  # of huggingface_hub, of what it downloads with, of the network
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConnectionError(f"{folder} is written, but cannot be pushed to {name}: {said}") from error
    return str(repository)


def check_hub_name(name: str) -> None:
    """Raise ValueError if the hub takes no repository of this name."""
    odd = "--" in name or ".." in name or name.endswith((".", "-", ".git")) or "/-" in name or name.startswith("-")
    if odd or len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise ValueError(
            f"--hub must be USER/MODEL or MODEL, of at most {_LONGEST_NAME} letters, digits, '-', '_' and '.', "
            f"got {name!r}"
        )


def timm_config(encoder: Encoder) -> dict[str, Any] | None:
    """What config.json says of an encoder; None if timm cannot build it."""
    config = encoder.config
    if config.name.startswith(TIMM_PREFIX):
        architecture = config.name.removeprefix(TIMM_PREFIX)
        arguments = {**config.arguments, **({} if config.size is None else {"img_size": config.size})}
        model: Any = encoder.published
        known = model.pretrained_cfg
        fixed, first, classifier = known.get("fixed_input_size"), known.get("first_conv"), known.get("classifier")
        features = model.num_features
    elif _is_published_resnet(config):
        architecture, arguments = config.name, {}
        fixed, first, classifier, features = False, "conv1", "fc", encoder.backbone.feature_dim
    else:
        return None
    pretrained = {
        "tag": "amcl_fast",
        "custom_load": False,
        "input_size": [3, encoder.size, encoder.size],
        "fixed_input_size": bool(fixed) and config.size is not None,
        "interpolation": "bilinear",
        "crop_pct": encoder.crop_pct,
        "crop_mode": "center",
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "num_classes": 0,
        "first_conv": first,
        "classifier": classifier,
    }
    return {
        "architecture": architecture.split(".")[0],
        "num_classes": 0,
        "num_features": features,
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {name: value for name, value in pretrained.items() if value is not None},
    }


def _is_published_resnet(config: BackboneConfig) -> bool:
    """Whether an encoder is torchvision's ResNet as published, which timm has under the same name, weight by weight."""
    return config.name in RESNETS and config.stem == "standard" and config.width == STANDARD_WIDTH


def _run_of(weights: Path) -> Run | None:
    """The run that has left the weights, if its folder is there; what is damaged in it is left out with a warning."""
    try:
        run = read_run(RunDirectory.of(find_weights(weights).resolve()).path, partly=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warnings.warn(f"{error}; the card says nothing of the run", stacklevel=3)
        return None
    for line in run.damaged.values():
        warnings.warn(f"{line}; the card goes without it", stacklevel=3)
    return run


def _card(encoder: Encoder, run: Run | None, name: str, license: str | None, *, of_timm: bool) -> str:
    of_library = ["library_name: timm"] if of_timm else []
    head = [
        "---",
        *([f"license: {license}"] if license else []),
        *of_library,
        "pipeline_tag: image-feature-extraction",
        "tags: [amcl-fast, self-supervised-learning, contrastive-learning, image-feature-extraction]",
        "---",
    ]
    version = encoder.origin.get("amcl_fast", __version__)
    method = encoder.origin.get("method", "contrastive learning").rpartition(".")[2]
    lines = [
        *head,
        "",
        f"# {name.rpartition('/')[2]}",
        "",
        f"{encoder.config.name.removeprefix(TIMM_PREFIX)}, pre-trained without labels by {method} with amcl_fast "
        f"{version}; it gives features and has no classifier.",
        "",
    ]
    if figures := _figures(encoder, run):
        lines += ["## Accuracy of its frozen features", "", "| measured | top-1 |", "|---|---|", *figures, ""]
    lines += [
        "## Training",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in _facts(encoder, run)),
        "",
    ]
    lines += ["## Use", "", *_usage(encoder, name, of_timm), ""]
    licensed = f"The weights: {license}." if license else "None is stated for the weights."
    lines += [
        "## Licence",
        "",
        f"{licensed} amcl_fast: Apache-2.0.",
        "",
        "## Citation",
        "",
        "```bibtex",
        _CITATION,
        "```",
    ]
    return "\n".join(lines) + "\n"


def _figures(encoder: Encoder, run: Run | None) -> list[str]:
    """Rows of what was measured, up to the step of the weights."""
    if run is None:
        return []
    measured = [
        ("kNN of raw pixels", run.last("knn_pixels")),
        ("kNN of the untrained encoder", run.last("knn_untrained")),
    ]
    steps, values = run.series("knn")
    reached = values[steps <= float(encoder.origin.get("steps", "inf"))]
    images = run.facts.get("measured_images") or {}
    by = f", {images['queries']:,} images by {images['bank']:,}" if {"queries", "bank"} <= images.keys() else ""
    measured.append((f"kNN of this encoder{by}", float(reached[-1]) if len(reached) else None))
    rows = [(what, value) for what, value in measured if value is not None]
    if encoder.origin.get("epochs") == str(run.facts.get("epochs")):  # evaluations are of the last checkpoint
        rows += [(f"linear probe on {data}", found["linear"]["top1"]) for data, found in run.evaluations.items()]
    return [f"| {what} | {value:.1f} % |" for what, value in rows]


def _facts(encoder: Encoder, run: Run | None) -> list[tuple[str, Any]]:
    """What is known of the training: of paths on the machine the last part alone, which says no more than a name."""
    origin = {what: Path(value).name for what, value in encoder.origin.items()}
    origin["method"] = origin.get("method", "").rpartition(".")[2]
    found: list[tuple[str, Any]] = [
        (what, origin[what]) for what in ("method", "recipe", "epochs", "steps") if origin.get(what)
    ]
    found.append(("images", f"{encoder.size} × {encoder.size} px"))
    found.append(("normalisation", f"mean {_numbers(encoder.mean)}, standard deviation {_numbers(encoder.std)}"))
    if run is None:
        return found
    if data := run.facts.get("data"):
        count = run.facts.get("training_images")
        found.append(("data", Path(str(data)).name + (f", {count:,} images" if isinstance(count, int) else "")))
    settings = {
        "batch size": "data.batch_size",
        "optimiser": "model.init_args.optimizer.name",
        "learning rate": "model.init_args.optimizer.lr",
        "precision": "trainer.precision",
        "seed": "seed_everything",
    }
    found += [(what, value) for what, path in settings.items() if (value := run.setting(path)) is not None]
    machine = run.facts.get("machine", {})
    if "device" in machine:
        found.append(("device", f"{machine['device']}, {machine.get('processes', 1)} process(es)"))
    return found


def _usage(encoder: Encoder, name: str, of_timm: bool) -> list[str]:
    if of_timm:
        return [
            "```python",
            "import timm",
            "",
            f'model = timm.create_model("hf-hub:{name}", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)",
            f"features = model(transform(image).unsqueeze(0))  # (1, {encoder.backbone.feature_dim})",
            "```",
        ]
    return [
        "```python",
        "from huggingface_hub import hf_hub_download",
        "",
        f'file = hf_hub_download("{name}", "{WEIGHTS}")',
        loading_code(encoder.config, "FILE").replace('"FILE"', "file"),
        "```",
    ]


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
