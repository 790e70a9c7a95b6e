"""Who has started this process: torchrun, srun, nobody; how several wait and fail, their group without a trainer."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment

from .distributed import ElsewhereError, together, world

_WAITING = timedelta(days=30)
_MEETING = timedelta(minutes=30)
"""Within which processes that a launcher has started meet, as torch has it: Python may still be loading in some."""
_LOOK_SECONDS = 0.1
_SHELLS = ("bash", "interactive")
"""Names of jobs in which Lightning starts processes itself."""
_CTRL_C_SECONDS = 2.0
"""Within which a Ctrl-C has reached all processes: a launcher sends it to one after the other."""
_LOST = re.compile("Connection (closed|reset|was likely closed)|Broken pipe|remote process exit")
_OF_GLOO = re.compile(f"gloo/|{_LOST.pattern}")


@dataclass(frozen=True)
class _Place:
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


def _place() -> _Place | None:
    """What the launcher says of this process; None without one, or where it has started this process alone.

    Raises:
        ValueError: a variable of the launcher's is missing or no number.
    """
    launcher = _launcher()
    if launcher is None:
        return None
    if launcher == "torchrun":
        return _Place(
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
    return _Place(
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


_stores: list[Any] = []
"""Kept: where the first process serves one, its group meets on the same port, which a server that ends gives back late.
"""


def told_by_first(find: Callable[[], str]) -> str:
    """What the first process of those that a launcher has started finds, in all of them; they are no group yet.

    Raises:
        ElsewhereError: it has found nothing, and says why.
        torch.distributed.DistError: the processes do not find each other, or the first one has ended.
    """
    place = _place()
    if place is None:
        return find()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = place.address, str(place.port)
    store, *_ = next(dist.rendezvous("env://", place.rank, place.world_size, timeout=_MEETING))
    _stores.append(store)
    store = dist.PrefixStore("amcl_fast", store)
    if place.rank:
        # torchrun's store outlives the processes that it starts again: no number is of two of them.
        own = store.add("asked", 1)
        while not store.check([f"answer/{own}"]):  # not store.get, in which no signal is heard
            time.sleep(_LOOK_SECONDS)
        found, failed, meeting = json.loads(store.get(f"answer/{own}"))
        store.set(f"heard/{own}", str(place.rank))
        _meet_apart(meeting)
        if failed:
            raise ElsewhereError(found)
        return found
    error: Exception | None = None
    meeting = store.add("meetings", 1)
    _meet_apart(meeting)
    try:
        found = find()
    except Exception as caught:
        error, found = caught, str(caught)
    answered: list[int] = []
    last, heard = 0, set[bytes]()
    while len(heard) < place.world_size - 1:  # who serves the store may be at its end
        for number in range(last + 1, store.add("asked", 0) + 1):
            if not store.check([f"answer/{number}"]):
                store.set(f"answer/{number}", json.dumps([found, error is not None, meeting]))
                answered.append(number)
            last = number
        heard = {store.get(f"heard/{number}") for number in answered if store.check([f"heard/{number}"])}
        time.sleep(_LOOK_SECONDS)
    if error is not None:
        raise error
    return found


def _meet_apart(meeting: int) -> None:
    """Have the next group of these processes meet in a part of its own of the store.

    Where torchrun has started them again it holds the addresses of those before, to whom they would connect (torch
    2.11: it makes no new store, though it says so).
    """

    from torch.distributed.rendezvous import _env_rendezvous_handler, _rendezvous_handlers

    def handler(url: str, **options: Any) -> Iterator[tuple[Any, int, int]]:
        for store, rank, size in _env_rendezvous_handler(url, **options):
            yield dist.PrefixStore(f"amcl_fast/{meeting}", store), rank, size

    _rendezvous_handlers["env"] = handler


def threads() -> int:
    """Threads that this process may keep busy: its part of the machine's CPUs that it and its neighbours may use."""
    allowed, place = len(os.sched_getaffinity(0)), _place()
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


@contextmanager
def launched() -> Iterator[torch.device]:
    """A block in which the processes that a launcher has started are a group; yields this one's device.

    Raises:
        ValueError: what the launcher says of this process cannot be.
        ConnectionError: the processes do not find each other, or one of them has ended.
    """
    on_gpu = torch.cuda.is_available()
    place = _place()
    if place is None:
        yield torch.device("cuda" if on_gpu else "cpu")
        return
    device = torch.device("cuda", place.local_rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    # As Lightning has it: both launchers tell these, srun by other names.
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = place.address, str(place.port)
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", rank=place.rank, world_size=place.world_size)
        yield device
    except Exception as error:
        if (told := group_error(error, place.rank)) is None:
            raise
        raise told from error
    finally:
        if dist.is_initialized():
            with suppress(RuntimeError):  # what ended the block is what to tell
                dist.destroy_process_group()


def group_error(error: Exception, rank: int) -> ConnectionError | None:
    """What to tell of an error of the group's, in place of a traceback; None of other errors.

    Args:
        error: whichever.
        rank: of this process, which is interrupted here if another one has ended by a Ctrl-C of all.
    """
    said = " ".join(str(error).split())
    # gloo raises plain RuntimeErrors.
    if not isinstance(error, dist.DistError) and not (isinstance(error, RuntimeError) and _OF_GLOO.search(said)):
        return None
    if not _LOST.search(said):
        return ConnectionError(f"process {rank} cannot work with the others ({said[:400]})")
    time.sleep(_CTRL_C_SECONDS)
    return ConnectionError(f"process {rank} has lost another one, which has ended ({said[:200]})")


@contextmanager
def patient() -> Iterator[Any]:
    """A block with a group of all processes for which they wait however long it takes; None in a single one."""
    if world()[1] == 1:
        yield None
        return
    group = dist.new_group(backend="gloo", timeout=_WAITING)
    try:
        yield group
    finally:
        with suppress(RuntimeError):  # what ended the block is what to tell
            dist.destroy_process_group(group)


def once_a_machine(work: Callable[[], object], group: Any) -> None:
    """Have the first process of every machine do something, while the others wait.

    Args:
        work: without collectives.
        group: of all processes, whose timeout counts.

    Raises:
        ElsewhereError: it has failed in another process. The first that has failed raises its own error.
    """
    place = _place()
    with together(group):
        if place is None or not place.local_rank:
            work()
