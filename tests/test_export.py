"""amcl_fast.export and amcl_fast.encoder: what is written loads elsewhere, strictly, and gives the same features."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import yaml

from amcl_fast.cli import main
from amcl_fast.encoder import find_weights, load_encoder
from amcl_fast.export import export, loading_code
from amcl_fast.runs.checkpoint import load_checkpoint
from tests.helpers.disk import no_room
from tests.helpers.exported import BACKBONES, checkpoint
from tests.helpers.fake_data import FakeDataModule
from tests.helpers.running import fit, method
from tests.helpers.traps import Touch

pytestmark = pytest.mark.slow


@pytest.fixture
def images():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def features(module, images):
    with torch.no_grad():
        return module.eval()(images)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_printed_lines_load_the_file_strictly(tmp_path, images, name):
    """torchvision's or timm's own model, built by the lines that a user is shown, gives the same features."""
    pytest.importorskip("safetensors")
    if name.startswith("timm"):
        pytest.importorskip("timm")
    run, backbone = checkpoint(tmp_path / "run", BACKBONES[name])
    path = export(run)
    assert path == run / "backbone.safetensors"
    encoder = load_encoder(path)
    sized = "sized" in name
    assert encoder.config == load_encoder(run).config and encoder.config.size == (32 if sized else None)
    assert ("img_size" in encoder.metadata["backbone"] + loading_code(encoder.config)) == sized
    assert ("patch_size=8" in loading_code(encoder.config)) == ("given" in name)
    assert encoder.config.arguments == BACKBONES[name].arguments and encoder.config.drop_path is None
    space: dict = {}
    exec(loading_code(encoder.config, str(path)), space)
    model = space["model"]
    home = {"timm": "timm.", "narr": "amcl_fast."}.get(name[:4], "torchvision.")
    assert type(model).__module__.startswith(home)
    # In float64: another memory format rounds differently.
    model, backbone, images = model.double(), backbone.double(), images.double()
    torch.testing.assert_close(features(model, images), features(backbone, images), rtol=1e-9, atol=1e-12)


def test_a_standard_resnet_needs_its_classifier_removed_and_nothing_else(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    load_file = pytest.importorskip("safetensors.torch").load_file
    run, _ = checkpoint(tmp_path / "run", BACKBONES["standard"])
    weights = load_file(export(run))
    model = torchvision.models.resnet18()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])


def test_the_header_says_what_the_file_is(tmp_path):
    safe_open = pytest.importorskip("safetensors").safe_open
    run, _ = checkpoint(tmp_path / "run-7", BACKBONES["small"])
    with safe_open(export(run), framework="pt") as file:
        metadata = file.metadata()
    assert {name: metadata[name] for name in ("recipe", "run", "method", "epochs", "steps", "amcl_fast", "size")} == {
        "recipe": "demo",
        "run": "run-7",
        "method": "amcl_fast.methods.SimCLR",
        "epochs": "3",
        "steps": "12",
        "amcl_fast": "0.1.0",
        "size": "32",
    }
    assert json.loads(metadata["mean"]) == [0.5, 0.4, 0.3] and json.loads(metadata["std"]) == [0.25, 0.2, 0.1]
    assert json.loads(metadata["backbone"]) == {"name": "resnet18", "stem": "small", "width": 64}
    assert "conv1" in metadata["load"]


@pytest.mark.parametrize("name", ["narrow", "timm"])
def test_onnx_gives_the_same_features_at_any_batch(tmp_path, images, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if name == "timm":
        pytest.importorskip("timm")
    run, backbone = checkpoint(tmp_path / "run", BACKBONES[name])
    session = onnxruntime.InferenceSession(export(run, format="onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        (found,) = session.run(["features"], {"images": images[:batch].numpy()})
        expected = features(backbone, images[:batch])
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["recipe"] == "demo" and json.loads(metadata["std"]) == [0.25, 0.2, 0.1]
    assert [path.name for path in run.iterdir() if path.is_file()] == ["backbone.onnx"]  # weights are inside


@pytest.mark.parametrize("source", ["run", "checkpoint", "exported", "exported again"])
def test_an_encoder_is_read_back_from_all_that_holds_one(tmp_path, images, source):
    if "exported" in source:
        pytest.importorskip("safetensors")
    run, backbone = checkpoint(tmp_path / "run", BACKBONES["narrow"])
    path = run
    if source == "checkpoint":
        path = (run / "checkpoints" / "last.ckpt").rename(tmp_path / "alone.ckpt")
    if "exported" in source:
        path = export(run)
    if source == "exported again":
        path = export(path, output=tmp_path / "again.safetensors")
    found = load_encoder(path)
    assert torch.equal(features(found.backbone, images), features(backbone, images))
    assert not found.backbone.training and found.config == BACKBONES["narrow"]
    assert (found.size, found.mean, found.std) == (32, (0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
    assert found.origin["recipe"] == "demo" and found.origin["epochs"] == "3"
    assert found.data == (None if "exported" in source else "cifar10")  # a path of this machine is not given away


def test_what_training_saves_is_what_is_read(tmp_path, images):
    """The real callback, and the count of epochs that Lightning keeps."""
    module = method()
    config = {
        "recipe": None,
        "model": {
            "class_path": "amcl_fast.methods.SimCLR",
            "init_args": {"backbone": {"name": "resnet18", "stem": "small", "width": 8}},
        },
        "data": {"root": "builtin", "size": 8, "mean": [0, 0, 0], "std": [1, 1, 1]},
    }
    run = tmp_path / "demo-1"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    fit(run, module, FakeDataModule(), max_epochs=2)
    found = load_encoder(run)
    assert found.origin == {
        "amcl_fast": found.origin["amcl_fast"],
        "method": "amcl_fast.methods.SimCLR",
        "run": "demo-1",
        "epochs": "2",
        "steps": "8",
    }
    assert torch.equal(features(found.backbone, images), features(module.backbone, images))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_checkpoint_from_elsewhere_runs_no_code(tmp_path, form):
    trap, bad = tmp_path / "executed", tmp_path / "bad.ckpt"
    content = {"state_dict": {}, "global_step": Touch(trap)}
    if form == "torch":
        torch.save(content, bad)
    else:
        bad.write_bytes(pickle.dumps(content))
    for read in (load_checkpoint, load_encoder, export):
        with pytest.raises(ValueError, match=r"bad\.ckpt is refused.*could run code"):
            read(bad)
    assert not trap.exists()
    if form == "torch":
        torch.load(bad, weights_only=False)
        assert trap.exists()  # the trap works


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04half an archive", b"\x80\x02}."])
def test_damaged_and_other_files_are_refused_by_name(tmp_path, content):
    for name in ("a.ckpt", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}"):
            load_encoder(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {}}, "lacks the settings of its run"),
        ({"settings": {"model": {}, "data": {}}}, "holds no encoder"),
        ({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}}, "holds no encoder.*conv1"),
        ({"loops": {}}, "holds no encoder.*fit_loop"),
        ({"settings": 7}, "is no checkpoint of amcl-fast: settings must be .* got 7"),
    ],
)
def test_checkpoints_of_something_else_are_refused(tmp_path, changes, message):
    run, _ = checkpoint(tmp_path / "run", BACKBONES["narrow"], **changes)
    with pytest.raises(ValueError, match=rf"(?s)last\.ckpt {message}"):
        load_encoder(run)


@pytest.mark.parametrize("name", ["timm/hf-hub:someone/model", "timm/local-dir:/somewhere", "os", "os.system"])
def test_a_checkpoint_names_no_backbone_but_ours(tmp_path, name):
    """Neither a download nor a folder nor an import."""
    pytest.importorskip("timm")
    run, _ = checkpoint(tmp_path / "run", BACKBONES["narrow"])
    path = run / "checkpoints" / "last.ckpt"
    content = load_checkpoint(path)
    content["settings"]["model"]["init_args"]["backbone"] = {"name": name}
    torch.save(content, tmp_path / "hostile.ckpt")
    with pytest.raises(
        ValueError, match=r"backbone must be (a model of timm|one of)|names a class as its encoder, os\.system,"
    ):
        load_encoder(tmp_path / "hostile.ckpt")


def test_onnx_is_not_read_back(tmp_path):
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ValueError, match=r"a\.onnx is for other programs"):
        load_encoder(tmp_path / "a.onnx")


def test_weights_of_another_program_point_to_the_function(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"header lacks amcl_fast, backbone.*amcl_fast\.evaluate\.evaluate"):
        load_encoder(tmp_path / "other.safetensors")


def test_a_path_that_leads_nowhere_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; expected a run directory"):
        find_weights(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoints/last\.ckpt"):
        find_weights(tmp_path)


def test_an_export_that_fails_leaves_the_old_file(tmp_path):
    pytest.importorskip("safetensors")
    run, _ = checkpoint(tmp_path / "run", BACKBONES["narrow"])
    path = export(run)
    good = path.read_bytes()
    with no_room(4096), pytest.raises(OSError, match="File too large"):
        export(run)
    assert path.read_bytes() == good and [file.name for file in path.parent.iterdir() if file.is_file()] == [path.name]


@pytest.mark.parametrize(
    ("format", "name", "message"),
    [
        (
            "safetensors",
            "weights.bin",
            r"output must end in \.safetensors.*, got .*bin",
        ),
        ("safetensors", "weights", r"output must end in \.safetensors"),
        ("onnx", "weights.safetensors", r"output must end in \.onnx, by which onnx files are known"),
        ("safetensors", "weights.onnx", r"output must end in \.safetensors"),
        ("safetensors", "no/where.safetensors", r"where\.safetensors cannot be written: there is no folder .*/no$"),
        ("safetensors", "pipe.safetensors", r"pipe\.safetensors is no regular file, and would be replaced by one"),
        ("safetensors", "folder.safetensors", r"folder\.safetensors is a folder; give the name of the file"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_it_is_written(tmp_path, format, name, message):
    run, _ = checkpoint(tmp_path / "run", BACKBONES["narrow"])
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError), match=message):
        export(run, format=format, output=tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_takes_the_format_from_the_suffix(tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    pytest.importorskip("onnxscript")
    checkpoint(tmp_path / "run", BACKBONES["narrow"])
    monkeypatch.chdir(tmp_path)
    assert main(["export", "run", "--output", "weights.bin"]) == 2
    assert "output must end in .safetensors" in capsys.readouterr().err and not Path("weights.bin").exists()
    assert main(["export", "run", "--output", "a.onnx"]) == 0 and Path("a.onnx").is_file()
    assert main(["export", "run", "--format", "safetensors", "--output", "b.onnx"]) == 2
    assert main(["export", "run", "--output", "b.safetensors"]) == 0
    assert load_encoder(Path("b.safetensors")).config == BACKBONES["narrow"]
    capsys.readouterr()
    with no_room(1000):
        assert main(["export", "run", "--output", "c.safetensors"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "amcl-fast export: error: [Errno 27] File too large: 'c.safetensors'"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.safetensors", "run"]


def test_what_is_missing_is_told_as_everywhere(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    run, _ = checkpoint(tmp_path / "run", BACKBONES["narrow"])
    path = export(run)
    for name in ("safetensors", "safetensors.torch", "onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    install = "pip install 'amcl-fast[export]'"
    for line, work in (
        (f"export needs safetensors: {install}", lambda: export(run)),
        (f"export needs onnx, onnxscript: {install}", lambda: export(run, format="onnx")),
        (f"{path} needs safetensors: {install}", lambda: load_encoder(path)),
    ):
        with pytest.raises(ImportError) as told:
            work()
        assert str(told.value) == line
