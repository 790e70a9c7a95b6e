"""`amcl-fast study heads`: numbers of heads at equal projector size, and cheap ways to make them differ (Figure 5)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..models import BackboneConfig, MultiHeadProjector, ProjectorConfig, build_backbone
from .comparison import TEMPERATURE, Cell, Comparison, Given, contrast_of
from .course import check_different
from .temperatures import of_perplexity

NAME = "heads"

DIFFERING = ("perplexity", "means", "constants")
"""Ways of temperatures to which `heads` may be set beside the recipe's own."""

_SPAN = 2.0
"""The largest and the smallest of the heads' mean temperatures are so many times the recipe's, and as many less."""

_MOST = 0.05
"""By what share projectors may differ in size."""


def heads(
    given: Given,
    *,
    numbers: Sequence[int],
    differing: Sequence[str] = DIFFERING,
    differing_heads: int | None = None,
    mean: float | None = None,
) -> Comparison:
    """The study: projectors of so many heads with as many parameters as the recipe's, as nearly as widths allow.

    Args:
        given: what every comparison takes.
        numbers: of heads; the first is what the others are compared with.
        differing: of `DIFFERING`: cells whose heads have the same or different mean temperatures.
        differing_heads: how many heads these have; None: the recipe's, or 3 where that is 1.
        mean: of their temperatures; None: the recipe's constant or mean, or 0.1 where it has neither.

    Raises:
        SettingsError, ValueError: the recipe has no heads, or they cannot be of that size.
    """
    check_different("heads", numbers)
    check_different("differing", differing)
    if differing_heads is not None and differing_heads < 1:
        raise ValueError(f"--differing_heads must be at least 1, got {differing_heads}")
    for name, value in (("differing_heads", differing_heads), ("mean", mean)):
        if not differing and value is not None:
            raise ValueError(f"--{name} must be left out where no heads differ (--differing none), got {value:g}")
    found = given.found()
    arguments = found["model"]["init_args"]
    own = ProjectorConfig(**arguments["projector"])
    width = _width(arguments["backbone"])
    target = parameters(width, own)
    configs = {count: of_size(width, own, count, target) for count in numbers}
    cells = [Cell(f"heads-{count}", _projector(config), _about(config, width)) for count, config in configs.items()]
    if differing:
        _, criterion = contrast_of(found, f"{NAME} that differ in temperature (--differing none leaves them out)")
        count = (own.heads if own.heads > 1 else 3) if differing_heads is None else differing_heads
        mean = _mean(criterion["temperature"]) if mean is None else mean
        config = configs.get(count) or of_size(width, own, count, target)
        cells += [_differing(way, config, mean) for way in differing]
    return Comparison(
        NAME,
        given,
        tuple(cells),
        "Numbers of heads",
        {
            "heads": tuple(numbers),
            "differing": tuple(differing) or ("none",),
            "differing_heads": differing_heads,
            "mean": mean if differing else None,
        },
        ("model.projector.heads", "model.projector.hidden_dim"),
        {"parameters": {cell.name: parameters(width, _config_of(cell, own)) for cell in cells}},
    )


def _config_of(cell: Cell, own: ProjectorConfig) -> ProjectorConfig:
    count, hidden = (int(value) for value in cell.settings[1:4:2])
    return replace(own, heads=count, hidden_dim=hidden)


def _projector(config: ProjectorConfig) -> tuple[str, ...]:
    before = "--model.init_args.projector"
    return (f"{before}.heads", str(config.heads), f"{before}.hidden_dim", str(config.hidden_dim))


def _about(config: ProjectorConfig, width: int) -> str:
    return (
        f"{config.heads} head{'s' * (config.heads > 1)}, hidden width {config.hidden_dim} of each: "
        f"{parameters(width, config):,} parameters"
    )


def _differing(way: str, config: ProjectorConfig, mean: float) -> Cell:
    count = config.heads
    means = [round(mean * _SPAN ** (2 * place / max(1, count - 1) - 1), 4) for place in range(count)]
    if way == "perplexity":
        setting, about = of_perplexity(mean), f"perplexity 0.25, mean {mean:g} for all heads"
    elif way == "means":
        setting = of_perplexity(means)
        about = f"perplexity 0.25, a mean of its own for each head: {', '.join(f'{value:g}' for value in means)}"
    elif way == "constants":
        # Of a range of no width every anchor has the mean of its head.
        setting = of_perplexity(means, tau_min=mean, tau_max=mean * (1 + 1e-6))
        about = f"a constant of its own for each head: {', '.join(f'{value:g}' for value in means)}"
    else:
        raise ValueError(f"--differing must be among {' '.join(DIFFERING)}, or none, got {way}")
    return Cell(f"{way}-{count}", (*_projector(config), TEMPERATURE, setting), f"{count} heads, {about}")


def _mean(temperature: Any) -> float:
    """A constant, or the mean of one for each anchor; 0.1 where there is neither."""
    if isinstance(temperature, dict):
        temperature = temperature["init_args"].get("mean")
    return float(temperature) if isinstance(temperature, int | float) else 0.1


def _width(backbone: Mapping[str, Any]) -> int:
    """Features of the recipe's encoder."""
    if "class_path" in backbone:
        raise ValueError(f"model.backbone must be one of amcl_fast in a study of heads, got {backbone['class_path']}")
    built = build_backbone(replace(BackboneConfig(**backbone), weights=None))
    return int(built.feature_dim)  # type: ignore[arg-type]


def parameters(width: int, config: ProjectorConfig) -> int:
    """Of a projector that reads `width` features."""
    with torch.device("meta"):
        return sum(values.numel() for values in MultiHeadProjector(width, config).parameters())


def of_size(width: int, own: ProjectorConfig, count: int, target: int) -> ProjectorConfig:
    """The projector of `count` heads whose hidden width makes its number of parameters nearest to `target`.

    Raises:
        ValueError: it differs by more than 5 %, or there cannot be so many heads.
    """
    if count < 1:
        raise ValueError(f"--heads must be at least 1, got {count}")
    low, high = 1, own.hidden_dim * max(own.heads, 1) + 1
    while low < high:  # the first width that is large enough
        middle = (low + high) // 2
        low, high = (middle + 1, high) if parameters(width, _of(own, count, middle)) < target else (low, middle)
    found = min(
        (_of(own, count, hidden) for hidden in (low - 1, low) if hidden),
        key=lambda config: abs(parameters(width, config) - target),
    )
    size = parameters(width, found)
    if not math.isclose(size, target, rel_tol=_MOST):
        raise ValueError(
            f"--heads must be such that projectors are of equal size, got {count}, with which the nearest to "
            f"{target:,} parameters are {size:,}"
        )
    return found


def _of(own: ProjectorConfig, count: int, hidden: int) -> ProjectorConfig:
    return replace(own, heads=count, hidden_dim=hidden)
