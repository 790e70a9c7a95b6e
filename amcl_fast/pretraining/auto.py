"""`--resume auto`: a command that begins a run or goes on with it, as its first process finds it, in all of them."""

import json
import os
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import yaml

from ..launch import by_others, rank, told_by_first
from ..runs.checkpoint import load_checkpoint
from ..runs.directory import CHECKPOINT_SUFFIX, RunDirectory
from ..runs.files import read_file
from ..runs.lock import RunLock
from ..runs.resuming import Resumed, check_writable, find_run, read_resumed
from ..runs.settings import read_settings
from .config_files import config_files

VARIABLE = "AMCL_FAST_GOES_ON"
"""Of the environment: tells processes that Lightning starts what the first one has found."""

_LATE_SECONDS = 60.0
"""Within which a network's file system shows a file to all machines."""

# A list to which a command may add; they come from it alone, if it names them, and alter no step.
_LISTS = ("callbacks", "logger")


def found_by_first(run_dir: Path, lock: RunLock) -> Resumed | None:
    """What a run in this folder goes on from, None where it is to be begun; the first process locks it if it goes on.

    Raises:
        ElsewhereError: the first process has failed.
        OSError: a run is at work there, it cannot be written, or this process does not see it.
        ValueError: as `read_resumed`.
    """

    def find() -> str:
        found = _find(run_dir, lock)
        told = None if found is None else [str(found.checkpoint or ""), found.step, found.settings, found.finished]
        return yaml.safe_dump(told)  # settings may hold dates

    if by_others():
        told = told_by_first(find)
    elif rank():
        told = os.environ.get(VARIABLE, "null")
    else:
        told = os.environ[VARIABLE] = find()
    found = yaml.safe_load(told)
    if found is None:
        return None
    checkpoint, step, settings, finished = found
    path = Path(checkpoint) if checkpoint else None
    if path is not None and rank():
        _await(path, step)
    return Resumed(path, step, settings, finished)


def _find(run_dir: Path, lock: RunLock) -> Resumed | None:
    files = RunDirectory(run_dir)
    if not files.config.exists() and not any(files.checkpoints.glob(f"*{CHECKPOINT_SUFFIX}")):
        return None
    run_dir, checkpoint = find_run(str(run_dir), None)
    check_writable(run_dir)
    lock.acquire(run_dir)
    facts = {}
    with suppress(OSError, ValueError):
        facts = json.loads(read_file(files.facts))
    if checkpoint is None and not facts.get("finished"):
        print(f"{run_dir} holds no checkpoint: the run begins anew", flush=True)
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
