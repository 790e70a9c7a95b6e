"""Encoders of a user's own: by class path from settings, as an instance from Python."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from amcl_fast.encoder import load_encoder
from amcl_fast.export import export, loading_code
from amcl_fast.models import BackboneConfig, build_backbone
from tests.helpers import toy_methods
from tests.test_export import checkpoint

pytestmark = pytest.mark.slow


class Net(nn.Module):
    """A convolution, normalised; says another width than its features have."""

    feature_dim = 7

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images):
        return self.norm(self.conv(images)).relu().mean((2, 3))


class Views(Net):
    """As many write it: convolutions in channels_last give what no `view` takes. For images of one size."""

    def __init__(self, side: int = 15) -> None:
        super().__init__()
        self.end = nn.Linear(5 * side**2, 6)

    def forward(self, images):
        return self.end(self.norm(self.conv(images)).view(len(images), -1))


class Deep(Net):
    """Weights of five dimensions, which have no channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, images):
        return self.deep(images[:, None]).mean((2, 3, 4))


class Maps(Net):
    def forward(self, images):
        return self.conv(images)


class NoFeatures(Net):
    def forward(self, images):
        return super().forward(images)[:, :0]


class Tied(Net):
    """The same weights twice, and whole numbers among them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 5)
        self.last.weight = self.first.weight
        self.order = nn.Parameter(torch.arange(4, -1, -1), requires_grad=False)

    def forward(self, images):
        return self.last(self.first(super().forward(images))[:, self.order])


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.on = False

    def set_grad_checkpointing(self, on: bool) -> None:
        self.on = on

    def forward(self, images):
        return self.conv(images).mean((2, 3))


def path(cls):
    return f"{__name__}.{cls.__name__}"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """This module under its name, as one of a user's own in PYTHONPATH."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Net.__module__])


@pytest.mark.parametrize(
    ("cls", "arguments", "dim", "channels_last"),
    [(Net, {"width": 9}, 9, True), (Net, {}, 5, True), (Views, {}, 6, False), (Deep, {}, 2, True)],
)
def test_a_class_is_built_and_its_features_are_measured(cls, arguments, dim, channels_last):
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(path(cls), size=32, arguments=arguments))
    torch.manual_seed(0)
    plain = cls(**arguments)
    assert backbone.feature_dim == dim and backbone.channels_last == channels_last
    assert backbone.model.conv.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(backbone(images.to(memory_format=torch.channels_last)), plain(images))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(backbone.model.state_dict()[name], value)


@pytest.mark.parametrize("framework", ["simclr", "moco"])
@pytest.mark.parametrize("cls", [Net, Views])
def test_an_instance_is_trained(framework, cls, monkeypatch):
    monkeypatch.setattr("amcl_fast.models.own._SIZES", (8,))
    own = cls(3)
    module = toy_methods.method(framework, backbone=own)
    before = own.conv.weight.detach().clone()
    toy_methods.fit(module)
    assert module.backbone.model is own and not torch.equal(own.conv.weight, before)
    assert {name for name, _ in module.named_parameters() if name.startswith("backbone.")} == {
        f"backbone.model.{name}" for name, _ in own.named_parameters()
    }


def test_weights_that_are_shared_and_whole_numbers_are_averaged_and_exported(tmp_path):
    module = toy_methods.method("moco", backbone=BackboneConfig(path(Tied), size=8))
    toy_methods.fit(module)
    (of_keys,) = (encoder.model for encoder in module.key_encoder.copies if hasattr(encoder, "model"))
    assert of_keys.order.tolist() == [4, 3, 2, 1, 0] and of_keys.last.weight is of_keys.first.weight
    run, backbone = checkpoint(tmp_path / "run", BackboneConfig(path(Tied), size=32))
    again = load_encoder(export(run, trust=True), trust=True).backbone
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), backbone.eval()(images))


def test_an_instance_is_measured_at_a_size_that_it_takes():
    assert build_backbone(Views()).feature_dim == 6
    with pytest.raises(ValueError, match=r"Maps\b.*images of 224, 32, .* px were tried; BackboneConfig takes another"):
        build_backbone(Maps())


