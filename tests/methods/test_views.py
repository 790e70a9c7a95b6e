"""Methods on more than two views, and on views of several sizes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from amcl_fast.callbacks.capture import capture
from amcl_fast.methods import MoCo
from amcl_fast.recipes import FRAMEWORKS
from tests.helpers import literal_views as literal
from tests.helpers.fake_data import FakeDataModule, FakeLoader
from tests.helpers.toy_methods import BATCH, HEADS, KINDS, fit, method, undrawn

pytestmark = pytest.mark.slow

every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)
# Sides of the views, and which of them the others attend to.
CASES = {"3": ([8, 8, 8], [0, 1, 2]), "2 + 2": ([16, 16, 8, 8], [0, 1]), "mixed": ([8, 16, 16], [1, 2])}
CASES["1 + 1"] = ([8, 16], [1])


def views_of(sizes, dtype=torch.float64, n=BATCH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, size, size, generator=generator, dtype=dtype) for size in sizes]


def expected_loss(module, framework, views, targets):
    """View by view and pair by pair; the module is in evaluation mode."""
    criterion, tau = module.criterion, literal.tau_of(module.criterion.temperature)
    beta = 0.0 if criterion.adaptive is None else criterion.beta
    z = [module.embed(view) for view in views]
    if framework == "barlow":
        return literal.over_pairs(lambda q, t: literal.barlow(q, t, tau, criterion.lambd, beta), z, targets)
    if framework == "simsiam":
        p = [module.predictor(of) for of in z]
        return literal.over_pairs(lambda q, t: literal.simsiam(q, t, tau, beta), p, targets, z)
    names = ("top_k", "beta", "include_positive")
    settings = {"form": criterion.negatives, **{name: getattr(criterion, name) for name in names}, "beta": beta}
    if framework in ("simclr", "can"):
        contrast = literal.over_pairs(lambda q, t: literal.simclr(q, t, tau, **settings), z, targets)
        if framework == "simclr":
            return contrast
        seen = [module.look([view], [module.draw(view)])[1:] for view in views]
        masked, noise = (torch.cat(errors).mean() for errors in zip(*seen, strict=True))
        return 0.03 * contrast + 0.67 * masked + 0.3 * noise
    keys = [module.key_encoder(view) for view in views]
    queue = module.queue.keys.mT
    return literal.over_pairs(lambda q, k: literal.moco(q, k, queue, tau, **settings), z, targets, keys)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
@every_framework
def test_loss_is_the_mean_over_pairs(framework, kind, case):
    sizes, targets = CASES[case]
    module, views = undrawn(method(framework, kind)).double().eval(), views_of(sizes)
    learned = {name: p for name, p in module.named_parameters() if p.requires_grad}
    expected = expected_loss(module, framework, views, targets)
    gradients = torch.autograd.grad(expected, learned.values())
    found = module.loss_of_views(views)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)  # the deviations of Barlow Twins have + 1e-9
    for name, a, b in zip(learned, torch.autograd.grad(found, learned.values()), gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9, msg=name)


@every_framework
def test_encoders_run_once_for_every_size_and_heads_once(framework):
    module, seen = method(framework), {"backbone": [], "projector": [], "keys": []}
    # CAN's encoder is given what is visible by its parts.
    encoders = {"backbone": module.backbone.model.patch_embed if framework == "can" else module.backbone}
    encoders["projector"] = module.projector
    if isinstance(module, MoCo):
        encoders["keys"] = module.key_encoder.copies[0]
    for name, encoder in encoders.items():
        encoder.register_forward_hook(lambda _, given, __, name=name: seen[name].append(tuple(given[0].shape)))
    module.loss_of_views(views_of([16, 8, 16, 8, 8], torch.float32))
    assert seen["backbone"] == [(2 * BATCH, 3, 16, 16), (3 * BATCH, 3, 8, 8)]
    assert seen["projector"] == [(5 * BATCH, module.backbone.feature_dim)]
    assert seen["keys"] == ([(2 * BATCH, 3, 16, 16)] if framework == "moco" else [])


@pytest.mark.parametrize("framework", ["moco", "simsiam"])
def test_two_views_reach_the_loss_without_a_copy(framework):
    module, held = method(framework), []
    module.encode_views = lambda images: held.append(module.embed(images)) or held[0]
    module.criterion.register_forward_pre_hook(lambda _, given: held.extend(given))
    module.loss_of_views(views_of([8, 8], torch.float32))
    z, *given = held
    encoded = [t for t in given if t.untyped_storage().data_ptr() == z.untyped_storage().data_ptr()]
    assert [len(t) for t in encoded] == ([2 * BATCH] if framework == "moco" else [BATCH, BATCH])


def test_the_queue_takes_the_keys_of_the_targets_view_by_view():
    module = method("moco").double().eval()
    views = views_of([8, 16, 16])
    before = module.queue.keys.clone()
    module.loss_of_views(views).backward()
    module.on_after_backward()
    keys = F.normalize(module.key_encoder(torch.cat(views[1:])), dim=-1).transpose(0, 1)
    torch.testing.assert_close(module.queue.keys[:, : 2 * BATCH], keys)
    assert torch.equal(module.queue.keys[:, 2 * BATCH :], before[:, 2 * BATCH :])


def test_a_queue_shorter_than_the_keys_of_a_batch_is_refused():
    module = method("moco", queue_size=30)
    module.check_batch(10, target_views=3)
    with pytest.raises(ValueError, match=r"^model\.queue_size must hold .* 4 · 8 with this data\.batch_size, got 30$"):
        module.check_batch(8, target_views=4)


@every_framework
def test_mixed_precision_and_half_precision_views(framework):
    module = method(framework)
    views = [view.half() for view in views_of([16, 16, 8], torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.loss_of_views(views)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([8], r"views must be at least two views of an image, got 1"),
        ([], r"views must be at least two views of an image, got 0"),
    ],
)
def test_fewer_than_two_views_are_refused(views, message):
    for look in (method("simclr").loss_of_views, method("simclr").pairs_of_views):
        with pytest.raises(ValueError, match=f"^{message}$"):
            look(views_of(views, torch.float32))


def test_views_of_other_images_are_refused():
    views = views_of([8, 8], torch.float32)
    with pytest.raises(ValueError, match=r"^views must be of the same images, got 8, 8, 5$"):
        method("simclr").loss_of_views([*views, views[0][:5]])


@every_framework
def test_a_look_is_at_two_views_of_the_largest_size(framework):
    module, views = undrawn(method(framework)), views_of([8, 16, 16, 16], torch.float32)
    found = module.pairs_of_views(views)
    expected = module.pairs_of_views(views[1:3])
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_framework
def test_a_look_at_one_target_is_from_another_view(framework):
    """Anchors are the rows that attend to it: of the small view, whichever comes first."""
    module, (large, small) = undrawn(method(framework)).eval(), views_of([16, 8], torch.float32)
    found = module.pairs_of_views([large, small, small])
    expected = module.pairs_of_views([small, large])
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    if framework == "barlow":
        return
    x = module.embed(small)
    x = module.predictor(x) if framework == "simsiam" else x
    y = module.key_encoder(large) if framework == "moco" else module.embed(large)
    similarity = F.cosine_similarity(x, y, dim=-1).T
    torch.testing.assert_close(found.positive_similarity, similarity.detach(), rtol=1e-4, atol=1e-5)


class Loader(FakeLoader):
    """Views of the given sides."""

    def __init__(self, sizes, steps=2):
        super().__init__(steps, BATCH)
        self.sizes = sizes

    def _draw(self, position):
        return views_of(self.sizes, torch.float32, seed=position), torch.zeros(BATCH)


class Data(FakeDataModule):
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)

    def __init__(self, sizes):
        super().__init__()
        self.sizes, self.loader = sizes, Loader(sizes)

    def train_dataloader(self):
        return Loader(self.sizes)


@pytest.mark.parametrize("sizes", [[8, 8, 8], [16, 16, 8, 8]])
@pytest.mark.parametrize("kind", KINDS)
@every_framework
def test_a_training(framework, kind, sizes):
    module = method(framework, kind)
    before = {name: p.clone() for name, p in module.named_parameters()}
    trainer = fit(module, Data(sizes))
    assert trainer.global_step == 2 and torch.isfinite(trainer.callback_metrics["loss"])
    assert not [name for name, p in module.named_parameters() if torch.equal(p, before[name])]
    assert module.criterion.last_shape == (BATCH, HEADS, 6)
    if isinstance(module, MoCo):
        assert module.queue.written == 2 * sizes.count(max(sizes)) * BATCH


@pytest.mark.parametrize("sizes", [[16, 16, 16], [8, 16, 16, 8], [8, 16]])
def test_pictures_are_of_the_views_that_are_looked_at(sizes):
    module, data = method("simclr"), Data(sizes)
    found = capture(module, data, pairs=8)
    (views, _), *_ = data.train_dataloader()
    shown = [view for view in views if view.shape[-1] == 16][:2] if len(sizes) > 2 else views
    assert found.views.shape == (2, BATCH, 16, 16, 3)
    for pictures, view in zip(found.views, shown, strict=True):
        pixels = view * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1)
        side = 16 // view.shape[-1]  # the small view's pixels are squares
        pixels = pixels.repeat_interleave(side, 2).repeat_interleave(side, 3).clamp(0, 1).permute(0, 2, 3, 1)
        np.testing.assert_allclose(pictures / 255, pixels, atol=0.003)
    pairs = module.train().pairs_of_views(views)
    assert np.array_equal(found.positive_similarity, pairs.positive_similarity.numpy())
