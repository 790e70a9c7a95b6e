"""The course of a study, whichever it is: its folder, its trainings, how it ends and goes on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..launch import by_others
from ..runs.directory import PAGE
from ..runs.lock import RunLock
from ..runs.read import Run
from .folder import moved, open_folder
from .training import StopError, Training, train_all

_MEASURING = "amcl_fast.study.measured.Measured"
MEASURED = (f"--trainer.callbacks+={_MEASURING}",)
"""Of every training whose accuracy is compared."""

NO_SEED = 2**32 - 1  # which nobody gives
_LAST_SEED = NO_SEED
"""NumPy's."""

_OWN = ("--recipe", "--seed_everything", "--seed", "--run_dir", "--run-dir", "--resume", "--print_config")
"""What a study says to its trainings, or has no use for."""


def check_given(seeds: Sequence[int], settings: Sequence[str], own: Sequence[str] = ()) -> None:
    """Raise ValueError for seeds, or settings for all trainings, that a study cannot have.

    Args:
        seeds: of its trainings.
        settings: of `amcl-fast pretrain`.
        own: settings that its cells have of their own, such as model.projector.heads; those below one too.
    """
    check_different("seeds", seeds)
    for seed in seeds:
        if not 0 <= seed <= _LAST_SEED:
            raise ValueError(f"--seeds must be between 0 and {_LAST_SEED}, got {seed}")
    for setting in settings:
        if (name := setting.partition("=")[0]) in _OWN:
            raise ValueError(f"{name} must be left out of a study, which has trainings of its own")
        short = name.removeprefix("--").replace(".init_args", "")
        if name.startswith("--") and any(f"{short}.".startswith(f"{of}.") for of in own):
            raise ValueError(f"{name} must be left out of this study, whose trainings differ in it")


def check_different(name: str, values: Sequence[Any]) -> None:
    """Raise ValueError if the option `name` has a value twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"--{name} must be different ones, got {' '.join(map(str, values))}")


def check_whole(whole: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError for settings with which trainings end elsewhere than at a last epoch, or unmeasured.

    Args:
        whole: all settings of each cell's trainings, seeded with `NO_SEED`.
    """
    for settings in whole.values():
        check_kept(settings)
        if _MEASURING not in [callback["class_path"] for callback in settings["trainer"]["callbacks"] or ()]:
            raise ValueError(
                "trainer.callbacks must be given as --trainer.callbacks+ in a study, whose trainings have one that "
                "measures them"
            )
        if settings["seed_everything"] != NO_SEED:
            seed = settings["seed_everything"]
            raise ValueError(
                f"seed_everything must be left out of the --config of a study, which has --seeds, got {seed}"
            )
        for name, usual in (("max_steps", -1), ("max_time", None)):
            if settings["trainer"][name] not in (usual, None):
                value = settings["trainer"][name]
                raise ValueError(f"trainer.{name} must be left out of a study of whole epochs, got {value}")
        if not isinstance(epochs := settings["trainer"]["max_epochs"], int) or epochs < 1:
            raise ValueError(f"trainer.max_epochs must be at least 1 in a study, got {epochs}")
        for name in ("every_n_epochs", "bank", "queries"):
            if settings["knn"][name] == 0:
                raise ValueError(f"knn.{name} must be at least 1 in a study of accuracies, got 0")


def check_kept(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for settings of trainings that leave nothing to read."""
    if tried := settings["trainer"]["fast_dev_run"]:
        raise ValueError(f"trainer.fast_dev_run must be left out of a study, whose trainings are kept, got {tried}")


def check_alike(whole: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError if trainings that are compared end, or are measured, after other epochs."""
    for group, name in (("trainer", "max_epochs"), ("knn", "every_n_epochs")):
        values = {settings[group][name]: cell for cell, settings in whole.items()}
        if len(values) > 1:
            told = " and ".join(f"{value} of {cell}" for value, cell in values.items())
            raise ValueError(f"--{group}.{name} must be given, for the recipes differ in it: {told}")


def check_images(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if the rows of trainings, with `run` and the numbers of images, are of other images."""
    for name in ("training_images", "measured_images"):
        if odd := next((row for row in rows if row[name] != rows[0][name]), None):
            raise ValueError(
                f"{folder / odd['run']} must have {name} as {rows[0]['run']} has, {rows[0][name]}, got {odd[name]}"
            )


def refuse_launchers() -> None:
    """Raise ValueError if torchrun or srun has started this process beside others."""
    if by_others():
        raise ValueError(
            "a study must be started once, without torchrun or srun: its trainings start processes of their own, as "
            "many as --trainer.devices says"
        )


def carry_out(
    study: str,
    folder: Path,
    trainings: Sequence[Training],
    settings: Callable[[Training], Mapping[str, Any]],
    redraw: Callable[[Mapping[Training, Run]], None],
    command: str,
    trust: Sequence[str] = (),
) -> None:
    """Train what has not been trained yet, in order, and print where the page is.

    Args:
        study: its name.
        folder: its folder, in which it goes on.
        trainings: all of it.
        settings: all those of a training that begins now.
        redraw: writes JSON, figures and page of what has finished; called at the beginning and after each training.
        command: the study's, for who goes on with it.
        trust: what trainings that go on are told beside.

    Raises:
        StopError: it was stopped, or a training was refused or failed.
        ValueError: what is in the folder is of another study, or of other settings.
        OSError: a file cannot be written or read.
    """
    with RunLock() as lock:
        open_folder(folder, study, trainings, lock)
        told = [
            replace(training, moved=(*moved(training, settings(training)), *trust)) if training.begun else training
            for training in trainings
        ]
        try:
            failed = train_all(told, redraw)
        except StopError as stop:
            raise StopError(f"{stop}; go on with: {command}", stop.code) from None
    print(f"report      {folder / PAGE}")
    if failed:
        some = f"{failed[0]}" + (f" and {len(failed) - 1} more" if len(failed) > 1 else "")
        raise StopError(f"{len(failed)} of {len(trainings)} trainings failed, {some}; try again: {command}", 1)
