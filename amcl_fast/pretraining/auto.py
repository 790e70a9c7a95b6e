"""`--resume auto`: a command that begins a run or goes on with it, as its first process finds it, in all of them.

So does any command that torchrun starts again.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import yaml

from ..callbacks import StopSignals
from ..fellows import leave, left, told_by_first
from ..launch import by_others, rank, restarts
from ..paths import expanded
from ..runs.checkpoint import load_checkpoint
from ..runs.directory import AUTO, CHECKPOINT_SUFFIX, LATEST, RunDirectory
from ..runs.lock import RunLock
from ..runs.reading import read_json
from ..runs.resuming import Resumed, check_writable, find_run, read_resumed, refuse_another
from ..runs.settings import read_settings
from ..runs.shapes import Facts
from .config_files import config_files
from .given import Given

VARIABLE = "AMCL_FAST_GOES_ON"
"""Of the environment: tells processes that Lightning starts what the first one has found."""

_LATE_SECONDS = 60.0
"""Within which a network's file system shows a file to all machines."""

# A list to which a command may add; they come from it alone, if it names them, and alter no step.
_LISTS = ("callbacks", "logger")

_commands: Counter[str] = Counter()
"""How often this process has run each command."""


def name_of(command: Sequence[object]) -> str:
    """Under which torchrun's store knows a command's run: of a script that gives the same one again, the n-th."""
    said = hashlib.sha256(repr(command).encode()).hexdigest()
    _commands[said] += 1
    return f"run/{said}/{_commands[said]}"


def gone_on_from(
    name: str,
    resume: str | None,
    run_dir: Path | None,
    recipe: str | None,
    lock: RunLock,
    signals: StopSignals,
    given: Given,
) -> tuple[str | None, Path | None, Resumed | None]:
    """How a command goes on that begins a run or goes on with one, in all processes; the first locks what goes on.

    Args:
        name: of the command, by `name_of`.
        resume, run_dir, recipe: of the command.
        lock, signals, given: of the run.

    Returns:
        As the command would have said it, `--resume` and folder of the run, and what goes on from there; None where it
        is still to be begun.

    Raises:
        ElsewhereError: the first process has failed.
        OSError: there is no such run, one is at work there, it cannot be written, or this process does not see it.
        ValueError: `--run_dir` does not fit; as `read_resumed`.
    """
    auto = resume == AUTO
    if auto and run_dir is None:
        raise ValueError(f"--run_dir must be given with --resume {AUTO}, the folder to begin or go on in, got none")
    if resume is None and run_dir is None and by_others():
        raise ValueError("--run_dir must be given under torchrun or srun, the same to every process, got none")
    if not auto and resume is not None and run_dir is not None:
        raise ValueError(
            f"--run_dir must be left out with --resume, which goes on in the folder of its run, got {run_dir}; "
            f"--resume {AUTO} takes it"
        )
    by_name, resumed = resume == LATEST, None
    if auto or restarts():
        with signals.heard_while_waiting(lambda signum: requeue() if auto and signum == signal.SIGUSR1 else None):
            resumed, again = _found_by_first(name, resume, run_dir, lock)
        if again is not None:
            run_dir = again
            resume = AUTO if resume is None else str(again) if by_name else resume
    if resume is None or resume == AUTO:
        if resumed is not None and not resumed.as_new:
            assert run_dir is not None
            resumed = given.in_place_of(resumed, run_dir)
        return resume, run_dir, resumed
    if resumed is None:
        run_dir, checkpoint = find_run(expanded(resume), recipe)
        if not rank():
            check_writable(run_dir)
            lock.acquire(run_dir)
        resumed = read_resumed(run_dir, checkpoint)
    assert run_dir is not None
    resumed = given.in_place_of(resumed, run_dir)
    refuse_another(recipe, resumed, run_dir, by_name=by_name)
    return resume, run_dir, resumed


def _found_by_first(
    name: str, resume: str | None, run_dir: Path | None, lock: RunLock
) -> tuple[Resumed | None, Path | None]:
    """What the first process finds, which locks the folder of a run that goes on.

    Args:
        name: of the command.
        resume, run_dir: as the command has them: `AUTO`, or anything where torchrun may have started it again.
        lock: of the run.

    Returns:
        What goes on there; None where that is still to be begun, or as `resume` says. And the folder of the run, where
        torchrun has started the command again.
    """

    def find() -> str:
        begun = left(name)
        folder, before = (str(run_dir), None) if begun is None else json.loads(begun)
        again = "" if begun is None else f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT')} of torchrun: "
        found = None
        # What `--resume` names may be earlier than what was saved since.
        if resume == AUTO or (begun is not None and (resume is None or _last(folder) != before)):
            found = _find(Path(folder), lock, again)
        if again and found is None:
            print(f"{again}nothing was saved in {folder}, it begins as the first time", flush=True)
        elif again and found is not None and found.checkpoint is not None:
            print(f"{again}goes on from step {found.step} of {folder}", flush=True)
        told = None if found is None else [str(found.checkpoint or ""), found.step, found.settings, found.finished]
        return yaml.safe_dump([told, begun and folder])  # settings may hold dates

    if by_others():
        told = told_by_first(find)
    elif rank():
        told = os.environ.get(VARIABLE, "[null, null]")
    else:
        told = os.environ[VARIABLE] = find()
    found, begun_in = yaml.safe_load(told)
    again = begun_in and Path(begun_in)
    if found is None:
        return None, again
    checkpoint, step, settings, finished = found
    path = Path(checkpoint) if checkpoint else None
    if path is not None and rank():
        _await(path, step)
    return Resumed(path, step, settings, finished), again


