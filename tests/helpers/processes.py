"""Processes over gloo: that a group's threads end with it, for one left over may abort the interpreter at its end."""

import atexit
import contextlib
import gc
import multiprocessing
import os
import sys
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def spawn(function, args, nprocs):
    """`mp.spawn`, by forks of a process that has imported the package and done nothing else, one a session."""
    multiprocessing.set_forkserver_preload(["amcl_fast.methods", "amcl_fast.evaluate", "amcl_fast.callbacks"])
    given = (function, dict(os.environ), args)
    mp.start_processes(_run, args=given, nprocs=nprocs, start_method="forkserver")


def _run(rank, function, environment, args):
    # That process has the environment of the session's first such test.
    os.environ.clear()
    os.environ.update(environment)
    function(rank, *args)


def start(rank, processes, port):
    """Let Lightning find this process as one that torchrun has started; `port` is that of the fixture."""
    torch.set_num_threads(1)
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    variables |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    variables["TORCHELASTIC_USE_AGENT_STORE"] = True
    os.environ.update({name: str(value) for name, value in variables.items()})


def gloo_threads():
    names = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended since
            names.append((thread / "comm").read_text().strip())
    return [name for name in names if "gloo" in name]


def end_group():
    """End this process's group, and see that its threads end."""
    assert gloo_threads()
    dist.destroy_process_group()
    gc.collect()
    assert gloo_threads() == []


class TellThreads(L.Callback):
    """Counts the threads of gloo in training and at the process's end, on stderr."""

    def on_train_end(self, *_: object) -> None:
        training = len(gloo_threads())
        atexit.register(
            lambda: print(f"gloo threads in training {training}, at the end {len(gloo_threads())}", file=sys.stderr)
        )
