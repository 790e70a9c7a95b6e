import importlib.util
import re
import subprocess
import sys

import pytest
import torch
from torchvision.models import resnet18

from amcl_fast.models import BackboneConfig, build_backbone

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "width", "feature_dim"), [("resnet18", 16, 128), ("resnet50", 8, 256)])
def test_small_stem_keeps_resolution_and_width_scales_features(name, width, feature_dim):
    backbone = build_backbone(BackboneConfig(name, "small", width))
    images = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    assert backbone.conv1(images).shape == (2, width, 16, 16)
    assert backbone(images).shape == (2, feature_dim) and backbone.feature_dim == feature_dim


def test_standard_resnet18_is_torchvisions_without_classifier():
    ours = build_backbone(BackboneConfig("resnet18")).eval()
    theirs = resnet18().eval()
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    ours.load_state_dict(state)
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))


def test_weights_are_channels_last():
    weight = build_backbone(BackboneConfig("resnet18", "small", 8)).layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


STEPS = """
import copy, sys, torch
from amcl_fast.models import BackboneConfig, build_backbone
for name, size in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    print(name, end=": ", flush=True)
    torch.manual_seed(0)
    backbone = copy.deepcopy(build_backbone(BackboneConfig(name, width=64 if "/" in name else 8)))
    seen = {}
    for conv in backbone.modules():
        few = isinstance(conv, torch.nn.Conv2d) and conv.kernel_size == (1, 1) and conv.groups == 1
        if few and max(conv.stride) > 1:
            conv.register_full_backward_hook(lambda conv, _, grad: seen[conv].append(grad[0].double()))
            conv.register_forward_hook(lambda conv, images, _: seen.update({conv: [images[0].double()]}))
    images = torch.randn(2, 3, size, size).to(memory_format=torch.channels_last)
    for _ in range(4):
        backbone.zero_grad()
        backbone(images).square().mean().backward()
    for conv, (images, grad) in seen.items():
        right = torch.nn.grad.conv2d_weight(images, conv.weight.shape, grad, conv.stride)
        torch.testing.assert_close(conv.weight.grad.double(), right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))
    print(len(seen), "right", flush=True)
"""


def test_gradients_of_strided_convolutions_of_few_channels_leave_memory_as_it_is():
    """In a process of its own, which torch would break off."""
    models = {"resnet18": 192} | ({"timm/repvgg_a0": 112} if importlib.util.find_spec("timm") else {})
    arguments = [str(part) for model in models.items() for part in model]
    done = subprocess.run([sys.executable, "-c", STEPS, *arguments], capture_output=True, text=True, check=False)
    expected = "".join(f"{name}: [1-9] right\n" for name in models)
    assert done.returncode == 0 and re.fullmatch(expected, done.stdout), done.stdout + done.stderr


def test_timm_model_has_features_without_classifier():
    pytest.importorskip("timm")
    backbone = build_backbone(BackboneConfig("timm/resnet10t"))
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, backbone.feature_dim)


# Small members of families whose features are not `num_features` wide, that are built for a size, or take any.
SMALL = {
    "mobilenetv3_small_050": 1024,
    "mobilenetv4_conv_small_035": 1280,
    "ghostnet_050": 1280,
    "lcnet_035": 1280,
    "efficientvit_b0": 1280,
    "hgnetv2_b0": 2048,
    "efficientvit_m0": 192,
    "vit_tiny_patch16_224": 192,
    "swin_tiny_patch4_window7_224": 768,
    "xcit_nano_12_p8_224": 128,
    "levit_128s": 384,
    "mixer_s32_224": 512,
    "test_convnext": 64,
    "convnextv2_atto": 320,
    "pvt_v2_b0": 256,
    "efficientformerv2_s0": 176,
}
BUILT_FOR_A_SIZE = {
    name for name in SMALL if name.startswith(("vit", "swin", "xcit", "levit", "mixer", "efficientvit_m", "efficientf"))
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [32, 96])
def test_models_of_timm_take_images_of_any_size_and_tell_the_width_of_their_features(name, size):
    pytest.importorskip("timm")
    backbone = build_backbone(BackboneConfig(f"timm/{name}", size=size))
    assert backbone.feature_dim == SMALL[name] and backbone.takes_size == (name in BUILT_FOR_A_SIZE)
    assert backbone.training and all(module.training for module in backbone.modules())
    features = backbone(torch.randn(2, 3, size, size))
    assert features.shape == (2, backbone.feature_dim)
    features.sum().backward()


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_measuring_leaves_no_trace(name):
    """Weights, running statistics and random numbers are those of timm's model."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs, number = timm.create_model(name, num_classes=0), torch.rand(1)
    for size in (None, 224):
        torch.manual_seed(0)
        ours = build_backbone(BackboneConfig(f"timm/{name}", size=size)).model
        assert torch.equal(torch.rand(1), number)
        for entry, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[entry], value), entry


def test_features_that_are_no_vectors_are_refused():
    timm = pytest.importorskip("timm")

    @timm.models.register_model
    def amcl_test_map(pretrained=False, **kwargs):
        model = torch.nn.Conv2d(3, 5, 3)
        model.pretrained_cfg = {"input_size": (3, 16, 16)}
        return model

    with pytest.raises(ValueError, match=r"features \(n, D\), got shape \(n, 5, 14, 14\) from timm/amcl_test_map"):
        build_backbone(BackboneConfig("timm/amcl_test_map"))


def test_missing_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"^backbone timm/resnet10t needs timm: pip install 'amcl-fast\[timm\]'$"):
        build_backbone(BackboneConfig("timm/resnet10t"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig("resnet19"), "resnet18.*got 'resnet19'"),
        (BackboneConfig("resnet18", width=12), "width.*12"),
        (BackboneConfig("resnet18", size=48), "backbone.size must be unset with resnet18, .* timm's models, got 48"),
        (BackboneConfig("timm/nothing", "small", 32), "backbone must be a model of timm, got 'nothing'"),
        (
            BackboneConfig("timm/resnet10t", "small"),
            "must be standard and 64 with timm/resnet10t, .*, got small and 64",
        ),
        (
            BackboneConfig("timm/resnet10t", width=32),
            "must be standard and 64 with timm/resnet10t, .*settings of ResNets, got standard and 32",
        ),
        (BackboneConfig("timm/vit_tiny_patch16_224", size=8), r"timm/vit_tiny_patch16_224 cannot take images of 8 × 8"),
        (BackboneConfig("timm/crossvit_tiny_240", size=64), r"timm/crossvit_tiny_240 cannot take images of 64 × 64 px"),
        (BackboneConfig("timm/resnet10t", size=0), "backbone.size must be between 1 and 2048, got 0"),
        (BackboneConfig("timm/vit_tiny_patch16_224", size=10**6), "between 1 and 2048, got 1000000"),
    ],
)
def test_bad_settings_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(config)
