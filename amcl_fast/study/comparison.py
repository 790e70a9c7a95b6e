"""Cells that differ in some settings, each trained with the same seeds: what all studies of accuracies share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any

from ..losses import MoCoLoss, SimCLRLoss
from ..pretraining.command import settings_of
from ..runs.directory import RUNS
from ..runs.read import Run
from .comparison_page import draw, page
from .course import (
    MEASURED,
    NO_SEED,
    carry_out,
    check_alike,
    check_given,
    check_images,
    check_whole,
    refuse_launchers,
)
from .folder import command_line, write_results
from .results import MEASURES, OF_MEASURES, Row, accuracies, at_the_end, of_measures
from .training import Training

CRITERION = "--model.init_args.criterion"
TEMPERATURE = f"{CRITERION}.init_args.temperature"

_WHAT = (
    f"in percent on held-out images, of encoders after their last epoch: {OF_MEASURES}. Differences are in points, of "
    "trainings of the same seed; standard errors are s/√n over seeds, null for a single one"
)


@dataclass(frozen=True)
class Given:
    """What every comparison takes.

    Attributes:
        recipe: of all cells that have none of their own.
        seeds: of every cell.
        data: what to train on in place of the recipe's own.
        settings: of `amcl-fast pretrain`, for all.
        trust: as that of `pretrain`, of trainings that go on.
    """

    recipe: str
    seeds: tuple[int, ...]
    data: str | None = None
    settings: tuple[str, ...] = ()
    trust: bool = False

    def __post_init__(self) -> None:
        check_given(self.seeds, self.settings)

    @property
    def shared(self) -> tuple[str, ...]:
        """Settings of all cells."""
        return (*MEASURED, *(() if self.data is None else ("--data.root", self.data)), *self.settings)

    def found(self) -> dict[str, Any]:
        """All settings of the recipe with those of the command."""
        return settings_of(self.recipe, ("--seed_everything", str(NO_SEED), *self.shared))


@dataclass(frozen=True)
class Cell:
    """One of what is compared.

    Attributes:
        name: of it, and of the folders of its trainings.
        settings: on top of all others.
        about: what it is, in words.
        recipe: in place of the study's.
    """

    name: str
    settings: tuple[str, ...] = ()
    about: str = ""
    recipe: str | None = None


@dataclass(frozen=True)
class Comparison:
    """A study.

    Attributes:
        study: its name.
        given: what every comparison takes.
        cells: the first is what the others are compared with.
        title: of its page.
        options: its own, as the command line takes them.
        own: settings that cells have of their own, as `check_given` takes them.
        also: what else its study.json says.
    """

    study: str
    given: Given
    cells: tuple[Cell, ...]
    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    also: Mapping[str, Any] = field(default_factory=dict)


def run(study: Comparison, output: Path | None, about: Mapping[str, Any]) -> None:
    """Train what the study has not trained yet, draw it after each training, print where the page is.

    Args:
        study: which trainings.
        output: folder of the study; default: runs/<study>-<recipe>. The same study goes on there.
        about: `machine` and `environment`, for study.json.

    Raises:
        StopError: it was stopped, or a training was refused or failed.
        SettingsError, ValueError: the settings cannot be, or are not those of what is in the folder.
        OSError: a file cannot be written or read.
    """
    refuse_launchers()
    given = study.given
    check_given(given.seeds, given.settings, study.own)
    folder = output or RUNS / f"{study.study}-{Path(given.recipe).stem}"
    trust = ("--trust",) if given.trust else ()
    options = {"recipe": given.recipe, **study.options, "seeds": given.seeds, "data": given.data, "output": output}
    command = command_line(study.study, options, [*given.settings, *trust])
    settings = {cell.name: (*given.shared, *cell.settings) for cell in study.cells}
    whole = {
        cell.name: settings_of(cell.recipe or given.recipe, ("--seed_everything", str(NO_SEED), *settings[cell.name]))
        for cell in study.cells
    }
    check_whole(whole)
    check_alike(whole)
    for name, of_cell in whole.items():
        try:
            built(of_cell["model"]["init_args"]["criterion"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name} cannot be of this recipe: {error}") from error
    # Seed by seed, so that a study that is cut has all cells of the first ones.
    trainings = [
        Training(cell.recipe or given.recipe, seed, folder, settings[cell.name], name=cell.name)
        for seed in given.seeds
        for cell in study.cells
    ]
    redraw = partial(_redraw, study, folder, len(trainings), {"command": command, **about}, whole)
    carry_out(study.study, folder, trainings, lambda training: whole[training.cell], redraw, command, trust)


def built(settings: Any) -> Any:
    """What settings of a class describe, as config.yaml has them; other values as they are.

    Raises:
        ValueError, TypeError: the class refuses them.
    """
    if isinstance(settings, dict) and "class_path" in settings:
        kind: Any = locate(settings["class_path"])
        return kind(**{name: built(value) for name, value in settings.get("init_args", {}).items()})
    return settings


def contrast_of(found: Mapping[str, Any], study: str) -> tuple[type[SimCLRLoss | MoCoLoss], dict[str, Any]]:
    """Class and arguments of a recipe's criterion, which a study changes.

    Args:
        found: all settings of the recipe.
        study: its name.

    Raises:
        ValueError: it is neither SimCLR's nor MoCo's.
    """
    criterion = found["model"]["init_args"].get("criterion")
    path = criterion.get("class_path") if isinstance(criterion, dict) else None
    kind = locate(path) if path else None
    for of in (SimCLRLoss, MoCoLoss):
        if kind is of:
            return of, dict(criterion["init_args"])
    raise ValueError(f"--recipe must be one of SimCLR or MoCo for a study of {study}, got one with {path}")


def _redraw(
    study: Comparison,
    folder: Path,
    total: int,
    about: Mapping[str, Any],
    whole: Mapping[str, Mapping[str, Any]],
    done: Mapping[Training, Run],
) -> None:
    """Write what there is so far."""
    given, names = study.given, [cell.name for cell in study.cells]
    rows = [_row(training, run) for training, run in done.items()]
    check_images(folder, rows)
    rows.sort(key=lambda row: (names.index(row["cell"]), given.seeds.index(row["seed"])))
    results = {
        "study": study.study,
        "title": study.title,
        "what": _WHAT,
        **about,
        "recipe": given.recipe,
        "options": study.options,
        "seeds": given.seeds,
        "data": given.data,
        "settings": given.settings,
        **study.also,
        "cells": [
            {
                "cell": cell.name,
                "about": cell.about,
                "recipe": cell.recipe or given.recipe,
                "settings": cell.settings,
                "model": whole[cell.name]["model"],
            }
            for cell in study.cells
        ],
        "left": total - len(rows),
        **summary(names, rows),
        "trainings": rows,
    }
    drawn = draw(results) if rows else {}
    write_results(folder, results, {f"{name}.png": png for name, png in drawn.items()}, page(results, drawn))


def _row(training: Training, run: Run) -> Row:
    if not set(MEASURES) <= run.measures.keys():
        raise ValueError(f"{run.folder} must have been measured when it ended, got no measures.json: remove the folder")
    return {
        "cell": training.cell,
        "recipe": training.recipe,
        "seed": training.seed,
        "run": training.run_dir.name,
        "measures": run.measures,
        **accuracies(run),
        **at_the_end(run),
        **{name: run.facts.get(name) for name in ("seconds", "training_images", "measured_images", "steps")},
        **{name: run.facts.get(name) for name in ("machine", "versions")},
    }


def summary(names: Sequence[str], rows: Sequence[Row]) -> Row:
    """What rows of trainings say of cells: means, and differences to the first cell, then of all other pairs."""
    cells: list[Row] = [{"cell": name} for name in names]
    pairs = [(cell, minus) for place, minus in enumerate(cells) for cell in cells[place + 1 :]]
    return of_measures(rows, cells, pairs)
