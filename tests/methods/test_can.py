"""CAN against a literal evaluation, and what its losses reach."""

import itertools
import math

import pytest
import torch

from amcl_fast.methods import CAN
from amcl_fast.methods.can import Drawn, LossWeights
from amcl_fast.models import BackboneConfig
from amcl_fast.models.decoder import DecoderConfig
from amcl_fast.models.masked import Masks
from tests.helpers.fake_data import FakeDataModule
from tests.helpers.toy_methods import HEADS, VIT, drawn_of_content, fit, method, undrawn

N, PATCH, GRID = 3, 2, 4


def views(count=2):
    return tuple(torch.randn(count, N, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


# What follows is written from the paper's Section 3 and MAE's, an image, a token and a head of attention at a time. It
# knows where the modules keep their weights and calls none of ours.


def norm(layer, x):
    return layer.weight * (x - x.mean()) / (x.var(correction=0) + layer.eps).sqrt() + layer.bias


def linear(layer, x):
    return layer.weight @ x + layer.bias


def transformer(block, tokens):
    heads = block.attn.num_heads
    width = len(tokens[0]) // heads
    qkv = [linear(block.attn.qkv, norm(block.norm1, x)).reshape(3, heads, width) for x in tokens]
    out = []
    for (query, _, _), x in zip(qkv, tokens, strict=True):
        read = []
        for head in range(heads):
            scores = torch.stack([query[head] @ key[head] / math.sqrt(width) for _, key, _ in qkv])
            share = scores.exp() / scores.exp().sum()
            read.append(sum(s * value[head] for s, (_, _, value) in zip(share, qkv, strict=True)))
        x = x + linear(block.attn.proj, torch.cat(read))
        hidden = linear(block.mlp.fc1, norm(block.norm2, x))
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        out.append(x + linear(block.mlp.fc2, hidden))
    return out


def pixels(image, place):
    top, left = PATCH * (place // GRID), PATCH * (place % GRID)
    return image[:, top : top + PATCH, left : left + PATCH].flatten()


def literal_image(module, image, noise, level, visible):
    """(pooled features, error of the masked patches, error of the noise) of one image."""
    model, decoder = module.backbone.model, module.decoder
    tokens = [model.cls_token[0, 0] + model.pos_embed[0, 0]]
    for place in visible:
        embedded = model.patch_embed.proj.weight.flatten(1) @ pixels(image + noise, place) + model.patch_embed.proj.bias
        tokens.append(embedded + model.pos_embed[0, 1 + place])
    for block in model.blocks:
        tokens = transformer(block, tokens)
    tokens = [norm(model.norm, x) for x in tokens]
    features = sum(tokens[1:]) / len(visible)

    angles = [level / 10000 ** (i / 63) for i in range(64)]
    told = torch.stack([a.sin() for a in angles] + [a.cos() for a in angles])
    told = linear(decoder.level[2], linear(decoder.level[0], told).clamp_min(0))
    width = len(decoder.mask_token[0, 0])
    rows = [linear(decoder.input, tokens[0] + told)]
    for place in range(GRID**2):
        known = place in visible
        row = linear(decoder.input, tokens[1 + visible.index(place)] + told) if known else decoder.mask_token[0, 0]
        position = []
        for value in (place // GRID, place % GRID):
            turns = [value / 10000 ** (i / (width // 4)) for i in range(width // 4)]
            position += [math.sin(t) for t in turns] + [math.cos(t) for t in turns]
        rows.append(row + torch.tensor(position, dtype=row.dtype))
    for block in decoder.blocks:
        rows = transformer(block, rows)
    predicted = [linear(decoder.output, norm(decoder.norm, row)) for row in rows[1:]]

    masked, of_noise = [], []
    for place in range(GRID**2):
        if place in visible:
            of_noise.append(((predicted[place] - pixels(noise, place)) ** 2).mean())
        else:
            target = pixels(image, place)
            if module.normalise_pixels:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            masked.append(((predicted[place] - target) ** 2).mean())
    return features, sum(masked) / len(masked), sum(of_noise) / len(of_noise)


def literal_contrast(module, features):
    """NT-Xent, or AMCL over all negatives with the positive (Eq. 2.4), of features of both views, summed over heads."""
    projector, criterion = module.projector, module.criterion
    total = 0.0
    for head in range(HEADS):
        z = []
        for x in features:
            hidden = linear(projector.input, x).clamp_min(0).reshape(HEADS, -1)[head]
            row = hidden @ projector.output.weight[head] + projector.output.bias[head, 0]
            z.append(row / row.norm())

        def logit(a, b):
            if criterion.adaptive is None:
                return a @ b / criterion.temperature
            tau = criterion.adaptive(a[None], b[None])[0, 0]
            return a @ b / tau - criterion.beta * (len(a) / 2 * tau.log() + 1 / tau)

        for i in range(2 * N):
            logits = torch.stack([logit(z[i], z[j]) for j in range(2 * N) if j != i])
            total = total + logits.exp().sum().log() - logit(z[i], z[(i + N) % (2 * N)])
    return total / (2 * N)


@pytest.mark.parametrize(("kind", "normalise_pixels", "count"), [("baseline", True, 3), ("amcl", False, 2)])
def test_loss_and_gradients_are_the_literal_ones(kind, normalise_pixels, count):
    module = method("can", kind, normalise_pixels=normalise_pixels).double()
    module.criterion.negatives, module.criterion.top_k, module.criterion.include_positive = "softmax", None, True
    undrawn(module)
    images = torch.cat(views(count))
    (visible, _), noise, level = drawn_of_content(images)
    seen = [literal_image(module, *of) for of in zip(images, noise, level, visible.tolist(), strict=True)]
    features, masked, of_noise = zip(*seen, strict=True)
    of_view = [features[N * view : N * (view + 1)] for view in range(count)]
    pairs = [literal_contrast(module, a + b) for a, b in itertools.combinations(of_view, 2)]
    contrast = sum(pairs) / len(pairs)
    reconstruction, noises = sum(masked) / len(masked), sum(of_noise) / len(of_noise)
    expected = 0.03 * contrast + 0.67 * reconstruction + 0.3 * noises

    loss = module.loss_of_views(views(count))
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(expected.item(), rel=1e-10)
    found = {"loss_contrast": contrast, "loss_reconstruction": reconstruction, "loss_noise": noises}
    assert {name: part.item() for name, part in module.parts.items()} == pytest.approx(
        {name: part.item() for name, part in found.items()}, rel=1e-10
    )
    names, parameters = zip(*module.named_parameters(), strict=True)
    grads = [torch.autograd.grad(value, parameters) for value in (loss, expected)]
    for name, a, b in zip(names, *grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)


def test_views_of_several_sizes_are_masked_each_and_all_count():
    module = undrawn(method("can").double())
    large = views()
    small = torch.randn(N, 3, 4, 4, dtype=torch.float64)
    module.loss_of_views((large[0], small, large[1]))
    drawn = [drawn_of_content(images) for images in (torch.cat(large), small)]
    assert [of.masks.masked.shape for of in drawn] == [(2 * N, 8), (N, 2)]
    z, masked, noise = module.look([torch.cat(large), small], drawn)
    a, b, c = z.chunk(3)
    expected = [module.criterion.of_views([a, c, b], targets=[0, 2]), masked.mean(), noise.mean()]
    assert [part.item() for part in module.parts.values()] == pytest.approx([part.item() for part in expected])


@pytest.mark.parametrize(
    ("weights", "reached", "unreached"),
    [
        ((1, 0, 0), ["backbone", "projector"], ["decoder"]),
        ((0, 1, 0), ["backbone", "decoder"], ["projector"]),
        ((0, 0, 1), ["backbone", "decoder"], ["projector"]),
    ],
)
def test_each_loss_reaches_what_it_is_made_of(weights, reached, unreached):
    module = method("can", weights=LossWeights(*weights))
    module.loss_of_views(views()).backward()
    moved = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    for name, _ in module.named_parameters():
        part = name.partition(".")[0]
        assert part not in reached or name in moved, name
        assert part not in unreached or name not in moved, name


def test_what_is_masked_is_a_target_and_nothing_else():
    """So the loss of the noise, and the features, do not depend on it."""
    module = method("can").double()
    images, drawn = torch.cat(views()).requires_grad_(), drawn_of_content(torch.cat(views()))
    projections, _, noise = module.look([images], [drawn])
    hidden = torch.zeros(2 * N, 16).scatter(1, drawn.masks.masked, 1).reshape(-1, 4, 4)
    hidden = hidden.repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1).bool().expand_as(images)
    for value in (noise, projections):
        (of_pixels,) = torch.autograd.grad(value.square().sum(), images, retain_graph=True)
        assert not of_pixels[hidden].any() and of_pixels[~hidden].any()


def test_noise_and_masks_are_of_each_image_and_the_level_is_uniform():
    module = method("can", noise_std=0.2)
    masks, noise, level = module.draw(torch.zeros(4000, 3, 8, 8))
    assert masks.visible.shape == masks.masked.shape == (4000, 8)
    assert 0 <= level.min() < 0.001 and 0.199 < level.max() <= 0.2
    assert level.mean().item() == pytest.approx(0.1, abs=0.005)
    std = noise.flatten(1).std(1)
    assert (std / level).mean().item() == pytest.approx(1.0, abs=0.01)
    assert torch.corrcoef(torch.stack([std, level]))[0, 1] > 0.99


def test_the_same_masks_in_every_precision():
    drawn = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.manual_seed(3)
        drawn.append(method("can").draw(torch.zeros(8, 3, 8, 8, dtype=dtype)))
        torch.manual_seed(3)
    assert [of.noise.dtype for of in drawn] == [torch.float32, torch.float64, torch.float32]
    for other in drawn[1:]:
        assert torch.equal(other.masks.visible, drawn[0].masks.visible)


def test_features_of_an_evaluation_are_what_is_contrasted():
    """With all but nothing masked and no noise, the heads read what the encoder gives an evaluation."""
    module = method("can", noise_std=0.0).eval()
    images = torch.cat(views()).float()
    read = []
    module.projector.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    everything = Masks(torch.arange(16).expand(2 * N, -1), torch.zeros(2 * N, 1, dtype=torch.int64))
    module.look([images], [Drawn(everything, torch.zeros_like(images), torch.zeros(2 * N))])
    assert torch.equal(read[0], module.backbone(images))


def test_the_losses_are_logged():
    trainer = fit(method("can"), FakeDataModule(steps=1))
    logged = trainer.callback_metrics
    weighted = [(0.03, "loss_contrast"), (0.67, "loss_reconstruction"), (0.3, "loss_noise")]
    assert logged["loss"].item() == pytest.approx(sum(w * logged[name].item() for w, name in weighted), rel=1e-6)


def test_pictures_hide_what_is_masked_and_keep_what_is_seen():
    module = method("can")
    torch.manual_seed(5)
    shown = module.pictures_of_views(views())
    torch.manual_seed(5)
    images = views()[0].float()
    masks, noise, _ = module.draw(images)
    assert {picture.shape for picture in shown.values()} == {(N, 3, 8, 8)}
    for image in range(N):
        for place in range(16):
            seen = place in masks.visible[image]
            noisy = pixels(images[image] + noise[image], place)
            assert torch.equal(pixels(shown["what is seen"][image], place), noisy if seen else 0 * noisy)
            assert torch.equal(pixels(shown["reconstruction"][image], place), noisy) == seen
            torch.testing.assert_close(
                pixels(shown["noise"][image], place), pixels(noise[image], place) / 0.05 if seen else 0 * noisy
            )
            assert pixels(shown["predicted noise"][image], place).any() == seen


def test_a_look_draws_from_the_generator_and_training_does_too():
    module = method("can")
    torch.manual_seed(1)
    losses = [module.loss_of_views(views()).item() for _ in range(2)]
    torch.manual_seed(1)
    again = [module.loss_of_views(views()).item() for _ in range(2)]
    assert losses == again and losses[0] != losses[1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mask_ratio": 1.0}, r"^mask_ratio must mask some of the 16 patches of an image and leave some, got 1\.0$"),
        ({"mask_ratio": 0.01}, r"^mask_ratio must .* got 0\.01$"),
        ({"noise_std": -0.1}, r"^noise_std must be finite and not negative, got -0\.1$"),
        ({"noise_std": math.inf}, r"^noise_std must be finite and not negative, got inf$"),
        ({"weights": LossWeights(noise=-1)}, r"^weights\.noise must be finite and not negative, got -1$"),
        ({"weights": LossWeights(math.inf)}, r"^weights\.contrast must be finite and not negative, got inf$"),
        ({"weights": LossWeights(0, 0, 0)}, r"^weights must not all be 0, got weights\.contrast, .* of 0$"),
        ({"decoder": DecoderConfig(depth=0)}, r"^decoder\.depth must be at least 1, got 0$"),
        ({"backbone": BackboneConfig("resnet18")}, r"^backbone\.name must be .* got resnet18$"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        method("can", **settings)


def test_its_encoder_is_the_timm_model_itself():
    module = method("can")
    assert isinstance(module, CAN) and module.backbone.model.embed_dim == VIT.arguments["embed_dim"]
    assert module.decoder.output.out_features == 3 * PATCH**2


def test_processes_draw_for_themselves(monkeypatch):
    """Lightning seeds all alike; one process keeps its generator as it is."""
    module, drawn = method("can"), []
    for rank, processes in ((0, 1), (0, 3), (1, 3), (2, 3)):
        monkeypatch.setattr("amcl_fast.methods.base.world", lambda at=(rank, processes): at)
        torch.manual_seed(7)
        module.on_train_start()
        drawn.append(module.draw(torch.zeros(N, 3, 8, 8)).noise)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2]) and not torch.equal(drawn[2], drawn[3])


def test_sizes_of_views_leave_patches_to_mask():
    module = method("can")
    module.check_sizes([8, 4])
    told = r"^mask_ratio must mask some of the 1 patches .*, got 0\.5, for views of 2 × 2 px \(data\.views\)$"
    with pytest.raises(ValueError, match=told):
        module.check_sizes([8, 2])
    with pytest.raises(ValueError, match=r"^model\.backbone must take images of each size .* 5 × 5 px"):
        module.check_sizes([8, 5])
