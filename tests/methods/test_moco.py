import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from amcl_fast.optim import OptimizerConfig
from tests.helpers.fake_data import FakeDataModule
from tests.helpers.toy_methods import fit, method


def views(n=8, seed=1):
    return tuple(torch.randn(2, n, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


@pytest.mark.parametrize("kind", ["baseline", "amcl"])
def test_both_views_are_query_and_key(kind):
    """The mean of the loss of q1 with k2 and the loss of q2 with k1."""
    module = method("moco", kind).double().eval()
    first, second = views()
    q1, q2 = module.embed(first), module.embed(second)
    k1, k2 = module.key_encoder(first), module.key_encoder(second)
    queue = module.queue.keys.mT
    expected = (module.criterion(q1, k2, queue) + module.criterion(q2, k1, queue)) / 2
    torch.testing.assert_close(module.loss_of_views((first, second)), expected)


@pytest.mark.parametrize("sides", [(8, 8), (8, 8, 8), (16, 8)])
def test_one_image_of_a_process_has_the_negatives_of_the_queue(sides):
    module = method("moco").double().eval()
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alone = [module.loss_of_views([image[None, :, :side, :side] for side in sides]) for image in images]
    assert module.criterion.last_shape == (1, 2, 6)
    together = module.loss_of_views([images[..., :side, :side] for side in sides])
    torch.testing.assert_close(torch.stack(alone).mean(), together)
    assert module.criterion.last_shape == (5, 2, 6)


def test_keys_of_both_views_follow_the_backward_pass():
    module = method("moco").double().eval()
    first, second = views()
    before = module.queue.keys.clone()
    loss = module.loss_of_views((first, second))
    assert torch.equal(module.queue.keys, before)
    loss.backward()
    module.on_after_backward()
    keys = F.normalize(module.key_encoder(torch.cat([first, second])), dim=-1).transpose(0, 1)
    torch.testing.assert_close(module.queue.keys[:, :16], keys)
    assert torch.equal(module.queue.keys[:, 16:], before[:, 16:])


@pytest.mark.parametrize("kind", ["baseline", "amcl"])
def test_autograd_notices_keys_that_come_too_early(kind):
    module = method("moco", kind)
    loss = module.loss_of_views(tuple(view.float() for view in views()))
    module.on_after_backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_keys_carry_no_gradient():
    module = method("moco").double()
    module.loss_of_views(views()).backward()
    assert all(p.grad is None for p in module.key_encoder.parameters())
    assert all(p.grad is not None for p in (*module.backbone.parameters(), *module.criterion.parameters()))


def test_the_momentum_encoder_follows_every_optimiser_step():
    """Also with accumulation: as often as the weights move."""
    module = method("moco", momentum=0.75, optimizer=OptimizerConfig(lr=0.1))
    expected = [p.detach().clone() for p in module.projector.parameters()]
    seen = []

    class Data(FakeDataModule):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            seen.append([p.detach().clone() for p in module.projector.parameters()])
            return batch

    fit(module, Data(steps=4), accumulate_grad_batches=2)
    seen.append([p.detach() for p in module.projector.parameters()])
    for weights in (seen[2], seen[4]):  # after the first and the second optimiser step
        expected = [0.75 * old + 0.25 * new for old, new in zip(expected, weights, strict=True)]
    copies = module.key_encoder.copies[1]
    for (name, found), value in zip(copies.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found, value, msg=name)


def test_a_momentum_that_rises_is_moco_v3_s():
    """Its main_moco.py, at every update; the last one takes nothing of the encoder."""
    found = []

    class Averages(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            found.append(module.key_encoder.momentum)

    module = method("moco", momentum=0.9, momentum_schedule="cosine")
    fit(module, FakeDataModule(steps=4), max_epochs=2, accumulate_grad_batches=2, callbacks=[Averages()])
    v3 = [1.0 - 0.5 * (1.0 + math.cos(math.pi * step / 4)) * (1.0 - 0.9) for step in range(1, 5)]
    assert found[1::2] == pytest.approx(v3) and found[-1] == 1
    with pytest.raises(ValueError, match="momentum_schedule must be 'constant' or 'cosine', got 'linear'"):
        method("moco", momentum_schedule="linear")


def test_statistics_of_the_momentum_encoder_are_its_own():
    module = method("moco", momentum=1.0)
    fit(module)
    own, copied = (encoder.bn1.running_mean for encoder in (module.backbone, module.key_encoder.copies[0]))
    assert copied.abs().sum() > 0 and not torch.equal(own, copied)


def test_a_queue_shorter_than_a_batch_is_refused():
    module = method("moco", queue_size=30)
    module.check_batch(15)
    with pytest.raises(ValueError, match=r"queue_size.*2 · 16.*got 30"):
        module.check_batch(16)
