"""`amcl-fast study augmentations`: similarities with one to five augmentations, one head and several (Figure 1).

Figure 1 of the paper (arXiv 2310.05615) has histograms of the similarities of positives and of negatives: the more
augmentations, the more they overlap with a single head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.augment import Augmentation
from ..recipes import given_recipe
from ..runs.directory import RUNS
from ..setting_types import WIDEST, whole
from .augmentations_page import draw, page
from .course import check_different
from .looking import Cell, Looking
from .looking import run as carry_out

NAME = "augmentations"

SETS = ("a", "ac", "acd", "acde", "abcde")
"""Crop first, without which a pair differs in little; blur last, which the released default leaves out."""

_LETTERS, _HEADS = "--data.augmentation", "--model.projector.heads"


@dataclass(frozen=True)
class Augmentations:
    """Which trainings the study compares: one recipe with all of these together.

    Attributes:
        recipe: its name; the loss is its own, whatever the number of heads.
        augmentations: letters of data.augmentation: a column each.
        heads: a row each; the others are compared with the first.
        seeds: of every one.
        data: what to train on in place of the recipe's own.
        settings: of `amcl-fast pretrain`, for all.
        trust: as that of `pretrain`, of trainings that go on.

    Raises:
        ValueError: one cannot be.
    """

    recipe: str
    augmentations: tuple[str, ...] = SETS
    heads: tuple[int, ...] = (1, 3)
    seeds: tuple[int, ...] = (0, 1, 2)
    data: str | None = None
    settings: tuple[str, ...] = ()
    trust: bool = False

    def __post_init__(self) -> None:
        check_different("augmentations", ["".join(sorted(letters)) for letters in self.augmentations])
        check_different("heads", self.heads)
        for letters in self.augmentations:
            Augmentation.from_letters(letters)
        for count in self.heads:
            whole("--heads", count, 1, WIDEST)


def run(study: Augmentations, output: Path | None, about: Mapping[str, Any]) -> None:
    """Train what the study has not trained yet, draw it after each training, print where the page is.

    Args:
        study: which trainings.
        output: folder of the study; default: runs/augmentations-<recipe>. The same study goes on there.
        about: `machine` and `environment`, for study.json.

    Raises:
        StopError: it was stopped, or a training was refused or failed.
        SettingsError, ValueError: the settings cannot be, or are not those of what is in the folder.
        OSError: a file cannot be written or read.
    """
    cells = tuple(
        Cell(
            study.recipe,
            {"augmentation": letters, "heads": heads},
            f"{letters}-{heads}-head{'s' if heads > 1 else ''}",
            (_LETTERS, letters, _HEADS, str(heads)),
        )
        for letters in study.augmentations
        for heads in study.heads
    )
    looking = Looking(
        NAME,
        cells,
        lambda values: {**values, "heads": study.heads[0]},
        study.seeds,
        {"recipe": study.recipe, "augmentations": study.augmentations, "heads": study.heads},
        draw,
        page,
        study.data,
        study.settings,
        study.trust,
    )
    carry_out(looking, RUNS / f"{NAME}-{given_recipe(study.recipe)}", output, about, _check)


def _check(cell: Cell, settings: Mapping[str, Any]) -> None:
    """Raise ValueError for settings with which cells do not differ as they say."""
    for name, value, expected in (
        (_LETTERS, settings["data"]["augmentation"], cell.values["augmentation"]),
        (_HEADS, settings["model"]["init_args"]["projector"]["heads"], cell.values["heads"]),
    ):
        if value != expected:
            raise ValueError(f"{name} must be left out of the --config of a study that compares values of it")
