"""What a process is told by torchrun and srun, and what it makes of it."""

import os
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from amcl_fast import fellows, launch
from amcl_fast.distributed import together
from tests.helpers.processes import end_group, spawn, start

JOB = {
    "SLURM_JOB_ID": "4712345", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "gpu[1-9]",
}  # fmt: skip
STEP = {
    "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "gpu[4-7]", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
}  # fmt: skip
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "host", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture
def told(monkeypatch):
    """Sets the variables of a launcher in place of any that are there."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_", "LOCAL_")):
            monkeypatch.delenv(name)

    def tell(*of, **others):
        for part in (*of, others):
            for name, value in part.items():
                monkeypatch.setenv(name, value)

    return tell


@pytest.mark.parametrize(
    "of",
    [
        {},
        JOB,
        {**JOB, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # a shell in a job
        {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
    ],
)
def test_a_process_of_its_own_is_alone(told, of):
    told(of)
    with fellows.launched() as device, fellows.patient() as group:
        assert device.type in ("cpu", "cuda") and group is None
    assert launch.threads() == len(os.sched_getaffinity(0))
    assert (launch.by_others(), launch.rank()) == (False, 0)


def test_a_step_of_several_tasks_is_what_srun_started(told):
    told(JOB, STEP)
    place = launch.own_place()
    assert (place.rank, place.world_size, place.local_rank, place.local_size) == (5, 7, 1, 2)
    assert (place.address, place.port) == ("gpu4", 15_000 + 2348)
    assert (launch.by_others(), launch.rank()) == (True, 5)
    told(SLURM_NODEID="3", MASTER_ADDR="head", MASTER_PORT="4711")
    place = launch.own_place()
    assert (place.local_size, place.address, place.port) == (1, "head", 4711)
    told(TORCHRUN)  # by torchrun within a step
    place = launch.own_place()
    assert (place.rank, place.world_size, place.local_rank, place.local_size) == (3, 4, 1, 2)
    assert (launch.by_others(), launch.rank()) == (True, 3)


def test_processes_of_lightning_s_own_know_their_rank(told):
    told(LOCAL_RANK="1", WORLD_SIZE="2", NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="4711")
    assert (launch.by_others(), launch.rank()) == (False, 1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SLURM_PROCID", "", "SLURM_PROCID must be set by srun, got ''"),
        ("SLURM_LOCALID", "one", "SLURM_LOCALID must be the whole number that srun sets, got 'one'"),
        ("SLURM_NODEID", "4", "SLURM_STEP_TASKS_PER_NODE must tell the tasks of machine 4"),
        ("SLURM_STEP_TASKS_PER_NODE", "x", "SLURM_STEP_TASKS_PER_NODE must tell the tasks of machine 2, got 'x'"),
        ("MASTER_PORT", "http", "MASTER_PORT must be the whole number"),
    ],
)
def test_what_srun_does_not_tell_is_named(told, name, value, message):
    told(JOB, STEP, **{name: value})
    with pytest.raises(ValueError, match=message), fellows.launched():
        pass


@pytest.mark.parametrize(
    ("of", "allowed", "expected"),
    [
        ({**TORCHRUN}, 16, 8),  # shares what it may use, all of the machine or not
        ({**JOB, **STEP}, 64, 32),  # not bound: all CPUs of the machine
        ({**JOB, **STEP}, 4, 4),  # bound by srun
        ({**JOB, **STEP, "SLURM_CPUS_ON_NODE": "16"}, 16, 8),  # not bound: all CPUs of the job
        ({**JOB, **STEP, "SLURM_CPUS_ON_NODE": "16", "SLURM_CPUS_PER_TASK": "6"}, 16, 6),
        ({**JOB, **STEP, "SLURM_CPUS_PER_TASK": "6"}, 4, 4),
        ({**JOB, **STEP, "SLURM_STEP_TASKS_PER_NODE": "100(x4)"}, 64, 1),
    ],
)
def test_threads_are_those_of_this_process(told, monkeypatch, of, allowed, expected):
    told(of)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert launch.threads() == expected


def leaves(rank, port):
    start(rank, 2, port)
    with (
        pytest.raises(ConnectionError, match=r"process 0 has lost process 1 \(pid \d+\), which has ended"),
        fellows.launched(),
    ):
        os._exit(0) if rank else dist.barrier()


@pytest.mark.distributed
def test_a_process_that_has_lost_another_says_so(port):
    spawn(leaves, args=(port,), nprocs=2)


def test_a_fault_stays_one(told):
    told(TORCHRUN, WORLD_SIZE="1")
    with pytest.raises(RuntimeError, match="a fault"), fellows.launched():
        raise RuntimeError("a fault")


def one_is_late(rank, port):
    start(rank, 2, port)
    dist.init_process_group("gloo", timeout=timedelta(seconds=3))
    done = []
    with fellows.patient() as group:
        fellows.once_a_machine(lambda: (time.sleep(5), done.append(rank)), group)
        with together(group):
            time.sleep(5 * rank)
    del group  # its threads end with the last who knows it
    assert done == [0] * (1 - rank)
    end_group()


@pytest.mark.distributed
def test_they_wait_longer_than_a_collective_may_take(port):
    spawn(one_is_late, args=(port,), nprocs=2)
