"""The folder of a study: its trainings' runs, its results as JSON, its figures, its page."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from ..runs.directory import PAGE, RunDirectory
from ..runs.files import PARTIAL, write_file
from ..runs.in_place import refuse_links
from ..runs.lock import LOCK, RunLock
from ..runs.reading import DamagedError, read_json
from ..runs.settings import changes, read_settings
from .training import Training

RESULTS = "study.json"


class _Results(TypedDict):
    """What tells one study from another."""

    command: str
    study: str


_HARMLESS = ("data.num_threads", "data.prefetch", "trainer.enable_progress_bar")


def open_folder(folder: Path, study: str, trainings: Sequence[Training], lock: RunLock) -> None:
    """Make the folder of a study, or find the same study in it, and keep others out.

    Raises:
        FileExistsError: something else is in it.
        ValueError: another study is in it, or this one with trainings that are not among these.
        RunInUseError: a study goes on there.
        PlaceError: the folder of a training that is not finished is a link.
        OSError: it cannot be made or read.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is no folder; give another --output")
    folder.mkdir(parents=True, exist_ok=True)
    lock.acquire(folder, "carries on a study there, and two never share a folder")
    refuse_links(*(of.run_dir for of in trainings if of.run_dir.is_symlink() and of.result() is None))
    names = sorted(path.name for path in folder.iterdir() if path.name != LOCK and path.suffix != PARTIAL)
    if not names:
        return
    path = folder / RESULTS
    planned = {training.run_dir.name for training in trainings}
    runs = {name for name in names if RunDirectory(folder / name).config.is_file()}
    if RESULTS not in names and not runs & planned:
        raise FileExistsError(f"{folder} holds {names[0]}, which is no study's; give another --output")
    try:
        before = read_json(path, _Results) if RESULTS in names else {"command": "as it was begun", "study": study}
        command, found = before["command"], before["study"]
    except DamagedError as error:
        helps = "remove it, and it is written again" if runs & planned else "give another --output"
        raise DamagedError(f"{error}; {helps}") from None
    strange = sorted(runs - planned)
    if found != study or strange:
        what = f"the training {strange[0]}, which is none of these" if strange else f"a study of {found}"
        raise ValueError(
            f"{folder} holds {what}; it goes on with all that is there ({command}), or give another --output"
        )


def moved(training: Training, now: Mapping[str, Any]) -> tuple[str, ...]:
    """What a training that has begun is to be told of its settings, since they differ from those it has.

    Args:
        training: whose run is there.
        now: all settings that it would have if it began now.

    Raises:
        ValueError: one differs that changes what is compared, or the run's settings are damaged.
        OSError: they cannot be read.
    """
    then = read_settings(RunDirectory(training.run_dir).config)
    found = changes(then, {**now, "seed_everything": training.seed}, added=False)
    others = [f"{name} from {old} to {new}" for name, (old, new) in found.items() if not _harmless(name, old, new)]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(
            f"{training.run_dir} has other settings ({others[0]}{more}), and a study compares what has the same: give "
            "those of before, or another --output"
        )
    return tuple(
        part for name, (_, new) in found.items() for part in (f"--{name}", "null" if new is None else str(new))
    )


def _harmless(name: str, old: Any, new: Any) -> bool:
    """Whether a training of other settings than another one may be compared with it."""
    if name in ("data.root", "data.held_out", "data.evaluation"):
        # A folder may be moved; a data set with a name, or none, is another one.
        return all(isinstance(path, str) and os.path.isabs(path) for path in (old, new))
    return name in _HARMLESS


def write_results(folder: Path, results: Mapping[str, Any], figures: Mapping[str, bytes], page: str) -> Path:
    """Write study.json, the figures and the page; returns the page.

    Raises:
        OSError: one cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it meanwhile
    lines = (f" {json.dumps(name)}: {_json(value)}" for name, value in results.items())
    write_file(folder / RESULTS, "{\n" + ",\n".join(lines) + "\n}\n")
    for name, content in figures.items():
        write_file(folder / name, content)
    write_file(folder / PAGE, page)
    return folder / PAGE


def _json(value: Any) -> str:
    """On one line; rows on one each."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n  " + ",\n  ".join(map(_json, value)) + "\n ]"
    return json.dumps(value, ensure_ascii=False)


def command_line(study: str, options: Mapping[str, Any], settings: Sequence[str]) -> str:
    """The command of a study, as a shell takes it; options that are None are left out, values of a list follow it."""
    given = [
        part
        for name, value in options.items()
        if value is not None
        for part in (f"--{name}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)]))
    ]
    return shlex.join(["amcl-fast", "study", study, *given, *settings])