def note_begun(name: str, run_dir: Path) -> None:
    """Have the processes that torchrun may start in place of these know whose run the folder holds; in the first.

    torchrun's store says it, and no file: it is of this torchrun alone, while its name may be of many ("none").

    Args:
        name: of the command, by `name_of`.
        run_dir: where its run is, before anything of it is written.
    """
    if left(name) is None:
        leave(name, json.dumps([str(run_dir), _last(run_dir)]))


def _last(run_dir: str | Path) -> list[int] | None:
    """What tells a save from the next one; None without any."""
    try:
        found = RunDirectory(Path(run_dir)).last.stat()
    except OSError:
        return None
    return [found.st_ino, found.st_mtime_ns, found.st_size]


def _find(run_dir: Path, lock: RunLock, before: str) -> Resumed | None:
    files = RunDirectory(run_dir)
    if not files.config.exists() and not any(files.checkpoints.glob(f"*{CHECKPOINT_SUFFIX}")):
        return None
    run_dir, checkpoint = find_run(str(run_dir), None)
    check_writable(run_dir)
    lock.acquire(run_dir)
    facts = {}
    try:
        facts = read_json(files.facts, Facts)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        if checkpoint is None:  # to begin anew would overwrite what there is
            raise
        print(f"{error}; the run goes on from its checkpoint", flush=True)
    if checkpoint is None and not facts.get("finished"):
        print(f"{before}{run_dir} holds no checkpoint: the run begins anew", flush=True)
        return Resumed(None, 0, {})
    if checkpoint is None:
        return Resumed(None, 0, read_settings(files.config), finished=True)
    found = read_resumed(run_dir, checkpoint)
    finished = bool(facts.get("finished")) and facts.get("steps", found.step) == found.step
    return Resumed(checkpoint, found.step, found.settings, finished)


def _await(checkpoint: Path, step: int) -> None:
    """Until this process sees the checkpoint of the first one.

    Raises:
        FileNotFoundError: it does not.
    """
    stop = time.monotonic() + _LATE_SECONDS
    while True:
        with suppress(OSError, ValueError):
            if load_checkpoint(checkpoint)["global_step"] == step:
                return
        if time.monotonic() > stop:
            raise FileNotFoundError(
                f"--run_dir must be a folder that all processes see, got none for process {rank()}: {checkpoint} of "
                f"step {step} is not there"
            )
        with suppress(OSError):
            os.listdir(checkpoint.parent)  # NFS looks anew
        time.sleep(0.5)


def with_command(resumed: Resumed, command: Sequence[str], settings: Sequence[str]) -> Resumed:
    """What a run goes on from, by the command that begins it.

    Args:
        resumed: without it. The lists of the trainer that the command gives are left out: `--trainer.callbacks+` adds.
        command: all arguments of a new run.
        settings: those among them that are no recipe's.
    """
    named = {match[1] for argument in settings if (match := re.match(r"--trainer\.(\w+)", argument))}
    for _, _, name in config_files(settings):
        given = read_settings(Path(name)).get("trainer") if os.path.exists(name) else None
        named |= set(given) if isinstance(given, dict) else set()
    trainer = resumed.settings.get("trainer", {})
    kept = {name: value for name, value in trainer.items() if name not in named.intersection(_LISTS)}
    return replace(resumed, settings={**resumed.settings, "trainer": kept}, command=tuple(command))


def words(settings: Sequence[str]) -> set[str]:
    """What settings of a command line and its files name."""
    texts = [*settings]
    texts += [Path(name).read_text("utf-8") for _, _, name in config_files(settings) if os.path.isfile(name)]
    return {word for text in texts for word in re.split(r"[\s=,\[\]{}'\"]+", text)}


def requeue() -> None:
    """Queue this job of SLURM again, and say so; where the same command goes on. Outside of SLURM: nothing."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or rank():
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        problem = str(error)
    else:
        problem = " ".join(done.stderr.split()) or f"exit code {done.returncode}" if done.returncode else ""
    told = f"cannot be queued again ({problem}): go on with the same command" if problem else "is queued again"
    print(f"job {job} {told}", flush=True)
