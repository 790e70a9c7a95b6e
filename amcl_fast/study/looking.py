"""The course of a study of similarities: what it trains, what it refuses, what it writes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..pretraining.command import settings_of
from ..runs.read import Run
from .course import NO_SEED, carry_out, check_given, check_images, check_kept, refuse_launchers
from .folder import command_line, write_results
from .overlap import BIN_WIDTH, PAIRS, looks, summary
from .overlap_page import WHAT
from .results import Row
from .training import Training

_OF_A_RUN = ("seconds", "training_images", "measured_images", "machine", "versions")


@dataclass(frozen=True)
class Cell:
    """What is trained with every seed.

    Attributes:
        recipe: which.
        values: what names it among the results.
        name: of its runs' folders, empty: as the recipe.
        settings: of `amcl-fast pretrain`, beside those of all.
    """

    recipe: str
    values: Row
    name: str = ""
    settings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """As its trainings have it."""
        return self.name or self.recipe


@dataclass(frozen=True)
class Looking:
    """A study of similarities.

    Attributes:
        name: as the command line has it.
        cells: what is compared, in order.
        reference: of the values of a cell those of the one that it is compared with, or its own.
        seeds: of every cell.
        options: as the command line takes them, `seeds` and `data` left out.
        draw: file name to PNG of the figures of results with anything finished.
        page: of results and figures.
        data: what to train on in place of the recipes' own.
        settings: of `amcl-fast pretrain`, for all.
        trust: as that of `pretrain`, of trainings that go on.
    """

    name: str
    cells: tuple[Cell, ...]
    reference: Callable[[Row], Row]
    seeds: tuple[int, ...]
    options: Mapping[str, Any]
    draw: Callable[[Mapping[str, Any]], dict[str, bytes]]
    page: Callable[[Mapping[str, Any], Mapping[str, bytes]], str]
    data: str | None = None
    settings: tuple[str, ...] = ()
    trust: bool = False

    def given(self, cell: Cell) -> tuple[str, ...]:
        """Settings of a cell's trainings; what is told to all comes last, and counts."""
        data = () if self.data is None else ("--data.root", self.data)
        return (*PAIRS, *cell.settings, *data, *self.settings)


def run(
    study: Looking,
    folder: Path,
    output: Path | None,
    about: Mapping[str, Any],
    check: Callable[[Cell, Mapping[str, Any]], None] = lambda cell, settings: None,
) -> None:
    """Train what the study has not trained yet, draw it after each training, print where the page is.

    Args:
        study: which trainings.
        folder: of the study, where nothing else is said; the same study goes on there.
        output: where else.
        about: `machine` and `environment`, for study.json.
        check: raises ValueError for a cell with all of whose settings nothing can be compared.

    Raises:
        StopError: it was stopped, or a training was refused or failed.
        SettingsError, ValueError: the settings cannot be, or are not those of what is in the folder.
        OSError: a file cannot be written or read.
    """
    refuse_launchers()
    check_given(study.seeds, study.settings, [name.removeprefix("--") for name in study.cells[0].settings[::2]])
    folder = output or folder
    trust = ("--trust",) if study.trust else ()
    options = {**study.options, "seeds": study.seeds, "data": study.data}
    command = command_line(study.name, {**options, "output": output}, [*study.settings, *trust])
    whole = {
        cell.key: settings_of(cell.recipe, ("--seed_everything", str(NO_SEED), *study.given(cell)))
        for cell in study.cells
    }
    _check(whole)
    for cell in study.cells:
        check(cell, whole[cell.key])
    # Seed by seed, so that a study that is cut has all cells of the first ones.
    trainings = [
        Training(cell.recipe, seed, folder, study.given(cell), name=cell.name)
        for seed in study.seeds
        for cell in study.cells
    ]
    begun = {"study": study.name, "what": WHAT, "command": command, **about, **options, "settings": study.settings}
    redraw = partial(_redraw, study, folder, len(trainings), begun)
    carry_out(study.name, folder, trainings, lambda training: whole[training.cell], redraw, command, trust)


def _check(whole: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError for settings with which trainings end at different steps, or have no seeds of the study's."""
    for settings in whole.values():
        check_kept(settings)
        if (seed := settings["seed_everything"]) != NO_SEED:
            raise ValueError(
                f"seed_everything must be left out of the --config of a study, which has --seeds, got {seed}"
            )
        if (time := settings["trainer"]["max_time"]) is not None:
            raise ValueError(f"trainer.max_time must be left out of a study of trainings of equal length, got {time}")
    for name in ("max_epochs", "max_steps"):
        values = {settings["trainer"][name]: key for key, settings in whole.items()}
        if len(values) > 1:
            told = " and ".join(f"{value} of {key}" for value, key in values.items())
            raise ValueError(f"--trainer.{name} must be given, for the recipes differ in it: {told}")


def _redraw(study: Looking, folder: Path, total: int, begun: Mapping[str, Any], done: Mapping[Training, Run]) -> None:
    """Write what there is so far."""
    places = {cell.key: place for place, cell in enumerate(study.cells)}
    order = sorted(done, key=lambda training: (places[training.cell], study.seeds.index(training.seed)))
    rows = [
        {
            **study.cells[places[training.cell]].values,
            "seed": training.seed,
            "run": training.run_dir.name,
            "knn": _rounded(done[training].last("knn")),
            **{name: done[training].facts.get(name) for name in _OF_A_RUN},
            **looks(done[training]),
        }
        for training in order
    ]
    check_images(folder, rows)
    results = {
        **begun,
        "bins": {"lowest": -1, "highest": 1, "width": BIN_WIDTH},
        "left": total - len(rows),
        **summary(rows, [cell.values for cell in study.cells], study.reference),
        "trainings": rows,
    }
    drawn = study.draw(results) if rows else {}
    write_results(folder, results, drawn, study.page(results, drawn))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
