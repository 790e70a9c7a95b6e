"""The other processes of a launch: how they meet and wait, what they tell each other, which of them have ended."""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import _env_rendezvous_handler, _rendezvous_handlers

from .distributed import ElsewhereError, together, world
from .launch import Place, own_place, restarts

_WAITING = timedelta(days=30)
_MEETING = timedelta(minutes=30)
"""Within which processes that a launcher has started meet, as torch has it: Python may still be loading in some."""
_ASKING = timedelta(seconds=5)
"""Within which a store answers that is there."""
_LOOK_SECONDS = 0.1
_CTRL_C_SECONDS = 2.0
"""Within which a Ctrl-C has reached all processes: a launcher sends it to one after the other."""
_LOST = re.compile("Connection (closed|reset|was likely closed)|Broken pipe|remote process exit")
_OF_GLOO = re.compile(f"gloo/|{_LOST.pattern}")
_SOURCE = re.compile(r"\[\S*/gloo/\S*\] ?")
_stores: list[Any] = []
"""Kept: where the first process serves one, its group meets on the same port, which a server that ends gives back late.
"""
_met: tuple[Any, int, int] | None = None
"""Where the group of this process meets: its store, the rank there, the number of processes."""


def _store(place: Place | None) -> Any:
    """What processes tell each other before they are a group: in torchrun's store, or one of the first process."""
    if place is None:  # which torchrun has started alone
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=_ASKING)
    else:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = place.address, str(place.port)
        url = f"env://?rank={place.rank}&world_size={place.world_size}"
        store, *_ = next(_env_rendezvous_handler(url, timeout=_MEETING))
    _stores.append(store)
    return dist.PrefixStore("amcl_fast", store)


def told_by_first(find: Callable[[], str]) -> str:
    """What the first process of those that a launcher has started finds, in all of them; they are no group yet.

    Raises:
        ElsewhereError: it has found nothing, and says why.
        torch.distributed.DistError: the processes do not find each other, or the first one has ended.
    """
    place = own_place()
    if place is None:
        return find()
    store = _store(place)
    if place.rank:
        # torchrun's store outlives the processes that it starts again: no number is of two of them.
        own = store.add("asked", 1)
        while not store.check([f"answer/{own}"]):  # not store.get, in which no signal is heard
            time.sleep(_LOOK_SECONDS)
        found, failed, meeting = json.loads(store.get(f"answer/{own}"))
        store.set(f"heard/{own}", str(place.rank))
        meet_apart(meeting)
        if failed:
            raise ElsewhereError(found)
        return found
    error: Exception | None = None
    meeting = store.add("meetings", 1)
    meet_apart(meeting)
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


def left(what: str) -> str | None:
    """What the processes before these have left under a name, where torchrun has started them again; in the first."""
    if not restarts():
        return None
    with suppress(dist.DistError):  # of a shell that torchrun has started, and which has outlived it
        store = _store(own_place())
        if store.check([what]):
            return store.get(what).decode()
    return None


def leave(what: str, text: str) -> None:
    """Tell those that torchrun may start in place of these processes something; in the first of them."""
    if restarts():
        with suppress(dist.DistError):
            _store(own_place()).set(what, text)


def meet_apart(meeting: int = 0) -> None:
    """Have the next group of these processes meet in a part of its own of the store, and know each other.

    Where torchrun has started them again the store holds the addresses of those before, to whom they would connect
    (torch 2.11: it makes no new store, though it says so).
    """

    def handler(url: str, **options: Any) -> Iterator[tuple[Any, int, int]]:
        global _met
        for whole, rank, size in _env_rendezvous_handler(url, **options):
            store = dist.PrefixStore(f"amcl_fast/{meeting}", whole)
            store.set(f"process/{rank}", json.dumps([os.getpid(), _machine()]))
            _met = store, rank, size
            yield store, rank, size

    _rendezvous_handlers["env"] = handler


