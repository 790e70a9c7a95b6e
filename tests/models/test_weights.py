"""Weights of an encoder from a file."""

import re

import pytest
import torch
from torchvision.models import resnet18

from amcl_fast.encoder import load_encoder
from amcl_fast.export import export
from amcl_fast.models import BackboneConfig, build_backbone
from tests.helpers.traps import Touch

pytestmark = pytest.mark.slow

ARGUMENTS = {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
VIT = BackboneConfig("timm/vit_tiny_patch16_224", size=16, arguments=ARGUMENTS)


def with_weights(config, path):
    torch.manual_seed(5)
    return build_backbone(BackboneConfig(**{**vars(config), "weights": str(path)}))


def theirs(size=16, **changes):
    """timm's model with a classifier, as others have trained it."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=size, **{**ARGUMENTS, **changes})


@pytest.mark.parametrize("form", ["safetensors", "torch", "state_dict", "model", "distributed"])
def test_weights_of_others_are_loaded_without_their_classifier(form, tmp_path):
    model = theirs()
    weights, path = model.state_dict(), tmp_path / "weights.pth"
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        pytest.importorskip("safetensors.torch").save_file(weights, path)
    elif form == "distributed":
        torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}, "epoch": 3}, path)
    else:
        torch.save(weights if form == "torch" else {form: weights, "epoch": 3}, path)
    backbone = with_weights(VIT, path)
    images = torch.randn(3, 3, 16, 16)
    expected = model.eval().forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(backbone.eval()(images), expected)
    assert backbone.model.blocks[0].attn.qkv.weight.requires_grad


def test_torchvision_s_weights_are_loaded(tmp_path):
    model = resnet18()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    backbone = with_weights(BackboneConfig("resnet18"), tmp_path / "resnet18.pth")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in backbone.state_dict().items())
    assert backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_positions_of_other_images_are_resampled_as_timm_does(tmp_path):
    timm = pytest.importorskip("timm")
    model = theirs(size=32)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    found = with_weights(VIT, tmp_path / "w.pth").model.pos_embed
    expected = timm.layers.resample_abs_pos_embed(model.pos_embed, (4, 4), num_prefix_tokens=1)
    assert found.shape == (1, 17, 12)
    torch.testing.assert_close(found, expected)


def test_a_frozen_projection_and_fixed_positions_after_weights(tmp_path):
    """The projection is the file's; positions are the formula's, whatever the file has."""
    model = theirs()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    config = BackboneConfig(**{**vars(VIT), "freeze_patch_projection": True, "positions": "fixed"})
    backbone, fresh = with_weights(config, tmp_path / "w.pth").model, build_backbone(config).model
    assert torch.equal(backbone.patch_embed.proj.weight, model.patch_embed.proj.weight)
    assert torch.equal(backbone.pos_embed, fresh.pos_embed)
    assert not backbone.pos_embed.requires_grad and not backbone.patch_embed.proj.weight.requires_grad


def test_an_exported_file_is_the_start_of_another_run(tmp_path):
    pytest.importorskip("safetensors")
    from tests.test_export import checkpoint

    run, trained = checkpoint(tmp_path / "run", BackboneConfig("resnet18", "small", 8))
    backbone = with_weights(BackboneConfig("resnet18", "small", 8), export(run))
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in backbone.state_dict().items())
    assert load_encoder(run).config.weights is None


def test_what_does_not_fit_is_told_in_one_line(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(theirs(depth=1).state_dict(), path)
    lacks = "which lacks blocks.1.norm1.weight, blocks.1.norm1.bias, blocks.1.attn.qkv.weight and 9 more"
    with pytest.raises(ValueError, match=re.escape(f"must be those of {VIT.name}, got {path}, {lacks}") + "$"):
        with_weights(VIT, path)
    torch.save(theirs(depth=3).state_dict(), path)
    with pytest.raises(ValueError, match=r"which has blocks\.2\.norm1\.weight, .* and 9 more, which that has not$"):
        with_weights(VIT, path)
    torch.save(theirs(embed_dim=24).state_dict(), path)
    shape = re.escape("has cls_token of shape (1, 1, 24) and not (1, 1, 12)")
    with pytest.raises(ValueError, match=rf"{shape}; has pos_embed of shape .*, and 28 more differ$"):
        with_weights(VIT, path)
    torch.save(resnet18().state_dict(), path)
    with pytest.raises(ValueError, match=r"conv1\.weight of shape \(64, 3, 7, 7\) and not \(8, 3, 7, 7\)"):
        with_weights(BackboneConfig("resnet18", width=8), path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_something_else_are_refused(tmp_path, suffix):
    path, trap = tmp_path / f"w{suffix}", tmp_path / "executed"
    with pytest.raises(FileNotFoundError, match=rf"backbone\.weights must be a file, got .*w{suffix}, which does not"):
        with_weights(VIT, path)
    path.write_bytes(b"PK\x03\x04half")
    with pytest.raises(ValueError, match=rf"w{suffix} is (refused|no safetensors file)"):
        with_weights(VIT, path)
    if suffix == ".pth":
        torch.save({"state_dict": {"a": Touch(trap)}}, path)
        with pytest.raises(ValueError, match=r"w\.pth is refused: .* could run code"):
            with_weights(VIT, path)
        assert not trap.exists()
        for content in ({"a": 3}, {}, torch.zeros(2), {"state_dict": [1]}):
            torch.save(content, path)
            with pytest.raises(ValueError, match=r"w\.pth holds no weights: it must hold tensors by name"):
                with_weights(VIT, path)
        for odd in (torch.eye(2).to_sparse(), torch.empty(2, device="meta")):
            torch.save({"a": odd}, path)
            with pytest.raises(ValueError, match=r"w\.pth holds no weights of an encoder: a is sparse, "):
                with_weights(VIT, path)
    path.unlink()
    path.mkdir()
    with pytest.raises(FileNotFoundError, match=rf"backbone\.weights must be a file, got .*w{suffix}, which is none$"):
        with_weights(VIT, path)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    state = build_backbone(BackboneConfig("resnet18", width=8)).state_dict()
    state["bn1.weight"][3] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"backbone\.weights must be finite, got .*nan\.pth, whose bn1\.weight is not"):
        build_backbone(BackboneConfig("resnet18", width=8, weights=str(tmp_path / "nan.pth")))
