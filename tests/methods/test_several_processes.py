"""Lightning's DDP with different data and batch sizes in every process, against one process with the global batch."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fake_data import FakeDataModule
from tiny import FRAMEWORKS, KINDS, fit, method
from torch import nn

from amcl_fast.methods import MoCo
from amcl_fast.optim import OptimizerConfig

STEPS = 3
COUNTS = {"two": [4, 4], "three, ragged": [2, 5, 3]}
SETTINGS = [(framework, kind, {}) for framework in FRAMEWORKS for kind in KINDS]
SETTINGS.append(("moco", "amcl", {"shuffle_batch_norm": True}))


class Loader:
    """The part of a process of every global batch."""

    def __init__(self, counts, rank):
        self.counts, self.rank = counts, rank

    def __len__(self):
        return STEPS

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            views = torch.randn(2, sum(self.counts), 3, 8, 8, generator=generator, dtype=torch.float64)
            first, second = views.split(self.counts, dim=1)[self.rank]
            yield (first, second), torch.zeros(len(first))


class Shards(FakeDataModule):
    def __init__(self, counts, rank):
        super().__init__()
        self.loader = Loader(counts, rank)


def without_batch_norm(module):
    """Batch normalisation would make a row depend on which rows share its process."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, nn.Identity())
        without_batch_norm(child)
    return module


def trained(framework, kind, options, counts, rank=0, **settings):
    """Weights, queue and last loss of a training of three steps in float64."""
    options = {"optimizer": OptimizerConfig(lr=0.05, weight_decay=0.0), **options}
    module = without_batch_norm(method(framework, kind, batch=sum(counts), **options))
    trainer = fit(module, Shards(counts, rank), precision="64-true", **settings)
    state = {name: value for name, value in module.state_dict().items() if not name.startswith("queue")}
    if isinstance(module, MoCo):
        # The ring's order is that of the processes; as a set it is the same.
        state["queue"] = module.queue.keys.sort(dim=1).values
        state["written"] = module.queue.get_extra_state()
    return state | {"loss": trainer.callback_metrics["loss"]}


def worker(rank, counts, port, folder):
    torch.set_num_threads(1)
    # As torchrun does it.
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(counts), "LOCAL_WORLD_SIZE": len(counts)}
    variables |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in variables.items()})
    found = []
    for framework, kind, options in SETTINGS:
        state = trained(framework, kind, options, counts, rank, strategy="ddp", devices=len(counts))
        loss = state["loss"].clone()
        dist.all_reduce(loss)
        found.append(state | {"loss": loss / len(counts)})
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", COUNTS)
def test_processes_train_as_one(tmp_path, sizes):
    counts = COUNTS[sizes]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(counts, port, tmp_path), nprocs=len(counts))
    by_rank = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(counts))]
    for setting, *found in zip(SETTINGS, *by_rank, strict=True):
        expected = trained(*setting, [sum(counts)])
        for state in found:
            assert state.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11, msg=f"{setting}: {name}")
