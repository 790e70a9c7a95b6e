"""Who has started this process: torchrun, srun, Lightning, nobody; and its place among those that were."""

import os
import re
from dataclasses import dataclass
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment

_SHELLS = ("bash", "interactive")
"""Names of jobs in which Lightning starts processes itself."""


@dataclass(frozen=True)
class Place:
    """This process among those that a launcher has started, and where they meet."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    bound: bool
    """Whether the launcher gives each process CPUs of its own, as srun does unless it is told not to."""


def _launcher() -> str | None:
    """Who has started this process and others beside it: torchrun, srun, or None.

    Under SLURM srun is the launcher, and its step counts: a job's own variables are there as well in a shell of the
    job, in which a command runs alone, and of another number of tasks.

    Raises:
        ValueError: a variable of the launcher's is missing or no number.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun" if _number("WORLD_SIZE", "torchrun") > 1 else None
    if "SLURM_STEP_ID" not in os.environ or os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    return "srun"


def by_others() -> bool:
    """Whether a launcher has started several processes, which cannot tell each other anything before they meet."""
    return _launcher() is not None


def restarts() -> bool:
    """Whether torchrun may start this process again, alone or with others, and has a store that outlives it."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def rank() -> int:
    """Of this process, known before anything is set up; of those that Lightning starts, which are of one machine."""
    launcher = _launcher()
    if launcher is None:
        return _number("LOCAL_RANK", "Lightning") if "LOCAL_RANK" in os.environ else 0
    return _number("RANK" if launcher == "torchrun" else "SLURM_PROCID", launcher)


def check_started(trainer: Any) -> None:
    """Raise ValueError unless a trainer's processes are those that a launcher has started, or it starts them itself.

    Others would be waited for in vain, or train beside this one without knowing of it.
    """
    launcher, wanted = _launcher(), trainer.world_size
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if launcher is not None:
        started = _number("WORLD_SIZE" if launcher == "torchrun" else "SLURM_STEP_NUM_TASKS", launcher)
        if wanted != started:
            raise ValueError(
                f"trainer.devices times trainer.num_nodes must be {started}, the processes that {launcher} has "
                f"started, got {wanted}"
            )
        # Lightning takes jobs of these names for shells, in which it starts processes itself.
        if environment is not None and not environment.creates_processes_externally:
            name = os.environ.get("SLURM_JOB_NAME")
            raise ValueError(f"srun must give the processes another name, as with --job-name=amcl, got {name!r}")
    elif wanted > 1 and isinstance(environment, SLURMEnvironment):
        raise ValueError(f"trainer.devices must be 1 in a job of SLURM unless srun starts the processes, got {wanted}")


def own_place() -> Place | None:
    """What the launcher says of this process; None without one, or where it has started this process alone.

    Raises:
        ValueError: a variable of the launcher's is missing or no number.
    """
    launcher = _launcher()
    if launcher is None:
        return None
    if launcher == "torchrun":
        return Place(
            rank=rank(),
            world_size=_number("WORLD_SIZE", "torchrun"),
            local_rank=_number("LOCAL_RANK", "torchrun"),
            local_size=_number("LOCAL_WORLD_SIZE", "torchrun"),
            address=_told("MASTER_ADDR", "torchrun"),
            port=_number("MASTER_PORT", "torchrun"),
            bound=False,
        )
    nodes = os.environ.get("MASTER_ADDR") or _told("SLURM_STEP_NODELIST", "srun")
    # Two steps of a job may run at once.
    port = 15_000 + (_number("SLURM_JOB_ID", "srun") + _number("SLURM_STEP_ID", "srun")) % 10_000
    return Place(
        rank=rank(),
        world_size=_number("SLURM_STEP_NUM_TASKS", "srun"),
        local_rank=_number("SLURM_LOCALID", "srun"),
        local_size=_tasks()[_number("SLURM_NODEID", "srun")],
        address=SLURMEnvironment.resolve_root_node_address(nodes),
        port=_number("MASTER_PORT", "srun") if "MASTER_PORT" in os.environ else port,
        bound=True,
    )


def _told(name: str, launcher: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ValueError(f"{name} must be set by {launcher}, got {'nothing' if value is None else repr(value)}")
    return value


def _number(name: str, launcher: str) -> int:
    value = _told(name, launcher)
    if not value.isdecimal():
        raise ValueError(f"{name} must be the whole number that {launcher} sets, got {value!r}")
    return int(value)


def _tasks() -> list[int]:
    """Tasks of this process's step on each machine: of `2(x3),1` 2, 2, 2 and 1."""
    told, machine = _told("SLURM_STEP_TASKS_PER_NODE", "srun"), _number("SLURM_NODEID", "srun")
    found = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in told.split(",")]
    counts = [int(match[1]) for match in found if match for _ in range(int(match[2] or 1))]
    if not all(found) or machine >= len(counts):
        raise ValueError(f"SLURM_STEP_TASKS_PER_NODE must tell the tasks of machine {machine}, got {told!r}")
    return counts


def settle_tasks() -> None:
    """Have Lightning take a job's tasks that were given by their number alone, as by `srun -n 2`.

    Raises:
        ValueError: they are not as many on every machine, or nobody has started them.
    """
    name, tasks = os.environ.get("SLURM_JOB_NAME"), os.environ.get("SLURM_NTASKS", "1")
    if tasks == "1" or "SLURM_NTASKS_PER_NODE" in os.environ or name in _SHELLS or _launcher() == "torchrun":
        return
    if _launcher() is None:
        raise ValueError(f"srun must start the processes of a job of {tasks} tasks, got this one alone")
    counts = _tasks()
    if len({*counts}) > 1:
        raise ValueError(f"srun must start as many processes on every machine (--ntasks-per-node), got {counts}")
    os.environ["SLURM_NTASKS_PER_NODE"] = str(counts[0])


def threads() -> int:
    """Threads that this process may keep busy: its part of the machine's CPUs that it and its neighbours may use."""
    allowed, place = len(os.sched_getaffinity(0)), own_place()
    if place is None:
        return allowed
    if place.bound:
        if "SLURM_CPUS_PER_TASK" in os.environ:
            return max(1, min(allowed, _number("SLURM_CPUS_PER_TASK", "srun")))
        of_all = os.cpu_count() or 1
        if "SLURM_CPUS_ON_NODE" in os.environ:
            of_all = min(of_all, _number("SLURM_CPUS_ON_NODE", "srun"))
        if allowed < of_all:
            return allowed
    return max(1, allowed // place.local_size)
