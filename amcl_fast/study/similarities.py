"""`amcl-fast study similarities`: similarities and temperatures before and after training, by recipe (Figure 3).

Figure 3 of the paper (arXiv 2310.05615) has histograms of similarities and temperatures, before and after training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recipes import VARIANTS, given_recipe, recipe_names
from ..recipes.shown import composed
from ..runs.directory import RUNS
from .course import check_different
from .looking import Cell, Looking
from .looking import run as carry_out
from .similarities_page import draw, page

NAME = "similarities"


@dataclass(frozen=True)
class Similarities:
    """Which trainings the study compares: every recipe with every seed.

    Attributes:
        recipes: their names; the others are compared with the first.
        seeds: of each.
        data: what to train on in place of the recipes' own.
        settings: of `amcl-fast pretrain`, for all.
        trust: as that of `pretrain`, of trainings that go on.

    Raises:
        ValueError: a recipe is there twice.
    """

    recipes: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    data: str | None = None
    settings: tuple[str, ...] = ()
    trust: bool = False

    def __post_init__(self) -> None:
        check_different("recipes", [given_recipe(recipe) for recipe in self.recipes])


def given_recipes(recipes: Sequence[str] | None, framework: str | None, dataset: str | None) -> tuple[str, ...]:
    """Those that are given; of a framework and a data set, "builtin" by default, all variants, the baseline first.

    A variant that is another one by a second name, as `best` of Barlow Twins is the baseline, is left out.

    Raises:
        ValueError: neither or both are given, or there are none.
    """
    if recipes:
        if given := [f"--{name}" for name, of in (("framework", framework), ("dataset", dataset)) if of is not None]:
            raise ValueError(f"{given[0]} must be left out where --recipes says what to train, got {' '.join(recipes)}")
        return tuple(recipes)
    if framework is None:
        raise ValueError("--framework or --recipes must be given, got neither")
    known, dataset = set(recipe_names()), dataset or "builtin"
    settings: dict[str, dict[tuple[str, ...], Any]] = {}
    for variant in VARIANTS:
        if (name := f"{framework}-{dataset}-{variant}") in known:
            values = {path: value for path, (value, _) in composed(name)[1].items()}
            if values not in settings.values():
                settings[name] = values
    found = tuple(settings)
    if not found:
        raise ValueError(f"--framework and --dataset must be those of recipes, got {framework} and {dataset}")
    return found


def run(study: Similarities, output: Path | None, about: Mapping[str, Any]) -> None:
    """Train what the study has not trained yet, draw it after each training, print where the page is.

    Args:
        study: which trainings.
        output: folder of the study; default: runs/similarities-<first recipe>. The same study goes on there.
        about: `machine` and `environment`, for study.json.

    Raises:
        StopError: it was stopped, or a training was refused or failed.
        SettingsError, ValueError: the settings cannot be, or are not those of what is in the folder.
        OSError: a file cannot be written or read.
    """
    looking = Looking(
        NAME,
        tuple(Cell(recipe, {"recipe": given_recipe(recipe)}, given_recipe(recipe)) for recipe in study.recipes),
        lambda values: {"recipe": given_recipe(study.recipes[0])},
        study.seeds,
        {"recipes": study.recipes},
        draw,
        page,
        study.data,
        study.settings,
        study.trust,
    )
    carry_out(looking, RUNS / f"{NAME}-{given_recipe(study.recipes[0])}", output, about)