def test_gradient_checkpointing_is_the_module_s_own():
    config = BackboneConfig(path(Checkpointed), size=16, gradient_checkpointing=True)
    assert build_backbone(config).model.on
    with pytest.raises(ValueError, match=r"gradient_checkpointing must be false with .*Deep.*BatchNorm would count"):
        build_backbone(BackboneConfig(path(Deep), size=16, gradient_checkpointing=True))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (path(Maps), {}, r"backbone must give features \(n, D\), got shape \(n, 5, 7, 7\) from .*Maps"),
        (path(Views), {}, r"Views cannot take images of 16 × 16 px \(data\.size\): mat1 and mat2"),
        (path(Net), {"arguments": {"depth": 1}}, r"arguments must be those of .*Net, got an error of it: .*'depth'"),
        (path(Net), {"width": 8}, r"stem and backbone\.width must be standard and 64 with .*Net"),
        (path(Net), {"drop_path": 0.1}, r"drop_path must be unset with .*Net, for it is a setting of timm's models"),
        (path(Net), {"positions": "fixed"}, r"positions must be learned with .*Net"),
        ("nowhere.at.All", {}, r"a class of torch\.nn\.Module, got 'nowhere\.at\.All', which is not found"),
        ("os.path.join", {}, r"a class of torch\.nn\.Module, got 'os\.path\.join', which is none"),
        ("collections.Counter", {}, r"got 'collections\.Counter', which is none"),
        (path(Net).replace(".", "..", 1), {}, r"must be the path of a class, package\.module\.Class, got 'tests\.\."),
        (f"{path(Net)}.", {}, r"must be the path of a class, package\.module\.Class, got "),
        ("my-nets.Net", {}, r"must be the path of a class, package\.module\.Class, got 'my-nets\.Net'"),
        (path(NoFeatures), {}, r"must give features \(n, D\), got shape \(n, 0\)"),
    ],
)
def test_what_cannot_be_is_told(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(BackboneConfig(name, size=16, **settings))


def test_a_module_that_does_not_import_is_told_with_its_error(tmp_path, monkeypatch):
    (tmp_path / "broken_net.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError, match=r"must be a class that can be imported, got 'broken_net\.Net': .*no_such_pack"
    ):
        build_backbone(BackboneConfig("broken_net.Net"))


def test_a_file_imports_no_class_unless_it_is_trusted(tmp_path, monkeypatch):
    """Neither a checkpoint nor an exported file; trusted, both give the same encoder, and the printed lines too."""
    pytest.importorskip("safetensors")
    (tmp_path / "their_net.py").write_text("from pathlib import Path\nPath('imported').touch()\n" + SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    run, backbone = checkpoint(tmp_path / "run", BackboneConfig("their_net.Their", size=32, arguments={"width": 6}))
    exported = export(run, trust=True)
    (tmp_path / "imported").unlink()
    monkeypatch.delitem(sys.modules, "their_net")
    told = r"(last\.ckpt|backbone\.safetensors) names a class as its encoder, their_net\.Their, .* add --trust"
    for work in (load_encoder, export):
        for file in (run, exported):
            with pytest.raises(ValueError, match=told):
                work(file)
    assert not (tmp_path / "imported").exists() and "their_net" not in sys.modules
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone.eval()(images)
        for file in (run, exported):
            encoder = load_encoder(file, trust=True)
            assert encoder.config == BackboneConfig("their_net.Their", size=32, arguments={"width": 6})
            assert torch.equal(encoder.backbone(images), expected)
        space: dict = {}
        exec(loading_code(encoder.config, str(exported)), space)
        torch.testing.assert_close(space["model"].eval()(images), expected)
    assert (tmp_path / "imported").exists()


def test_the_examples_of_the_page_run():
    """The page's class in place of an instance, and built as a class."""
    page = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text()
    space: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, space)
    module = space["module"]
    assert module.backbone.feature_dim == 64 and module.backbone.channels_last
    assert isinstance(module.backbone.model, space["Net"])
    loss = module.loss([torch.randn(4, 3, 32, 32) for _ in range(2)])
    loss.backward()
    assert torch.isfinite(loss) and module.backbone.model.body[0].weight.grad.any()


SOURCE = """
from torch import nn
class Their(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
    def forward(self, images):
        return self.conv(images).mean((2, 3))
"""
