"""Losses over several processes, with different data and batch sizes, against one process with the global batch."""

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, LearnedTemperature, PerplexityTemperature, SimCLRLoss
from amcl_fast.distributed import row_counts
from tests.helpers.processes import end_group, spawn

pytestmark = pytest.mark.distributed

EQUAL, RAGGED = "equal", "ragged"
# Rows of each process.
COUNTS = {(2, EQUAL): [3, 3], (3, EQUAL): [3, 3, 3], (2, RAGGED): [4, 2], (3, RAGGED): [0, 5, 3]}


def losses(total, gather):
    torch.manual_seed(0)

    def adaptive(dim):
        return AdaptiveTemperature(dim, 8, 0.1, 1.0, score="cosine").double()

    softmax = {"negatives": "softmax", "include_positive": True, "gather": gather}
    return {
        "top-k, constant": SimCLRLoss(0.2, top_k=4, gather=gather),
        "top-k, adaptive": SimCLRLoss(adaptive(6), top_k=4, gather=gather),
        "softmax, constant": SimCLRLoss(0.2, **softmax),
        "softmax, adaptive": SimCLRLoss(adaptive(6), **softmax),
        "softmax, learned": SimCLRLoss(LearnedTemperature(0.2).double(), **softmax),
        "hardest, perplexity": SimCLRLoss(
            PerplexityTemperature([0.1, 0.3], 0.6), negatives="topk_softmax", top_k=4, gather=gather
        ),
        "softmax, perplexity": SimCLRLoss(PerplexityTemperature(), **softmax),
        "rows, robust": SimCLRLoss(
            AdaptiveTemperature(6, 8, 0.1, 1.0, share="row", objective="dro", rho=0.5).double(),
            negatives="softmax",
            gather=gather,
        ),
        "Barlow Twins, constant": BarlowTwinsLoss(0.2, gather=gather),
        "Barlow Twins, adaptive": BarlowTwinsLoss(adaptive(total), gather=gather),
    }


def encoder():
    torch.manual_seed(1)
    return torch.nn.Linear(5, 2 * 6, dtype=torch.float64)


# Number of views, and which of them the others attend to; None: a call with two.
VIEWS = {"a call": (2, None), "2 + 2 views": (4, [0, 1]), "2 + 6 views": (8, [0, 1])}
VIEWS |= {f"{count} views": (count, [*range(count)]) for count in (3, 4, 8)}


def images(total, views):
    return torch.randn(views, total, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def gradients(loss, model, views, targets):
    z = [model(v).unflatten(-1, (2, 6)) for v in views]
    value = loss(*z) if targets is None else loss.of_views(z, targets)
    value.backward()
    return value.detach(), [p.grad for p in (*model.parameters(), *loss.parameters())]


def start(rank, world_size, store):
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=300)
    )
    torch.set_num_threads(1)


def worker(rank, counts, store, results):
    start(rank, len(counts), store)
    found = {}
    for case, (views, targets) in VIEWS.items():
        own = images(sum(counts), views).split(counts, dim=1)[rank]
        for name, loss in losses(sum(counts), gather=True).items():
            # As Lightning and torchrun users do it: encoder and φ averaged by DDP's rule.
            value, grads = gradients(loss, encoder(), own, targets)
            for tensor in (value, *grads):
                dist.all_reduce(tensor)
                tensor /= len(counts)
            found[name, case] = (value, grads)
    if rank == 0:
        torch.save(found, results)
    end_group()


@pytest.mark.parametrize("sizes", [EQUAL, RAGGED])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_equal_one_process(tmp_path, world_size, sizes):
    counts = COUNTS[world_size, sizes]
    args = (counts, os.fspath(tmp_path / "store"), os.fspath(tmp_path / "found.pt"))
    spawn(worker, args=args, nprocs=world_size)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for case, (views, targets) in VIEWS.items():
        for name, loss in losses(sum(counts), gather=False).items():
            value, grads = gradients(loss, encoder(), images(sum(counts), views), targets)
            torch.testing.assert_close(found[name, case][0], value, rtol=1e-9, atol=0)
            for a, b in zip(found[name, case][1], grads, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def disagreeing(rank, world_size, store):
    start(rank, world_size, store)
    with pytest.raises(ValueError, match=r"agree on heads C and width d, .* \[\[2, 3, 4\], \[2, 3, 5\]\]"):
        row_counts(torch.zeros(2, 3, 4 + rank))
    end_group()


def test_disagreement_is_an_error_and_no_hang(tmp_path):
    spawn(disagreeing, args=(2, os.fspath(tmp_path / "store")), nprocs=2)
