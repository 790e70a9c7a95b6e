"""What a resumed run goes on from: its folder, its checkpoint, its settings, and what of these is taken."""

import glob
import itertools
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .checkpoint import EXACT_RESUME, load_checkpoint
from .directory import CHECKPOINT_SUFFIX, CHECKPOINTS, CONFIG, LAST, LATEST, RUNS, RunDirectory
from .in_place import refuse_links
from .settings import TRUSTED, LimitError, foreign_names, lacking, may_change, read_settings, refused_changes


@dataclass(frozen=True)
class Resumed:
    """What a run goes on from.

    Attributes:
        checkpoint: the file; None for a run that had saved none, and begins anew.
        step: its optimiser step.
        settings: the run's, without the changes of this resume; {} for a run that begins anew with others.
        finished: whether it ends at once unless it is made longer.
        command: the arguments of a new run of the command that goes on: what these say in other words is no change.
    """

    checkpoint: Path | None
    step: int
    settings: dict[str, Any]
    finished: bool = False
    command: tuple[str, ...] = ()

    @property
    def as_new(self) -> bool:
        """Whether its settings are those of a new run."""
        return not self.settings

    @property
    def argument(self) -> list[str]:
        """The settings as the parser takes them."""
        return ["--config", yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True)]


class FinishedError(Exception):
    """A run that is not made longer has nothing left to train."""


def check_writable(run_dir: Path) -> None:
    """Raise OSError, in one line, if a folder of a run is a link or a file, or no checkpoint can be written.

    The run directory itself may be a link.
    """
    files = RunDirectory(run_dir)
    refuse_links(*files.folders)
    for folder in files.folders:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} must be a folder, and is none: remove it")
    for folder in (run_dir, files.checkpoints):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} cannot be written: nothing of the run could be saved there")


def find_run(resume: str, recipe: str | None) -> tuple[Path, Path | None]:
    """Run directory and checkpoint to go on from; a run that had saved nothing has no checkpoint.

    Args:
        resume: run directory, checkpoint, or `LATEST`: the run that saved last, of `recipe` if that is given.

    Raises:
        FileNotFoundError: there is nothing to go on from.
    """
    if resume == LATEST:
        # With a digit begins the time: other recipes may have a longer name.
        pattern = f"{glob.escape(recipe)}-[0-9]*/{LAST}" if recipe else f"*-*/{LAST}"
        found = sorted(RUNS.glob(pattern), key=lambda path: path.stat().st_mtime)
        if not found:
            raise FileNotFoundError(f"nothing to resume: no {RUNS / pattern}")
        return RunDirectory.of(found[-1]).path, found[-1]
    path = Path(resume)
    if path.is_dir():
        files = RunDirectory(path)
        checkpoint = files.last
        if not checkpoint.is_file() and files.config.is_file():
            kept = sorted(files.checkpoints.glob(f"*{CHECKPOINT_SUFFIX}"), key=lambda file: file.lstat().st_mtime)
            if kept:  # a link that leads nowhere, too: to begin anew would overwrite what there is
                raise FileNotFoundError(
                    f"{checkpoint} is no file, and the run has saved others: give one of these, {kept[-1]} for example"
                )
            return path, None
    else:
        checkpoint = path if len(path.parents) > 1 else path.absolute()
    if not checkpoint.is_file():
        raise FileNotFoundError(f"nothing to resume: {checkpoint} does not exist")
    if checkpoint.absolute().parent.name != CHECKPOINTS and not RunDirectory.of(checkpoint).config.is_file():
        raise FileNotFoundError(f"{checkpoint} does not lie in a run directory (there is no {CONFIG})")
    return RunDirectory.of(checkpoint).path, checkpoint


