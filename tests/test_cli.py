import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from amcl_fast import AdaptiveTemperature, __version__, callbacks
from amcl_fast.callbacks import MetricsFile
from amcl_fast.cli import main
from amcl_fast.data.scan.limits import DEFAULT_LIMITS
from amcl_fast.encoder import load_encoder
from amcl_fast.methods import SimCLR
from amcl_fast.recipes import describe_recipes
from amcl_fast.runs.lock import RunLock
from tests.helpers.command_line import NT_XENT, image_folder, saved_step
from tests.helpers.disk import no_room
from tests.helpers.recipes import build
from tests.helpers.traps import Touch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

TINY = NT_XENT + "trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1}"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), 8, 2)


@pytest.fixture
def tiny(tmp_path, images, monkeypatch):
    """Arguments of a run that takes a second, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return ["pretrain", "--config", "tiny.yaml", "--data", str(images)]


def test_a_run_leaves_its_results_in_its_folder(tiny, tmp_path, capsys):
    assert main([*tiny, "--run_dir", "run", "--trainer.max_epochs=2"]) == 0
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.csv", "tensorboard", "checkpoints", "report"} <= names
    out = capsys.readouterr().out
    for text in ("epoch 2/2", "raw pixels", "untrained encoder", "after epoch 2", "run/checkpoints/last.ckpt"):
        assert text in out
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2 and config["data"]["batch_size"] == 8
    page = run / "report" / "index.html"
    assert "run/report/index.html" in out and page.exists()
    page.unlink()
    assert main(["report", str(run)]) == 0
    assert page.exists()


def test_report_of_no_run_is_an_error(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_the_checkpoint_alone_gives_the_model_back(tiny, tmp_path):
    assert main([*tiny, "--run_dir", "run"]) == 0
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    model = SimCLR.load_from_checkpoint(path, weights_only=True)
    assert model.criterion.temperature == 0.2 and model.backbone.feature_dim == 64
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_two_runs_never_share_a_folder(tiny, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").touch()
    assert main([*tiny, "--run_dir", "run"]) == 2
    assert "--resume run" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.csv"]


def test_resume_takes_the_latest_run_and_new_settings(tiny, tmp_path, capsys):
    for name in ("runs/a-1", "runs/b-1"):
        assert main([*tiny, "--run_dir", name]) == 0
    assert main(["pretrain", "--resume", "--trainer.max_epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert "run directory: runs/b-1" in out and "after epoch 2" in out
    rows = (tmp_path / "runs/b-1/metrics.csv").read_text()
    assert rows.count("\n0,") == 1  # baselines and the first step
    assert main(["pretrain", "--recipe", "a", "--resume"]) == 0
    assert "run directory: runs/a-1" in capsys.readouterr().out
    assert main(["pretrain", "--recipe", "a", "--resume", "runs/b-1"]) == 2
    assert "--recipe must be left out, as for the run in runs/b-1, got a\n" in capsys.readouterr().err


def test_evaluate_and_export_what_a_run_left(tiny, tmp_path, images, capsys):
    pytest.importorskip("safetensors")
    assert main([*tiny, "--run_dir", "run", "--data.crop_pct", "0.8", "--data.max_image_pixels", "5000"]) == 0
    assert load_encoder(Path("run")).limits == DEFAULT_LIMITS._replace(pixels=5000)
    capsys.readouterr()
    probe = ["--data", str(images), "--epochs", "2", "--batch_size", "8"]
    assert main(["evaluate", "run", *probe]) == 0
    out = capsys.readouterr().out
    images_line, numbers_line = (
        "16 images in 2 classes (train/), 4 held out (test/), 16 px of 20",
        "16 to learn from, 4 held out; 64 features",
    )
    for text in (images_line, numbers_line, "features computed once", "<- best", "kNN "):
        assert text in out
    assert len(re.findall(r"^  [\d.]+ +[\d.]+ %", out, re.MULTILINE)) == 8
    found = json.loads((tmp_path / "run" / f"evaluation-{images.name}.json").read_text())
    assert found["encoder"]["run"] == "run" and found["linear"]["training_images"] == "features computed once"

    assert main(["export", "run", "--output", "alone.safetensors"]) == 0
    assert "load_encoder" in capsys.readouterr().out  # of width 8, which torchvision does not have
    assert main(["evaluate", "alone.safetensors"]) == 2
    assert "does not say what it was trained on: give --data" in capsys.readouterr().err
    assert main(["evaluate", "alone.safetensors", *probe, "--output", "again.json"]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    for part in ("knn", "linear", "training_images", "queries", "size", "crop_pct"):
        assert again[part] == found[part]

    assert main(["evaluate", "run", "--max_image_pixels", "0"]) == 2
    assert "error: max_image_pixels must be at least 1, got 0\n" in capsys.readouterr().err
    options = ["--rates", "1", "10", "--augment", "--batch_size", "8", "--crop_pct", "1"]
    assert main(["evaluate", "run", "--epochs", "1", *options]) == 0
    assert "random crop and flip every epoch" in capsys.readouterr().out
    own = json.loads((tmp_path / "run" / f"evaluation-{images.name}.json").read_text())
    assert own["data"] == str(images)  # the run's own, by default
    assert own["linear"]["sweep"]["rates"] == [1.0, 10.0] and (own["crop_pct"], found["crop_pct"]) == (1.0, 0.8)


def test_a_model_of_timm_is_built_for_the_images_of_the_data(tiny, tmp_path, images, capsys):
    """In training, after a resume, in evaluations and exports; what it cannot take is told before any work."""
    pytest.importorskip("timm"), pytest.importorskip("safetensors")
    settings = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    settings["model"]["init_args"]["backbone"] = {"name": "timm/test_vit"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    run = ["--run_dir", "run", "--trainer.max_steps", "1"]
    for arguments, message in (
        (["--data.size", "8"], r"timm/test_vit cannot take images of 8 × 8 px \(data.size\): "),
        (["--model.backbone.size", "32"], r"model.backbone.size must be data.size, 48, or unset, got 32"),
    ):
        assert main([*tiny, *run, "--data.size", "48", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(message, line), line
        assert not (tmp_path / "run").exists()
    assert main([*tiny, *run, "--data.size", "48"]) == 0
    assert main(["pretrain", "--resume", "run", "--trainer.max_steps", "2"]) == 0
    assert (
        yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["init_args"]["backbone"]["size"] == 48
    )
    assert main(["evaluate", "run", "--data", str(images), "--epochs", "1", "--batch_size", "8"]) == 0
    assert "16 to learn from, 4 held out; 64 features" in capsys.readouterr().out
    assert main(["export", "run"]) == 0
    assert 'timm.create_model("test_vit", num_classes=0, img_size=48)' in capsys.readouterr().out


def test_a_size_of_an_encoder_that_takes_any_is_refused_and_of_older_runs_forgotten(tiny, tmp_path, capsys):
    size = yaml.safe_load((tmp_path / "tiny.yaml").read_text())["data"]["size"]
    run = ["--run_dir", "run", "--trainer.max_steps", "1"]
    assert main([*tiny, *run, "--model.backbone.size", str(size + 8)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"model.backbone.size must be data.size, {size}, or unset, got {size + 8}")
    assert not (tmp_path / "run").exists()
    assert main([*tiny, *run, "--model.backbone.size", str(size)]) == 0
    config, path = tmp_path / "run" / "config.yaml", tmp_path / "run" / "checkpoints" / "last.ckpt"
    settings, checkpoint = yaml.safe_load(config.read_text()), torch.load(path, weights_only=True)
    assert settings["model"]["init_args"]["backbone"]["size"] is None
    for saved in (settings, checkpoint["settings"]):
        saved["model"]["init_args"]["backbone"]["size"] = size + 8
    config.write_text(yaml.safe_dump(settings))
    torch.save(checkpoint, path)
    assert load_encoder(path).config.size is None
    assert main(["pretrain", "--resume", "run", "--trainer.max_steps", "2"]) == 0
    assert yaml.safe_load(config.read_text())["model"]["init_args"]["backbone"]["size"] is None
    assert torch.load(path, weights_only=True)["global_step"] == 2


def test_a_model_of_timm_with_the_demo_is_told_all_that_it_needs(images, tmp_path, monkeypatch, capsys):
    """The name first, then the settings of the recipe that are a ResNet's, both at once."""
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    demo = ["pretrain", "--recipe", "demo", "--data", str(images), "--run_dir", "run", "--model.backbone.name"]
    told = "must be standard and 64 with timm/test_vit, for they are settings of ResNets, got small and 16"
    for name, message in (
        ("nothing", "model.backbone.name must be a model of timm, got 'nothing'"),
        ("test_vit", told),
    ):
        assert main([*demo, f"timm/{name}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(message), line
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "export"])
@pytest.mark.parametrize(("name", "message"), [("nowhere", "does not exist"), ("text.ckpt", "text.ckpt is refused")])
def test_what_cannot_be_evaluated_is_one_line(command, name, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.ckpt").write_text("text")
    assert main([command, name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"amcl-fast {command}: error: ") and message in line


def test_a_run_that_goes_on_cannot_be_resumed(tiny, tmp_path, capsys):
    assert main([*tiny, "--run_dir", "run"]) == 0
    metrics = (tmp_path / "run" / "metrics.csv").read_text()
    with RunLock() as lock:
        lock.acquire(tmp_path / "run")
        assert main(["pretrain", "--resume", "run", "--trainer.max_epochs=2"]) == 2
    assert "run is in use" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.csv").read_text() == metrics
    assert main(["pretrain", "--resume", "run", "--trainer.max_epochs=2"]) == 0


def test_a_run_is_not_resumed_from_a_checkpoint_that_could_run_code(tiny, tmp_path, capsys):
    assert main([*tiny, "--run_dir", "run"]) == 0
    trap = tmp_path / "executed"
    torch.save({"state_dict": {}, "global_step": Touch(trap)}, tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert main(["pretrain", "--resume", "run"]) == 2
    assert "last.ckpt is refused" in capsys.readouterr().err
    assert not trap.exists()


def test_a_disk_that_is_full_at_the_last_save_is_one_line(tiny, tmp_path, capsys, monkeypatch):
    assert main([*tiny, "--run_dir", "run"]) == 0
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    good = path.read_bytes()

    def full(trainer, partial, **_):
        partial.write_bytes(good[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "save_checkpoint", full)
        settings = ["--trainer.max_epochs=2", "--checkpoint.every_n_epochs=9"]
        assert main(["pretrain", "--resume", "run", *settings]) == 1
    assert re.search(r"error: step 4: .*No space left.*the last good one is .*last\.ckpt", capsys.readouterr().err)
    assert path.read_bytes() == good and [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert main(["pretrain", "--resume", "run"]) == 0  # there is room again
    assert torch.load(path, weights_only=True)["global_step"] == 4


def test_a_disk_that_is_full_for_the_metrics_is_one_line_too(tiny, tmp_path, capsys, monkeypatch):
    real = MetricsFile.log_metrics

    def full(logger, metrics, step=None):
        if step == 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(logger.path))
        real(logger, metrics, step)

    with monkeypatch.context() as patched:
        patched.setattr(MetricsFile, "log_metrics", full)
        assert main([*tiny, "--run_dir", "run", "--checkpoint.every_n_steps=1"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in line and line.endswith("amcl-fast pretrain --resume run")
    assert main(["pretrain", "--resume", "run"]) == 0


def test_a_disk_that_is_full_before_the_start_is_one_line(tiny, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    with no_room(0):
        assert main([*tiny, "--run_dir", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("amcl-fast pretrain: error: ") and "File too large" in line and "config.yaml" in line
    assert sorted(tmp_path.iterdir()) == before


def test_lightnings_own_checkpoints_beside_ours(tiny, tmp_path, capsys):
    keep = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_top_k=-1"]
    assert main([*tiny, "--run_dir", "run", *keep, "--checkpoint.keep_every_n_epochs=1"]) == 0
    assert "checkpoint  run/checkpoints/last.ckpt\n" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["epoch-0001.ckpt", "epoch=0-step=2.ckpt", "last.ckpt"]
    theirs = str(tmp_path / "run" / "checkpoints" / "epoch=0-step=2.ckpt")
    assert main(["pretrain", "--resume", theirs, "--trainer.max_epochs=2"]) == 0
    assert saved_step(tmp_path / "run") == 4


def test_a_folder_that_lightnings_callback_cannot_write_is_one_line(tiny, tmp_path, capsys):
    keep = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=run/report"]
    assert main([*tiny, "--run_dir", "run", *keep, "--trainer.callbacks+=tests.helpers.blocking.Block"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "run/report" in line and line.endswith("once that is mended: amcl-fast pretrain --resume run")


def test_the_closing_lines_name_what_there_is(tiny, capsys, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(callbacks.draw_report, "write_report", full)
    with pytest.warns(UserWarning, match=r"no report: .*No space left.*amcl-fast report run"):
        assert main([*tiny, "--run_dir", "run"]) == 0
    out = capsys.readouterr().out
    assert "checkpoint  run/checkpoints/last.ckpt" in out and "index.html" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "resnet"], "recipe must be the name of one, got 'resnet'.*demo"),
        ([], "--recipe must be given, or settings by --config, got neither; .*demo"),
        (["--resume"], "nothing to resume"),
        (["--resume", "nowhere"], "nowhere does not exist"),
        (["--recipe", "demo", "--data", "nowhere"], "nowhere"),
        (["--config", "/dev/zero"], "/dev/zero is damaged: it must be a regular file"),
        (["--config=/dev/zero"], "/dev/zero is damaged: it must be a regular file"),
        (["-c", "/dev/zero"], "/dev/zero is damaged: it must be a regular file"),
        (["-c=/dev/zero"], "/dev/zero is damaged: it must be a regular file"),
        (["-c/dev/zero"], "/dev/zero is damaged: it must be a regular file"),
        (["--recipe", "demo", "--model.backbone.name", "resnet1"], "resnet18.*'resnet1'"),
        (["--recipe", "demo", "--trainer.precision", "transformer-engine"], "trainer.precision must be 32-true, .*got"),
    ],
)
def test_errors_are_one_line_and_leave_no_folder(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", *arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("amcl-fast pretrain: error: ")
    assert re.search(message, line), line
    assert not list(tmp_path.iterdir())


def test_a_run_knows_its_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--recipe", "demo", "--print_config"])
    assert "\nrecipe: demo\n" in capsys.readouterr().out


def test_help_lists_the_recipes(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    out = capsys.readouterr().out
    assert describe_recipes() in out


def test_released_recipe_is_the_released_one(tmp_path):
    cli = build("simclr-cifar10-released", tmp_path)
    loss, optimizer = cli.model.criterion, cli.model.optimizer_config
    assert (loss.negatives, loss.top_k, loss.beta, loss.include_positive) == ("topk_mean", 100, 1e-4, False)
    tau = loss.temperature
    assert isinstance(tau, AdaptiveTemperature)
    assert (tau.tau_min, tau.tau_max, tau.score, tau.phi[0].out_features) == (1e-5, 2.0, "dot", 128)
    assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.06, 0.9, 5e-4)
    assert optimizer.decay_all and cli.model.schedule_config.interval == "epoch"
    assert cli.model.schedule_config.warmup_epochs == 0
    assert cli.datamodule.batch_size == 512 and cli.datamodule.root == "cifar10"
    projector = cli.model.projector
    assert projector.heads == 3 and tuple(projector.output.weight.shape) == (3, 512, 128)
    assert cli.model.backbone.feature_dim == 512 and cli.model.backbone.conv1.kernel_size == (3, 3)


def test_settings_reach_trainer_data_and_model(tmp_path):
    cli = build(
        "demo",
        tmp_path,
        "--trainer.max_epochs=3",
        "--data.batch_size=64",
        "--model.optimizer.lr=0.5",
        "--model.criterion.temperature=0.3",
        "--knn.k=7",
        "--seed_everything=5",
    )
    assert cli.trainer.max_epochs == 3 and cli.datamodule.batch_size == 64
    assert cli.model.optimizer_config.lr == 0.5 and cli.model.criterion.temperature == 0.3
    assert cli.datamodule.seed == 5 and next(c for c in cli.trainer.callbacks if hasattr(c, "k")).k == 7


def test_doctor_and_help_need_no_trainer():
    """Where lightning, DALI or torchvision cannot be imported, `doctor` must be able to say so."""
    code = (
        "import sys\n"
        "for name in ('lightning', 'nvidia', 'nvidia.dali', 'torchvision', 'jsonargparse', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from amcl_fast.cli import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"amcl-fast {__version__}\n"
