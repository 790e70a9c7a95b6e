"""A GPU that is not there, for the tests of `benchmarks.gpu`: what touches the device is replaced.

Cases are the size of a test and run on the CPU, by the reference; times are made up. As a script it is the command
itself on that GPU, every item of which takes so many seconds:

    python -m tests.helpers.benchmarks.pretended SECONDS [arguments of benchmarks.gpu]
"""

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace

import torch
from torch import nn

from amcl_fast.kernels import tuning
from benchmarks import cases, peers, results
from benchmarks.gpu import checks, command, device, parts, run, sweep, workers

NAME = "NVIDIA Stand-in 1"
MACHINE = {"device": "cuda", "name": NAME, "cores": 2, "memory_gib": 8.0}
COMMIT = "0123456789abcdef"
KERNELS = [*sorted({name for one in sweep.SWEEPS for name in one.kernels}), "void at::native::copy<4>(int)"]
X = torch.zeros(1)


def small(case):
    """A case at a size for tests."""
    settings = case.settings | ({"top_k": 3} if case.settings.get("top_k") else {})
    rows = 12 if case.operator in ("contrast", "simclr", "moco", "infonce") else 6
    few = min(case.candidates, 20)
    return replace(case, heads=min(case.heads, 2), rows=rows, candidates=few, width=8, settings=settings)


class Clock:
    """Instead of the module time: monotonic() goes on only where `take` says so, in forked processes too."""

    def __init__(self):
        self._now = multiprocessing.get_context("fork").Value("d", 1000.0)

    def install(self, set_):
        """Put it where a run and its processes look at the time."""
        for module in (command, run, sweep, workers):
            set_(module, "time", self)

    def __getattr__(self, name):
        return getattr(time, name)

    def monotonic(self):
        return self._now.value

    def take(self, seconds):
        with self._now.get_lock():
            self._now.value += seconds


class Launchers:
    """What the launchers would ask their tables for, and how long kernels take with what they are given.

    The launchers' choice is 10 µs; four warps are twice as fast, one warp ten times, but then results are wrong; tiles
    of 128 × 128 do not run.
    """

    us = 10.0
    wrong = False

    @classmethod
    def step_of_case(cls, case, run, of=sweep.step_of_case):
        """A step that asks every table first."""
        step = of(case, run)

        def asking():
            cls.us, cls.wrong = 10.0, False
            for table in sorted({one.table for one in sweep.SWEEPS}):
                key = f"d={case.width} {'adaptive' if case.adaptive else 'constant'}"
                key += ", queue" if case.candidates else ""
                chosen = tuning.chosen(table, key, {"num_warps": 8}, X)
                if chosen.get("M") == chosen.get("N") == 128:
                    raise RuntimeError("out of resources: registers")
                cls.us = min(cls.us, {4: 5.0, 1: 1.0}.get(chosen["num_warps"], 10.0))
                cls.wrong = cls.wrong or chosen["num_warps"] == 1
            return [t if t is None or not cls.wrong else 1.1 * t for t in step()]

        return asking

    @classmethod
    def kernels(cls, step):
        """A profile."""
        cls.us = 10.0
        step()
        return [{"name": name, "calls": 2.0, "us": cls.us} for name in KERNELS]


def wall(step, seconds=0.0, group=None):
    step()
    return 1.0


def install(set_, seconds=0.0):
    """Put the stand-ins in place by `set_(object, name, value)`; items take `seconds`."""
    for name, value in {
        "KIND": "cpu", "BACKEND": "reference", "problem": lambda: None, "capability": lambda: [9, 0], "sized": small,
        "settle": lambda: None, "release": lambda: None, "kernels": Launchers.kernels, "wall": wall,
        "captured": lambda step: step, "graphed": lambda module, inputs: module, "peak_gib": lambda step: 0.5,
        "copy_bandwidth": lambda: 1e12, "ceiling_size": lambda: 16,
        "training_size": lambda: (3, 8),
        "encoder": lambda width: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width)),
    }.items():  # fmt: skip
        assert hasattr(device, name)
        set_(device, name, value)
    set_(torch, "compile", lambda function, dynamic: function)
    set_(sweep, "step_of_case", Launchers.step_of_case)
    # Not even the reference keeps within the tolerance of bfloat16 where it rounds every step to it.
    set_(checks, "DTYPES", 3 * (torch.float32,))
    set_(cases, "DTYPES", dict.fromkeys(("cpu", "cuda"), torch.float32))
    # Its kind is called cpu.
    set_(peers, "PEERS", {name: replace(peer, devices=("cpu", "cuda")) for name, peer in peers.PEERS.items()})
    set_(results, "machine", lambda kind: MACHINE)
    set_(results, "_output", lambda *command: {"rev-parse": COMMIT, "status": ""}.get(command[1], "580.1"))
    set_(results, "_QUIET", 1e6)
    set_(tuning, "device_name", lambda x: NAME)
    # A GPU's processes are spawned; these have what the test has replaced.
    set_(workers, "METHOD", "fork")
    set_(parts, "WORK", parts.WORK._replace(perform=lambda *task: perform(seconds, *task)))
    set_(run, "WORK", parts.WORK)


def perform(seconds, *task):
    """An item as it is, after a while, on one thread: a forked process cannot use the pool of its parent."""
    torch.set_num_threads(1)
    time.sleep(seconds)
    yield from parts.perform(*task)


class Faults:
    """What goes wrong: by part its item, and how; what hangs takes five seconds of a clock first."""

    def __init__(self, of, clock=None):
        self._of, self._clock, self._poisoned = of, clock, False

    def perform(self, part, item, place, until):
        """`Work.perform` with what goes wrong in it."""
        torch.set_num_threads(1)
        at, fault = self._of[part]
        if item == at:
            if fault == "raises":
                raise ValueError("no such tile\nand more")
            if fault == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "ends":
                os._exit(3)
            if fault == "hangs":
                self._clock.take(5.0)
                time.sleep(60)
            if fault == "poisons":
                self._poisoned = True
        if self._poisoned:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        yield from parts.perform(part, item, place, until)

    def unusable(self):
        """`Work.unusable`."""
        return self._poisoned


if __name__ == "__main__":
    install(setattr, float(sys.argv[1]))
    command.main(sys.argv[2:])
