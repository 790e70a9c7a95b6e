"""Masks, patches, the encoding of what is visible, and the decoder."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from amcl_fast.models import BackboneConfig, build_backbone
from amcl_fast.models.decoder import DecoderConfig, PatchDecoder, sines_and_cosines
from amcl_fast.models.masked import (
    encode_visible,
    images_of,
    masked_count,
    patches_of,
    random_masks,
    taken,
    transformer_of,
)
from amcl_fast.models.vit import sine_cosine_positions

CPU = torch.device("cpu")


def transformer(size=8, **arguments):
    pytest.importorskip("timm")
    small = {"patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 2, **arguments}
    backbone = build_backbone(BackboneConfig("timm/vit_tiny_patch16_224", size=size, arguments=small))
    return backbone, transformer_of(backbone, "it")


@pytest.mark.parametrize(("patches", "ratio", "count"), [(16, 0.5, 8), (196, 0.75, 147), (9, 0.5, 4), (7, 0.6, 4)])
def test_every_image_has_its_own_mask_of_the_same_number(patches, ratio, count):
    visible, masked = random_masks(64, patches, ratio, CPU)
    assert visible.shape == (64, patches - count) and masked.shape == (64, count)
    for seen, hidden in zip(visible.tolist(), masked.tolist(), strict=True):
        assert sorted(seen + hidden) == list(range(patches)) and seen == sorted(seen) and hidden == sorted(hidden)
    assert len({tuple(row) for row in masked.tolist()}) > 16


def test_every_patch_is_masked_as_often():
    _, masked = random_masks(8000, 16, 0.25, CPU)
    shares = masked.flatten().bincount(minlength=16) / 8000
    torch.testing.assert_close(shares, torch.full((16,), 0.25), rtol=0, atol=0.03)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 0.01, 0.99, math.nan])
def test_a_mask_hides_some_patches_and_leaves_some(ratio):
    with pytest.raises(ValueError, match=rf"^mask_ratio must mask some of the 16 patches .* got {ratio}$"):
        masked_count(16, ratio)


@pytest.mark.parametrize(("size", "shape"), [((2, 2), (8, 8)), ((4, 2), (8, 6)), ((3, 3), (6, 12))])
def test_patches_are_cut_row_by_row_and_put_back(size, shape):
    images = torch.randn(2, 3, *shape)
    rows = patches_of(images, size)
    columns = shape[1] // size[1]
    for place in range(rows.shape[1]):
        top, left = place // columns * size[0], place % columns * size[1]
        assert torch.equal(rows[:, place], images[:, :, top : top + size[0], left : left + size[1]].flatten(1))
    assert torch.equal(images_of(rows, size, shape), images)


def test_pixels_beyond_the_grid_are_left_out():
    images = torch.randn(1, 3, 7, 7)
    back = images_of(patches_of(images, (2, 2)), (2, 2), (7, 7))
    assert torch.equal(back[..., :6, :6], images[..., :6, :6]) and not back[..., 6:, :].any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"global_pool": "avg", "fc_norm": False},
        {"global_pool": "avg"},
        {},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 2},
        {"no_embed_class": True, "reg_tokens": 1},
        {"pre_norm": True},
        {"global_pool": "map"},
        {"dynamic_img_size": True},
    ],
)
def test_with_nothing_masked_it_is_the_whole_encoder(arguments):
    backbone, model = transformer(**arguments)
    images = torch.randn(3, 3, 8, 8)
    tokens = encode_visible(model, images, torch.arange(16).expand(3, -1))
    assert torch.equal(tokens, model.forward_features(images))
    assert torch.equal(model.forward_head(tokens), backbone(images))


def test_an_image_of_another_size_is_encoded_where_the_model_takes_it():
    _, model = transformer(dynamic_img_size=True)
    images = torch.randn(3, 3, 4, 6)
    tokens = encode_visible(model, images, torch.arange(6).expand(3, -1))
    assert torch.equal(tokens, model.forward_features(images))


def test_checkpointing_of_gradients_is_kept():
    _, model = transformer()
    visible = torch.tensor([[0, 3, 9, 15]])
    images, grads, calls = torch.randn(1, 3, 8, 8), [], []
    model.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    for checkpointed in (False, True):
        model.set_grad_checkpointing(checkpointed)
        loss = encode_visible(model, images, visible).square().sum()
        grads.append(torch.autograd.grad(loss, list(model.parameters())))
        assert len(calls) == (3 if checkpointed else 1)  # the second time once more in the backward pass
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_masked_patches_change_nothing_of_what_is_visible():
    _, model = transformer()
    images = torch.randn(2, 3, 8, 8)
    masks = random_masks(2, 16, 0.5, CPU)
    hidden = torch.zeros(2, 16, 1).scatter(1, masks.masked.unsqueeze(-1), 1).expand(-1, -1, 12)
    others = images + images_of(hidden, (2, 2), (8, 8)) * torch.randn(2, 3, 8, 8)
    assert not torch.equal(images, others)
    assert torch.equal(encode_visible(model, images, masks.visible), encode_visible(model, others, masks.visible))


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("resnet18", {}, r"^backbone\.name must be that of a VisionTransformer of timm.* got resnet18$"),
        ("timm/resnet10t", {}, r"^backbone\.name must .* got timm/resnet10t$"),
        ("timm/vit_small_r26_s32_224", {"depth": 1}, r"^backbone\.name must .* got timm/vit_small_r26_s32_224$"),
        ("timm/vit_tiny_patch16_224", {"patch_drop_rate": 0.5}, r"^backbone\.arguments must leave out .*patch_drop"),
        ("timm/vit_tiny_patch16_224", {"dynamic_img_pad": True}, r"^backbone\.arguments must leave out dynamic_img"),
    ],
)
def test_another_encoder_is_refused(name, arguments, told):
    pytest.importorskip("timm")
    small = {"arguments": {"depth": 1, **arguments}} if "vit" in name else {}
    with pytest.raises(ValueError, match=told):
        transformer_of(build_backbone(BackboneConfig(name, **small)), name)


def test_the_cost_of_the_blocks_falls_with_the_mask():
    """Counted: products of the visible tokens alone, and of the patches' projection, which is of all of them."""
    _, model = transformer(size=32, embed_dim=48, depth=3, num_heads=3, class_token=False, global_pool="avg")
    images = torch.randn(2, 3, 32, 32)

    def flops(visible):
        with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(_MATH):
            encode_visible(model, images, torch.arange(visible).expand(2, -1))
        return counter.get_total_flops()

    def counted(tokens):
        projected = 2 * 256 * (3 * 4) * 48
        block = 2 * tokens * 48 * 48 * (3 + 1 + 4 + 4) + 2 * 2 * tokens * tokens * 48
        return 2 * (projected + 3 * block)

    for visible in (256, 128, 64):
        assert flops(visible) == counted(visible)
    assert flops(128) < 0.42 * flops(256)