def read_resumed(run_dir: Path, checkpoint: Path | None) -> Resumed:
    """What a run goes on from; settings of config.yaml, or of the checkpoint where those do not belong to it.

    Raises:
        FileNotFoundError: there are no settings.
        ValueError: checkpoint or settings are damaged, or hold what they must not.
    """
    config = RunDirectory(run_dir).config
    if checkpoint is None:
        print(f"{run_dir} holds no checkpoint: the run begins anew", flush=True)
        return Resumed(None, 0, _known(read_settings(config)))
    state = load_checkpoint(checkpoint)
    if EXACT_RESUME not in state or "optimizer_states" not in state:
        raise ValueError(f"{checkpoint} holds weights without the state of their training: nothing can go on from it")
    step, saved = state["global_step"], state.get("settings")
    saved = _known(saved) if isinstance(saved, dict) else {}
    if not saved:
        return Resumed(checkpoint, step, _known(read_settings(config)))
    try:
        written = _known(read_settings(config))
    except LimitError:
        raise
    except FileNotFoundError:
        reason = "is missing"
    except (OSError, ValueError) as error:
        reason = f"cannot be used ({error})"
    else:
        lost, changed = lacking(saved, written), refused_changes(saved, written, added=False)
        if not lost and not changed:
            return Resumed(checkpoint, step, written)
        changes = "; ".join(f"{name} from {change}" for name, change in list(changed.items())[:3])
        reason = f"lacks {lost[0]}" if lost else f"does not belong to the checkpoint ({changes})"
    print(f"{config} {reason}: it is written again from the settings in {checkpoint}", flush=True)
    return Resumed(checkpoint, step, saved)


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what a checkpoint holds beside them, and what only earlier versions accepted and kept unset.

    What is newer than the run is as it was before.
    """
    known = {name: value for name, value in settings.items() if name not in ("amcl_fast", "run", "config")}
    trainer = known.get("trainer")
    if isinstance(trainer, dict):
        # The folder may have been moved since. Loggers of false are none beside the run's own, as null is.
        unset = {"default_root_dir"} | ({"logger"} if trainer.get("logger") is False else set())
        known["trainer"] = {name: None if name in unset else value for name, value in trainer.items()}
    data = known.get("data")
    if isinstance(data, dict) and data:
        known["data"] = {"dtype": "float32", **data}
    return known


def without_nulled(settings: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Settings without those that may change and that the command line sets to null: nobody needs what they name."""
    arguments = [part for change in changes for part in change.split("=", 1)]
    names = {name.removeprefix("--") for name, value in itertools.pairwise(arguments) if value == "null"}

    def keep(value: Any, prefix: str) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key: keep(item, f"{prefix}{key}.")
            for key, item in value.items()
            if not (f"{prefix}{key}" in names and may_change(f"{prefix}{key}"))
        }

    return keep(settings, "")


def refuse_another(recipe: str | None, resumed: Resumed, run_dir: Path, *, by_name: bool = False) -> None:
    """Raise ValueError if a recipe is given that is not the run's own.

    One that was found by its name may have been begun without, and one of an earlier version does not say.
    """
    own = resumed.settings.get("recipe")
    unsaid = own is None and (by_name or "recipe" not in resumed.settings)
    if not unsaid and recipe not in (None, own):
        raise ValueError(f"--recipe must be {own or 'left out'}, as for the run in {run_dir}, got {recipe}")


def refuse_foreign(settings: dict[str, Any], run_dir: Path, named: Collection[str] = ()) -> None:
    """Raise ValueError if the settings of a run name what would be imported from outside `settings.TRUSTED`.

    Args:
        settings: the run's.
        run_dir: its folder.
        named: what the user names besides, and is imported.
    """
    found = {name: value for name, value in foreign_names(settings).items() if value not in named}
    if found:
        named = "; ".join(f"{name}: {' '.join(value.split())[:80]}" for name, value in list(found.items())[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ValueError(
            f"{run_dir} names what is no part of {', '.join(TRUSTED)} ({named}{more}), and going on would import and "
            "run it; if you trust whoever made the run, add --trust"
        )
