"""Processes over gloo: that a group's threads end with it, for one left over may abort the interpreter at its end."""

import atexit
import contextlib
import gc
import sys
from pathlib import Path

import lightning as L
import torch.distributed as dist


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
