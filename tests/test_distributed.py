"""Losses over several processes, with different data on each, against one process with the global batch."""

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, SimCLRLoss

LOCAL = 3  # rows per process


def losses(kind, world_size, gather):
    torch.manual_seed(0)

    def temperature(dim):
        return 0.2 if kind == "constant" else AdaptiveTemperature(dim, 8, 0.1, 1.0, score="cosine").double()

    return {
        "topk": SimCLRLoss(temperature(6), top_k=4, gather=gather),
        "softmax": SimCLRLoss(temperature(6), negatives="softmax", include_positive=True, gather=gather),
        "barlow": BarlowTwinsLoss(temperature(LOCAL * world_size), gather=gather),
    }


def encoder():
    torch.manual_seed(1)
    return torch.nn.Linear(5, 2 * 6, dtype=torch.float64)


def images(world_size):
    return torch.randn(2, LOCAL * world_size, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def gradients(loss, model, views):
    z1, z2 = (model(v).unflatten(-1, (2, 6)) for v in views)
    value = loss(z1, z2)
    value.backward()
    return value.detach(), [p.grad for p in (*model.parameters(), *loss.parameters())]


def worker(rank, world_size, store, kind, results):
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    torch.set_num_threads(1)
    found = {}
    for name, loss in losses(kind, world_size, gather=True).items():
        # As Lightning and torchrun users do it: encoder and φ averaged by DDP's rule.
        value, grads = gradients(loss, encoder(), images(world_size)[:, rank * LOCAL : (rank + 1) * LOCAL])
        for tensor in (value, *grads):
            dist.all_reduce(tensor)
            tensor /= world_size
        found[name] = (value, grads)
    if rank == 0:
        torch.save(found, results)
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("kind", ["constant", "adaptive"])
def test_processes_equal_one_process(tmp_path, world_size, kind):
    args = (world_size, os.fspath(tmp_path / "store"), kind, os.fspath(tmp_path / "found.pt"))
    mp.spawn(worker, args=args, nprocs=world_size)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, loss in losses(kind, world_size, gather=False).items():
        value, grads = gradients(loss, encoder(), images(world_size))
        torch.testing.assert_close(found[name][0], value, rtol=1e-9, atol=0)
        for a, b in zip(found[name][1], grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
