"""`amcl-fast study epochs`: accuracy over epochs of several backbones and variants of a framework (Figure 4).

Figure 4 of the paper (arXiv 2310.05615) has kNN accuracy over epochs, a panel a backbone, the baseline beside AMCL.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..pretraining.command import settings_of
from ..runs.directory import RUNS
from ..runs.read import Run
from .course import (
    MEASURED,
    NO_SEED,
    carry_out,
    check_alike,
    check_different,
    check_given,
    check_images,
    check_whole,
    refuse_launchers,
)
from .epochs_page import draw, draw_differences, page
from .folder import command_line, write_results
from .results import DEFAULT, OF_MEASURES, Row, accuracies, at_the_end, by_seed, differences, of_measures, spread
from .training import Training

NAME = "epochs"
_POINTS = 20
"""How often at least kNN is measured in a training of as many epochs or more."""

_WHAT = (
    "kNN accuracy in percent on held-out images while encoders are trained, of each recipe and seed: after `epochs`, "
    "of the encoder before training and of raw pixels. Differences are in points, of trainings of the same seed at "
    f"their last epoch; standard errors are s/√n over seeds, null for a single one. Measured at the end: {OF_MEASURES}"
)


@dataclass(frozen=True)
class Epochs:
    """Which trainings the study compares: all of these together.

    Attributes:
        framework, dataset: as in the names of recipes.
        backbones: likewise, or `DEFAULT`: a panel each.
        variants: likewise: a line each; the first is what the others are compared with.
        seeds: of every one.
        data: what to train on in place of the recipes' own.
        settings: of `amcl-fast pretrain`, for all.
        trust: as that of `pretrain`, of trainings that go on.
    """

    framework: str
    dataset: str
    backbones: tuple[str, ...]
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    data: str | None = None
    settings: tuple[str, ...] = ()
    trust: bool = False

    def __post_init__(self) -> None:
        for name in ("backbones", "variants"):
            check_different(name, getattr(self, name))
        check_given(self.seeds, self.settings)

    @property
    def cells(self) -> dict[str, Row]:
        """Recipe to its backbone and variant, in the order of the figure."""
        return {
            "-".join([self.framework, self.dataset, variant, *([] if backbone == DEFAULT else [backbone])]): {
                "backbone": backbone,
                "variant": variant,
            }
            for backbone in self.backbones
            for variant in self.variants
        }

    def options(self) -> dict[str, Any]:
        """As the command line takes them."""
        names = ("framework", "dataset", "backbones", "variants", "seeds", "data")
        return {name: getattr(self, name) for name in names}


def run(study: Epochs, output: Path | None, about: Mapping[str, Any]) -> None:
    """Train what the study has not trained yet, draw it after each training, print where the page is.

    Args:
        study: which trainings.
        output: folder of the study; default: runs/epochs-<framework>-<dataset>. The same study goes on there.
        about: `machine` and `environment`, for study.json.

    Raises:
        StopError: it was stopped, or a training was refused or failed.
        SettingsError, ValueError: the settings cannot be, or are not those of what is in the folder.
        OSError: a file cannot be written or read.
    """
    refuse_launchers()
    folder = output or RUNS / f"{NAME}-{study.framework}-{study.dataset}"
    trust = ("--trust",) if study.trust else ()
    command = command_line(NAME, {**study.options(), "output": output}, [*study.settings, *trust])
    data = () if study.data is None else ("--data.root", study.data)
    given, whole = {}, {}
    for recipe in study.cells:
        given[recipe] = (*MEASURED, *_measuring(recipe, [*data, *study.settings]), *data, *study.settings)
        whole[recipe] = settings_of(recipe, ("--seed_everything", str(NO_SEED), *given[recipe]))
    check_whole(whole)
    for backbone in study.backbones:
        check_alike({recipe: whole[recipe] for recipe, cell in study.cells.items() if cell["backbone"] == backbone})
    # Seed by seed, so that a study that is cut has all cells of the first ones.
    trainings = [Training(recipe, seed, folder, given[recipe]) for seed in study.seeds for recipe in study.cells]
    redraw = partial(_redraw, study, folder, len(trainings), {"command": command, **about})
    carry_out(NAME, folder, trainings, lambda training: whole[training.recipe], redraw, command, trust)


def _measuring(recipe: str, settings: Sequence[str]) -> list[str]:
    """How often kNN is measured where nobody says so: after each epoch of few, 20 times or more of many."""
    found = settings_of(recipe, settings)
    epochs, own = found["trainer"]["max_epochs"], found["knn"]["every_n_epochs"]
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"trainer.max_epochs must be at least 1 in a study of epochs, got {epochs}")
    return ["--knn.every_n_epochs", str(max(1, min(own, epochs // _POINTS)))]


def _redraw(study: Epochs, folder: Path, total: int, about: Mapping[str, Any], done: Mapping[Training, Run]) -> None:
    """Write what there is so far."""
    rows = [
        {
            "recipe": training.recipe,
            **study.cells[training.recipe],
            "seed": training.seed,
            "run": training.run_dir.name,
            "measures": run.measures or None,
            **accuracies(run),
            **at_the_end(run),
            **{name: run.facts.get(name) for name in ("seconds", "training_images", "measured_images")},
            **{name: run.facts.get(name) for name in ("machine", "versions")},
        }
        for training, run in done.items()
    ]
    check_images(folder, rows)
    rows.sort(key=lambda row: (list(study.cells).index(row["recipe"]), study.seeds.index(row["seed"])))
    results = {
        "study": NAME,
        "what": _WHAT,
        **about,
        **study.options(),
        "settings": study.settings,
        "left": total - len(rows),
        **summary(study, rows),
        "trainings": rows,
    }
    drawn = {NAME: draw(results), **draw_differences(results)} if rows else {}
    write_results(folder, results, {f"{name}.png": png for name, png in drawn.items()}, page(results, drawn))


def summary(study: Epochs, rows: Sequence[Row]) -> Row:
    """What the rows of trainings say.

    Returns:
        `accuracies` of kNN of every cell at its last epoch, and `differences` to the first variant: each has its cell,
        the `epoch`, `seeds`, and `mean` and `standard_error` over them. `measures`: the same of all that was measured
        at the end, as `of_measures` has it.
    """
    means, above = [], []
    for cell in study.cells.values():
        if not (of_cell := by_seed(rows, **cell)):
            continue
        epoch = {"epoch": next(iter(of_cell.values()))["epochs"][-1]}
        means.append({**cell, **epoch, "seeds": list(of_cell), **spread([row["knn"][-1] for row in of_cell.values()])})
        first = {**cell, "variant": study.variants[0]}
        if cell != first and (found := differences(rows, first, cell)):
            above.append({**cell, "minus": first["variant"], **epoch, **found})
    cells = list(study.cells.values())
    pairs = [(cell, {**cell, "variant": study.variants[0]}) for cell in cells if cell["variant"] != study.variants[0]]
    return {"accuracies": means, "differences": above, "measures": of_measures(rows, cells, pairs)}