_MATH = torch.nn.attention.SDPBackend.MATH


def decoder(dim=6, pixels=12, **config):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    return PatchDecoder(dim, pixels, DecoderConfig(**{"width": 8, "depth": 1, "heads": 2, **config}))


def test_tokens_return_to_their_places():
    """Without blocks the decoder is row by row: what is at a place is of the token or of the mask token there."""
    module = decoder().double()
    module.blocks = torch.nn.Identity()
    tokens = torch.randn(2, 1 + 5, 6, dtype=torch.float64)
    visible = torch.tensor([[0, 2, 5, 7, 11], [1, 2, 3, 4, 10]])
    level = torch.tensor([0.01, 0.04], dtype=torch.float64)
    found = module(tokens, visible, (3, 4), level)
    assert found.shape == (2, 12, 12)
    positions = sine_cosine_positions(3, 4, 8)
    told = module.level(sines_and_cosines(level, 128))
    for image in range(2):
        for place in range(12):
            row = module.mask_token[0, 0]
            if place in visible[image]:
                token = tokens[image, 1 + visible[image].tolist().index(place)]
                row = module.input(token + told[image])
            torch.testing.assert_close(found[image, place], module.output(module.norm(row + positions[place])))


def test_the_level_is_told_by_sines_and_cosines():
    found = sines_and_cosines(torch.tensor([0.0, 0.5], dtype=torch.float64), 6)
    angles = [0.5 / 10000 ** (i / 2) for i in range(3)]
    assert found[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert found[1].tolist() == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"depth": 0}, r"^decoder\.depth must be at least 1, got 0$"),
        ({"width": 0}, r"^decoder\.width must be at least 1, got 0$"),
        ({"heads": -1}, r"^decoder\.heads must be at least 1, got -1$"),
        ({"width": 12, "heads": 5}, r"^decoder\.width must be a multiple of 4 and of decoder\.heads, 5, got 12$"),
        ({"width": 6}, r"^decoder\.width must be a multiple of 4 and of decoder\.heads, 2, got 6$"),
    ],
)
def test_a_decoder_of_no_size_is_refused(config, told):
    with pytest.raises(ValueError, match=told):
        decoder(**config)


def test_taken_takes_rows():
    x = torch.randn(2, 5, 3)
    assert torch.equal(taken(x, torch.tensor([[4, 0], [1, 1]])), torch.stack([x[0, [4, 0]], x[1, [1, 1]]]))
