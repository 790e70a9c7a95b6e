"""FSDP of modules with a loss, over two processes: the weights of a training in one process on the global batch."""

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard, register_fsdp_forward_method

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss
from tests.helpers.processes import spawn

pytestmark = pytest.mark.distributed

N, D, RANKS, STEPS = 8, 5, 2, 2
FRAMEWORKS = ["simclr", "moco", "simsiam", "barlow"]
CASES = [*(("whole", framework) for framework in FRAMEWORKS), ("loss apart", "barlow"), ("FSDP1", "simclr")]
CASES.append(("whole", "rows"))  # SimCLR with one τ for an anchor


class Model(nn.Module):
    """An encoder with a loss; three views or two."""

    def __init__(self, framework, gather):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(D, 2 * 6)
        temperature = AdaptiveTemperature(N if framework == "barlow" else 6, 8, 0.1, 1.0, score="cosine")
        if framework == "rows":
            temperature = AdaptiveTemperature(6, 8, 0.1, 1.0, share="row")
        settings = {"gather": gather} if framework in ("simclr", "rows", "barlow") else {}
        if framework in ("simclr", "rows", "moco"):
            settings |= {"negatives": "softmax", "include_positive": True}
        classes = {
            "rows": SimCLRLoss,
            "simclr": SimCLRLoss,
            "moco": MoCoLoss,
            "simsiam": SimSiamLoss,
            "barlow": BarlowTwinsLoss,
        }
        self.criterion = classes[framework](temperature, **settings)
        self.framework = framework
        self.double()

    def forward(self, images, more):
        z = [self.encoder(view).unflatten(-1, (2, 6)) for view in images]
        queue = F.normalize(torch.arange(60.0, dtype=torch.float64).reshape(2, 6, 5).sin(), dim=1)
        if self.framework == "moco":
            return self.criterion.of_views(z, z, queue) if more else self.criterion(*z[:2], queue)
        if self.framework == "simsiam":
            return self.criterion.of_views(z, z) if more else self.criterion(z[0], z[1], z[1], z[0])
        return self.criterion.of_views(z) if more else self.criterion(*z[:2])


def train(model, rank, ranks, more):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.randn(3, N, D, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        model(images.chunk(ranks, dim=1)[rank], more).backward()
        optimizer.step()


def sharded(framework, how, mesh):
    model = Model(framework, gather=True)
    if how == "FSDP1":
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    if how == "loss apart":
        fully_shard(model.criterion, mesh=mesh)
        register_fsdp_forward_method(model.criterion, "of_views")
    return fully_shard(model, mesh=mesh)


def trained(rank):
    """The whole state of every training, and of a model that took an old checkpoint, before it was sharded or after."""
    mesh, whole = init_device_mesh("cpu", (RANKS,)), StateDictOptions(full_state_dict=True)
    found = {}
    for how, framework in CASES:
        model = sharded(framework, how, mesh)
        train(model, rank, RANKS, more=how != "FSDP1")
        found[how, framework] = get_model_state_dict(model, options=whole)
    old = Model("simclr", gather=True).state_dict()
    old["criterion.temperature.offset"] = torch.tensor(0.5, dtype=torch.float64)  # as it was once
    before, after = Model("simclr", gather=True), sharded("simclr", "whole", mesh)
    before.load_state_dict(old)
    set_model_state_dict(after, old, options=whole)
    for when, model in (("before", fully_shard(before, mesh=mesh)), ("after", after)):
        found["old", when] = get_model_state_dict(model, options=whole)
    return found


def worker(rank, store, results):
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=300)
    )
    torch.set_num_threads(1)
    found = trained(rank)
    if rank == 0:
        torch.save(found, results)
    dist.destroy_process_group()
    os._exit(0)  # what DTensor keeps of the group holds threads of gloo, which may abort an interpreter at its end


def test_sharded_trainings_are_that_of_one_process(tmp_path):
    spawn(worker, args=(os.fspath(tmp_path / "store"), os.fspath(tmp_path / "found.pt")), nprocs=RANKS)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for how, framework in CASES:
        model = Model(framework, gather=False)
        start = {name: p.clone() for name, p in model.state_dict().items()}
        train(model, 0, 1, more=how != "FSDP1")
        for name, expected in model.state_dict().items():
            assert not torch.equal(expected, start[name])
            torch.testing.assert_close(found[how, framework][name], expected, rtol=1e-9, atol=1e-12)
    for name in ("before", "after"):
        assert found["old", name]["criterion.temperature.offset"].tolist() == [0.5]


def test_the_state_of_an_offset_is_taken_with_a_dimension_and_without():
    new = AdaptiveTemperature(4, score="cosine", offset=0.5).state_dict()
    assert new["offset"].shape == (1,)
    for given in (new, new | {"offset": new["offset"].reshape(())}):
        taken = AdaptiveTemperature(4, score="cosine")
        taken.load_state_dict(given)
        assert taken.offset.tolist() == [0.5] and taken.offset.shape == (1,)
