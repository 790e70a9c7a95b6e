"""amcl_fast.hub: a folder that timm loads, from here as from the hub, and a card that says what is in it."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from amcl_fast.cli import main
from amcl_fast.encoder import load_encoder
from amcl_fast.hub import check_hub_name, write_for_hub
from tests.helpers.command_line import NT_XENT, image_folder
from tests.helpers.exported import BACKBONES, checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

_OF_TIMM = ["standard", "bottleneck", "timm, measured", "timm, sized, as given", "timm, sized, of CAN"]


@pytest.mark.parametrize("name", _OF_TIMM)
def test_timm_loads_the_folder_and_has_the_same_features(name, tmp_path):
    timm = pytest.importorskip("timm")
    run, backbone = checkpoint(tmp_path / "run", BACKBONES[name])
    folder = write_for_hub(run, "me/encoder")
    assert folder == run / "hub" and {path.name for path in folder.iterdir()} == {
        "model.safetensors", "config.json", "README.md"
    }  # fmt: skip
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).double().eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), backbone.double()(images), rtol=1e-9, atol=1e-12)
    data = timm.data.resolve_model_data_config(model)
    found = [[*data[name]] for name in ("input_size", "mean", "std")]
    assert found == [[3, 32, 32], [0.5, 0.4, 0.3], [0.25, 0.2, 0.1]]
    assert (data["crop_pct"], data["interpolation"]) == (1.0, "bilinear")
    # For a task of one's own, as timm's users begin.
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)(images.float()).shape == (2, 7)


@pytest.mark.parametrize("name", ["small", "narrow"])
def test_the_card_of_a_resnet_that_timm_has_not_loads_it(name, tmp_path, capsys):
    run, backbone = checkpoint(tmp_path / "run", BACKBONES[name])
    (run / "hub").mkdir()
    (run / "hub" / "config.json").touch()  # of another encoder
    assert main(["export", str(run), "--hub", "encoder"]) == 0
    assert "timm has no model like this encoder" in capsys.readouterr().out
    folder = run / "hub"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "README.md"}
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert 'hf_hub_download("encoder", "model.safetensors")' in code
    lines = [line for line in code.splitlines() if "hf_hub" not in line]
    space = {"file": str(folder / "model.safetensors")}
    exec("\n".join(lines), space)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = backbone.double()(images)
        torch.testing.assert_close(space["model"].double().eval()(images), expected, rtol=1e-9, atol=1e-12)
    assert load_encoder(folder / "model.safetensors").config.stem == "small"


def test_the_card_has_the_figures_of_the_run_and_no_path_of_the_machine(tmp_path, monkeypatch, capsys):
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "flowers", 8, 2)
    settings = NT_XENT.replace("stem: small, width: 8", "stem: standard")
    (tmp_path / "settings.yaml").write_text(
        settings + "trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1}"
    )
    assert main(["pretrain", "--config", "settings.yaml", "--data", "flowers", "--run_dir", "run"]) == 0
    probe = {"top1": 61.5, "rate": 1.0, "epochs": 100, "training_images": "features computed once"}
    linear = {"linear": probe}
    (tmp_path / "run" / "evaluation-flowers.json").write_text(json.dumps(linear))
    capsys.readouterr()
    assert main(["export", "run", "--hub", "me/flowers", "--license", "cc-by-4.0", "--output", "mine"]) == 0
    out = capsys.readouterr().out
    assert 'timm.create_model("local-dir:mine", pretrained=True)' in out
    card = (tmp_path / "mine" / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc-by-4.0" and yaml.safe_load(head)["library_name"] == "timm"
    summary = json.loads((tmp_path / "run" / "report" / "summary.json").read_text())["knn"]
    for line in (
        f"| kNN of the untrained encoder | {summary['untrained']:.1f} % |",
        f"| kNN of this encoder, 4 images by 16 | {summary['trained']:.1f} % |",
        "| linear probe on flowers | 61.5 % |",
        "| data | flowers, 16 images |",
        "| epochs | 1 |",
        'timm.create_model("hf-hub:me/flowers", pretrained=True)',
        "The weights: cc-by-4.0.",
        "@inproceedings{",
    ):
        assert line in text, line
    assert str(tmp_path) not in card + (tmp_path / "mine" / "config.json").read_text()
    # An earlier checkpoint has the kNN of its own step, and no probe of the last one.
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    torch.save(state | {"global_step": 0}, "run/checkpoints/epoch-0000.ckpt")
    write_for_hub(tmp_path / "run" / "checkpoints" / "epoch-0000.ckpt", "me/flowers", output=tmp_path / "early")
    early = (tmp_path / "early" / "README.md").read_text()
    assert "kNN of this encoder" not in early and "untrained" in early


def test_pushing_makes_the_repository_and_uploads_the_folder(tmp_path, monkeypatch, capsys):
    run, _ = checkpoint(tmp_path / "run", BACKBONES["small"])
    called = []

    class Api:
        def __init__(self, **_): ...

        def create_repo(self, name, **options):
            called.append((name, options))

            class Address(str):
                repo_id = "me/encoder"

            return Address("https://huggingface.co/me/encoder")

        def upload_folder(self, **options):
            called.append(options)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api))
    assert main(["export", str(run), "--hub", "encoder", "--push", "--private"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "https://huggingface.co/me/encoder"
    (name, options), upload = called
    assert (name, options) == ("encoder", {"private": True, "exist_ok": True})
    assert (upload["repo_id"], upload["folder_path"]) == ("me/encoder", run / "hub")

    def refuse(self, name, **options):
        raise RuntimeError("401 Client Error.\n\nInvalid credentials")

    monkeypatch.setattr(Api, "create_repo", refuse)
    assert main(["export", str(run), "--hub", "encoder", "--push"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "hub is written, but cannot be pushed to encoder: 401 Client Error. Invalid credentials" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hub", "a/b/c"], "--hub must be USER/MODEL or MODEL"),
        (["--hub", "me/../x"], "--hub must be"),
        (["--hub", "me/x", "--license", "no: such"], "--license must be a name of the hub's"),
        (["--hub", "me/x", "--format", "onnx"], "--format must be safetensors with --hub, got onnx"),
        (["--hub", "me/x", "--private"], "--private must be left out without --push"),
        (["--push"], "--push must be left out without --hub"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(options, message, tmp_path, capsys):
    run, _ = checkpoint(tmp_path / "run", BACKBONES["narrow"])
    assert main(["export", str(run), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (run / "hub").exists()


def test_names_that_the_hub_takes():
    for name in ("amcl-resnet18", "me/a.b_c-1", "x" * 96):
        check_hub_name(name)
    for name in ("", "-a", "a-", "me/", "/a", "a--b", "x" * 97, "a b", "me/-a", "a.git", "ä"):
        with pytest.raises(ValueError, match="--hub must be"):
            check_hub_name(name)
