"""Lightning's DDP with different data and batch sizes in every process, against one process with the global batch."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
from torch import nn

from amcl_fast.callbacks import Checkpoint
from amcl_fast.methods import MoCo
from amcl_fast.models import BackboneConfig, ProjectorConfig
from amcl_fast.optim import OptimizerConfig
from amcl_fast.recipes import FRAMEWORKS
from tests.helpers import running, toy_methods
from tests.helpers.fake_data import FakeDataModule, FakeLoader
from tests.helpers.processes import end_group, spawn, start
from tests.helpers.running import Stop
from tests.helpers.toy_methods import KINDS, fit, method, undrawn

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS = 3
COUNTS = {"two": [4, 4], "three, ragged": [2, 5, 3]}
TWO, SEVERAL = (8, 8), (8, 4, 8)
"""Sides of the views of an image."""
SETTINGS = [(framework, kind, {}, TWO) for framework in FRAMEWORKS for kind in KINDS]
SETTINGS.append(("moco", "amcl", {"shuffle_batch_norm": True}, TWO))
# timm stretches learned positions in float32, in which sums depend on their order.
FIXED = {"can": {"backbone": replace(toy_methods.VIT, positions="fixed")}}
SETTINGS += [(framework, "amcl", FIXED.get(framework, {}), SEVERAL) for framework in FRAMEWORKS]
SETTINGS.append(("moco", "baseline", {"shuffle_batch_norm": True}, SEVERAL))
SETTINGS += [("moco", "perplexity", {}, sizes) for sizes in (TWO, SEVERAL)]
if find_spec("timm"):  # weights that have no gradient, and gradients that come of a second forward pass
    VIT = {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    FROZEN = {"positions": "fixed", "freeze_patch_projection": True, "gradient_checkpointing": True}
    BACKBONE = BackboneConfig("timm/vit_tiny_patch16_224", size=8, arguments=VIT, **FROZEN)
    SETTINGS.append(("moco", "amcl", {"backbone": BACKBONE}, TWO))


class Loader:
    """The part of a process of every global batch."""

    def __init__(self, counts, rank, sizes):
        self.counts, self.rank, self.sizes = counts, rank, sizes

    def __len__(self):
        return STEPS

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            shapes = [(sum(self.counts), 3, size, size) for size in self.sizes]
            views = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
            own = [view.split(self.counts)[self.rank] for view in views]
            yield own, torch.zeros(len(own[0]))


class Shards(FakeDataModule):
    def __init__(self, counts, rank, sizes):
        super().__init__()
        self.loader = Loader(counts, rank, sizes)


def without_batch_norm(module):
    """Batch normalisation would make a row depend on which rows share its process."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, nn.Identity())
        without_batch_norm(child)
    return module


def trained(framework, kind, options, sizes, counts, rank=0, **settings):
    """Weights, queue and last loss of a training of three steps in float64."""
    options = {"optimizer": OptimizerConfig(lr=0.05, weight_decay=0.0), **options}
    module = undrawn(without_batch_norm(method(framework, kind, batch=sum(counts), **options)))
    trainer = fit(module, Shards(counts, rank, sizes), precision="64-true", **settings)
    state = {name: value for name, value in module.state_dict().items() if not name.startswith("queue")}
    if isinstance(module, MoCo):
        # The ring's order is that of the processes; as a set it is the same.
        state["queue"] = module.queue.keys.sort(dim=1).values
        state["written"] = module.queue.get_extra_state()
    return state | {"loss": trainer.callback_metrics["loss"]}


def worker(rank, counts, port, folder):
    start(rank, len(counts), port)
    found = []
    for setting in SETTINGS:
        state = trained(*setting, counts, rank, strategy="ddp", devices=len(counts))
        loss = state["loss"].clone()
        dist.all_reduce(loss)
        found.append(state | {"loss": loss / len(counts)})
    torch.save(found, folder / f"{rank}.pt")
    end_group()


@pytest.mark.parametrize("sizes", COUNTS)
def test_processes_train_as_one(tmp_path, port, sizes):
    counts = COUNTS[sizes]
    spawn(worker, args=(counts, port, tmp_path), nprocs=len(counts))
    by_rank = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(counts))]
    for setting, *found in zip(SETTINGS, *by_rank, strict=True):
        expected = trained(*setting, [sum(counts)])
        for state in found:
            assert state.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11, msg=f"{setting}: {name}")


def resuming_worker(rank, port, folder):
    """A run of two processes in one go, and the same stopped and resumed; each with its own data."""
    start(rank, 2, port)

    def train(name, **settings):
        data = FakeDataModule()
        data.loader = OwnLoader(rank)
        module = method("moco", batch=16, queue_size=72)
        checkpoint = Checkpoint(every_n_steps=3)
        settings = {"strategy": "ddp", "devices": 2, **settings}
        return running.fit(folder / name, module, data, checkpoint=checkpoint, **settings).lightning_module

    whole = train("whole").state_dict()
    with pytest.raises(Stop):
        train("stopped", extra=[Stop.at(7)])
    path = folder / "stopped" / "checkpoints" / "last.ckpt"
    resumed = train("stopped", ckpt_path=str(path)).state_dict()
    assert [name for name, value in whole.items() if not torch.equal(resumed[name], value)] == []
    end_group()


class OwnLoader(FakeLoader):
    """Other batches in every process."""

    def __init__(self, rank):
        super().__init__(steps=4, batch=8)
        self.rank = rank

    def _draw(self, position):
        return super()._draw(2 * position + self.rank)


def test_a_run_resumes_with_as_many_processes_and_with_others(tmp_path, port, capsys):
    spawn(resuming_worker, args=(port, tmp_path), nprocs=2)
    path = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    trainer = running.fit(tmp_path, method("moco", batch=16, queue_size=72), max_epochs=3, ckpt_path=str(path))
    assert "goes on with 1 process(es) instead of 2" in capsys.readouterr().out
    assert trainer.global_step > torch.load(path, weights_only=True)["global_step"]


def shuffling_worker(rank, port, folder):
    start(rank, 2, port)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    module = method("moco", shuffle_batch_norm=True, projector=ProjectorConfig(2, 5, 6, batch_norm=True)).double()
    module.loss_of_views(tuple(images(rank).chunk(2)))
    module.on_after_backward()
    torch.save(module.queue.keys, folder / f"{rank}.pt")
    end_group()


def images(rank):
    """Both views of four images, unlike those of the other process."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64) * (1 + rank)


def test_batch_norm_of_keys_sees_images_of_all_processes(tmp_path, port):
    spawn(shuffling_worker, args=(port, tmp_path), nprocs=2)
    queues = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(*queues)
    encoder = method("moco", projector=ProjectorConfig(2, 5, 6, batch_norm=True)).double().key_encoder
    everyone = torch.cat([images(0), images(1)])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    drawn = torch.cat([encoder(everyone[part]) for part in order.chunk(2)])
    keys = nn.functional.normalize(drawn[order.argsort()], dim=-1).transpose(0, 1)
    torch.testing.assert_close(queues[0][:, :16], keys)
    unshuffled = torch.cat([encoder(images(rank)) for rank in range(2)])
    assert not torch.allclose(nn.functional.normalize(unshuffled, dim=-1).transpose(0, 1), keys, atol=1e-2)