@contextmanager
def met_apart() -> Iterator[None]:
    """A block in which groups of these processes `meet_apart`; those of a script after it meet as usual."""
    usual = _rendezvous_handlers["env"]
    meet_apart()
    try:
        yield
    finally:
        _rendezvous_handlers["env"] = usual


@contextmanager
def last_words() -> Iterator[None]:
    """A block whose error, if it is no other process's, the others can tell as the reason why they end."""
    try:
        yield
    except Exception as error:
        if _met is not None and not isinstance(error, ElsewhereError) and not _of_group(error):
            with suppress(RuntimeError):
                said = " ".join(f"{type(error).__name__}: {error}".split())
                _met[0].set(f"words/{_met[1]}", said[:300])
        raise


def _machine() -> str:
    """Within which a process's number is of that process."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _ended() -> list[str]:
    """The processes that have ended, as far as they are on this machine or have told why."""
    if _met is None:
        return []
    store, own, size = _met
    found = []
    try:
        if own and not restarts():  # the first process serves it, and a store that is gone has torch print its stack
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            socket.create_connection(address, _ASKING.total_seconds()).close()
        store.set_timeout(_ASKING)
        for rank in range(size):
            if rank != own and store.check([f"words/{rank}"]):
                found.append(f"process {rank}, which has failed ({store.get(f'words/{rank}').decode()})")
        for rank in range(0 if found else size):
            if rank != own and store.check([f"process/{rank}"]):
                pid, machine = json.loads(store.get(f"process/{rank}"))
                if machine == _machine() and machine and _is_over(pid):
                    found.append(f"process {rank} (pid {pid}), which has ended")
    except OSError:
        found.append("process 0, which has ended")
    except RuntimeError:
        pass
    return found


def _is_over(pid: int) -> bool:
    """Whether a process has ended, though whoever has started it may not have looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def _of_group(error: Exception) -> bool:
    # gloo raises plain RuntimeErrors.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and bool(_OF_GLOO.search(str(error))))


def group_error(error: Exception, rank: int) -> ConnectionError | None:
    """What to tell of an error of the group's, in place of a traceback; None of other errors.

    Args:
        error: whichever.
        rank: of this process, which is interrupted here if another one has ended by a Ctrl-C of all.
    """
    if not _of_group(error):
        return None
    said = _SOURCE.sub("", " ".join(str(error).split()))
    if not _LOST.search(said):
        return ConnectionError(f"process {rank} cannot work with the others ({said[:400]})")
    until = time.monotonic() + _CTRL_C_SECONDS
    while not (ended := _ended()) and time.monotonic() < until:  # its connections end before it does
        time.sleep(_LOOK_SECONDS)
    time.sleep(max(0.0, until - time.monotonic()))
    lost = " and ".join(ended[:2]) or f"another one, which has ended ({said[:200]})"
    return ConnectionError(f"process {rank} has lost {lost}")


@contextmanager
def launched() -> Iterator[torch.device]:
    """A block in which the processes that a launcher has started are a group; yields this one's device.

    Raises:
        ValueError: what the launcher says of this process cannot be.
        ConnectionError: the processes do not find each other, or one of them has ended.
    """
    on_gpu = torch.cuda.is_available()
    place = own_place()
    if place is None:
        yield torch.device("cuda" if on_gpu else "cpu")
        return
    device = torch.device("cuda", place.local_rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    # As Lightning has it: both launchers tell these, srun by other names.
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = place.address, str(place.port)
    try:
        meet_apart()
        if restarts():
            told_by_first(str)
        dist.init_process_group("nccl" if on_gpu else "gloo", rank=place.rank, world_size=place.world_size)
        with last_words():
            yield device
    except Exception as error:
        if (told := group_error(error, place.rank)) is None:
            raise
        raise told from error
    finally:
        if dist.is_initialized():
            with suppress(RuntimeError):  # what ended the block is what to tell
                dist.destroy_process_group()


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
    place = own_place()
    with together(group):
        if place is None or not place.local_rank:
            work()
