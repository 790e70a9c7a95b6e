"""Runs from Python: the settings of the command line as arguments; encoders and frameworks as objects."""

import logging
import os
import random
import re
import signal
import sys
import threading
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import FakeData

from amcl_fast import MoCoLoss, pretrain
from amcl_fast.cli import main
from amcl_fast.data.sources import builtin
from amcl_fast.encoder import load_encoder
from amcl_fast.methods import MoCo
from amcl_fast.models import BackboneConfig, ProjectorConfig
from amcl_fast.optim import OptimizerConfig
from amcl_fast.pretraining.command import RunError
from tests.helpers.command_line import NT_XENT, image_folder
from tests.helpers.from_python import CPU, Net, Stateful, Views, assert_same, simclr, stop, train, weights
from tests.helpers.resuming import content

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """16 training images of two classes, and settings of a SimCLR of 16 pixels with batches of 8."""
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "images", 8, 2)
    (tmp_path / "settings.yaml").write_text(NT_XENT)
    return tmp_path


def test_a_call_trains_what_the_command_trains_and_leaves_the_process_as_it_was(folder):
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    torch.manual_seed(7)

    def state():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
        seen = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        level = logging.getLogger("lightning.pytorch").level
        return handlers, seen, level, list(warnings.filters), warnings.formatwarning, dict(os.environ), sys.stdout

    before = state()
    given = {
        "config": "settings.yaml", "epochs": 2, "lr": 0.02, "seed": 3, "run_dir": "python", "knn": {"k": 3},
        "trainer": CPU, "model": {"projector": ProjectorConfig(2, 16, 8)}, "model.optimizer.weight_decay": 1e-3,
    }  # fmt: skip
    result = pretrain(None, "images", **given)
    assert state() == before and not dist.is_initialized()
    command = "--config settings.yaml --data images --run_dir command --trainer.max_epochs 2 --seed_everything 3"
    more = "--knn.k 3 --model.optimizer.lr 0.02 --model.optimizer.weight_decay 1e-3 --trainer.log_every_n_steps 1"
    assert main(["pretrain", *command.split(), *more.split(), "--trainer.accelerator", "cpu"]) == 0
    saved = torch.load("command/checkpoints/last.ckpt", weights_only=True)
    assert_same(weights(result), saved["state_dict"])

    assert (result.epochs, result.steps, result.stopped, result.size) == (2, 4, None, 16)
    assert result.checkpoint == Path("python/checkpoints/last.ckpt") and result.run_dir == Path("python")
    losses = [row["loss"] for row in result.metrics if "loss" in row]
    assert len(losses) == 4 and all(np.isfinite(losses))
    assert result.knn["trained"] == [row["knn"] for row in result.metrics if "knn" in row][-1]
    assert not result.encoder.training
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(result.encoder(images), load_encoder(result.run_dir).backbone(images))
    assert "SimCLR, 2 epochs, 4 steps" in repr(result) and "<td>SimCLR</td>" in result._repr_html_()
    files = content(Path("python"))
    again = pretrain(None, "images", **given, resume="auto")
    assert_same(weights(again), weights(result))
    assert repr(again) == repr(result) and again.report == result.report and content(Path("python")) == files


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": -5}, r"trainer\.max_epochs must be .*, got -5"),
        ({"data": "nowhere"}, r"nowhere does not exist"),
        ({"epochs": 2, "trainer": {"max_epochs": 3}}, r"trainer\.max_epochs must be given once, got it by .*"),
        ({"model": {"backbone": Net()}}, r"model\.backbone must be plain data, .* got a .*Net"),
        ({"backbone": Net(), "model": {"backbone": {"width": 8}}}, r"model\.backbone\.width must be left out with a b"),
        ({"backbone": nn.Conv2d(3, 4, 3)}, r"must give features \(n, D\), got shape"),
        ({"backbone": nn.Sequential(nn.Flatten(), nn.Linear(9, 4))}, r"Sequential cannot take images of 16 × 16 px"),
        ({"backbone": 3}, r"backbone must be a torch\.nn\.Module, .* got int"),
        ({"method": 3}, r"method must be a Method, .* got int"),
        ({"callbacks": L.Callback()}, r"callbacks must be a list of Lightning's callbacks, got <"),
        ({"augment": len}, r"augment must be left out unless data is a dataset"),
        ({"resume": "nowhere"}, r"nothing to resume: .*nowhere does not exist"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_made(given, message, folder):
    before = sorted(folder.iterdir())
    with pytest.raises(ValueError, match=message) as raised:
        pretrain(**{"data": "images", "trainer": CPU, "epochs": 1, "config": "settings.yaml", **given})
    assert "\n" not in str(raised.value) and sorted(folder.iterdir()) == before


def test_a_method_brings_all_of_a_model(folder):
    for name, value in {"recipe": "demo", "backbone": Net(), "model.optimizer.lr": 0.1}.items():
        with pytest.raises(ValueError, match=rf"{name} must be left out with a method, which has all of a model"):
            pretrain(method=simclr(), data="images", **{name: value})


def test_an_encoder_of_one_s_own_goes_on_exactly(folder, capsys):
    """With a momentum copy of it, and a learning rate for the size of the batch."""
    moco = {
        "class_path": "amcl_fast.methods.MoCo",
        "init_args": {
            "criterion": {"class_path": MoCoLoss, "init_args": {"temperature": 0.2, "backend": "reference"}},
            "projector": {"heads": 1, "hidden_dim": 16, "dim": 8}, "queue_size": 32,
            "optimizer": {"lr": 0.32, "lr_scaling": "linear"},
        },
    }  # fmt: skip
    data = {"root": "images", "size": 16, "batch_size": 8, "num_threads": 1}
    given = {"data": data, "model": moco, "epochs": 2}

    def net():
        torch.manual_seed(1)
        return Net(7)

    whole = pretrain(**given, trainer=CPU, backbone=net(), run_dir="whole")
    lr = next(row["lr"] for row in whole.metrics if "lr" in row)
    assert whole.encoder.feature_dim == 7 and lr == pytest.approx(0.32 * 8 / 256)
    again = "go on with amcl_fast.pretrain(resume='begun', backbone=…)"
    assert stop(1, **given, backbone=net(), run_dir="begun").endswith(again)
    result = pretrain(resume="begun", backbone=Net(7).eval())  # as the run before has left its own
    assert_same(weights(result), weights(whole))
    with pytest.raises(ValueError, match=r"begun was begun from Python with backbone=… \(.*Net\)"):
        pretrain(resume="begun", epochs=3)
    with pytest.raises(ValueError, match=r"backbone must be of .*Net, with which begun was begun, got .*Flatten"):
        pretrain(resume="begun", backbone=nn.Flatten(), epochs=3)
    capsys.readouterr()
    for goes_on in (["--resume", "begun"], ["--run_dir", "begun", "--resume", "auto"]):
        assert main(["pretrain", *goes_on]) == 2
        told = capsys.readouterr().err
        assert "begun was begun from Python with backbone=…" in told and told.count("\n") == 1
    with pytest.raises(ValueError, match=r"was trained with an object as its encoder, .*Net, .* backbone=…"):
        load_encoder(Path("begun"))
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_encoder(Path("begun"), backbone=Net(7)).backbone(images), result.encoder(images))


def test_a_method_is_fitted_by_any_trainer(folder):
    """A plain loader, whose batch size the learning rate follows; what does not fit is told at the first batch."""
    settings = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **CPU}
    method = simclr(optimizer=OptimizerConfig(lr_scaling="linear", lr=0.32))
    trainer = L.Trainer(**settings, enable_model_summary=False)
    trainer.fit(method, DataLoader(Views(), batch_size=8))
    assert trainer.optimizers[0].param_groups[0]["initial_lr"] == pytest.approx(0.32 * 8 / 256)
    moco = MoCo(MoCoLoss(0.2, backend="reference"), queue_size=8, backbone=Net(), projector=ProjectorConfig(1, 8, 8))
    images = TensorDataset(torch.randn(16, 3, 8, 8), torch.zeros(16))
    for module, dataset, message in (
        (moco, Views(), r"queue_size must hold the keys of the largest views of a batch, 2 · 8"),
        (simclr(), images, r"batches must be \(views, labels\), .* got a tensor \(8, 3, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            L.Trainer(**settings, enable_model_summary=False).fit(module, DataLoader(dataset, batch_size=8))
    unknown = simclr(optimizer=OptimizerConfig(lr_scaling="sqrt"))
    batches = [([torch.randn(8, 3, 8, 8)] * 2, torch.zeros(8))]
    with pytest.raises(ValueError, match=r"lr_scaling must be none where neither loader nor data module has a batch"):
        L.Trainer(**settings, enable_model_summary=False).fit(unknown, batches)


def test_ctrl_c_before_the_first_step(folder):
    before = signal.getsignal(signal.SIGINT)
    assert stop(-1, data="images", epochs=2, run_dir="none") == "stopped; nothing was saved"
    assert signal.getsignal(signal.SIGINT) is before


def test_it_works_outside_the_main_thread_and_tells_a_run_that_failed(folder, monkeypatch):
    """Where no handler can be set; a loss that is not finite is an error with the step in it."""
    monkeypatch.setenv("HOME", str(folder))
    found: list[object] = []

    def work():
        found.append(train(data=Stateful(), method=simclr(), epochs=1, run_dir="~/run").steps)
        broken = [([torch.full((8, 3, 8, 8), float("nan"))] * 2, torch.zeros(8, dtype=torch.int64))] * 2
        try:
            train(data=broken, method=simclr(), epochs=1, run_dir="nan")
        except RunError as error:
            found.append(str(error)[:39])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [3, "step 0, epoch 0: the loss is not finite"]
    assert Path("run/config.yaml").is_file() and not Path("~").exists()


def test_a_framework_of_one_s_own(folder, monkeypatch):
    """The example, by the command and by a call; as an object its encoder is read back without knowing of it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import own_framework

    settings = {"data": "images", "data.size": 16, "batch_size": 8, "trainer": CPU}
    backbone, heads = {"stem": "small", "width": 8}, {"heads": 1, "hidden_dim": 16, "dim": 8}
    model = {"variance": 10, "backbone": backbone, "projector": heads}
    result = pretrain(method=own_framework.VICReg, model=model, epochs=2, run_dir="call", **settings)
    assert {"invariance", "variance", "covariance"} <= {name for row in result.metrics for name in row}
    assert result.method.criterion.weights == (25.0, 10, 1.0) and Path("call/snapshots/after.npz").exists()
    command = "--model own_framework.VICReg --model.variance 10 --data images --data.size 16 --data.batch_size 8"
    more = "--model.backbone.stem small --model.backbone.width 8 --model.projector.heads 1 --trainer.max_epochs 2"
    last = "--model.projector.hidden_dim 16 --model.projector.dim 8 --trainer.log_every_n_steps 1 --run_dir command"
    assert main(["pretrain", *command.split(), *more.split(), *last.split(), "--trainer.accelerator", "cpu"]) == 0
    assert_same(weights(result), torch.load("command/checkpoints/last.ckpt", weights_only=True)["state_dict"])
    assert main(["pretrain", "--resume", "command", "--trainer.max_epochs", "3"]) == 2
    assert main(["pretrain", "--resume", "command", "--trainer.max_epochs", "3", "--trust"]) == 0

    monkeypatch.delattr(own_framework.VICReg, "pairs")  # which is no must
    method = own_framework.VICReg(backbone=BackboneConfig(**backbone), projector=ProjectorConfig(**heads))
    given = pretrain(method=method, epochs=1, run_dir="object", **settings)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_encoder(Path("object")).backbone(images), given.encoder(images))
    assert not Path("object/snapshots/after.npz").exists()


def test_the_examples_of_the_page_run(folder, monkeypatch):
    """One after the other, each on a few images, of which those to download are generated."""
    page = (EXAMPLES.parent / "docs" / "python.md").read_text()
    small = {
        "trainer.accelerator": "cpu",
        "trainer.limit_train_batches": 1,
        "data.num_threads": 1,
        "knn.every_n_epochs": 0,
    }

    def few(*args, batch_size=8, trainer=None, **given):
        kind = given.get("data")
        of_images = {} if "resume" in given or isinstance(kind, DataLoader) else {"batch_size": min(batch_size, 8)}
        precision = {f"trainer.{name}": value for name, value in (trainer or {}).items()}
        narrow = {} if {"resume", "backbone", "method"} & given.keys() else {"model.backbone.width": 8}
        return pretrain(*args, **{**given, **of_images, **precision, **small, **narrow})

    class Generated(FakeData):
        def __init__(self, root, train, download):
            super().__init__(16, (3, 32, 32), 2)
            self.targets = [place % 2 for place in range(16)]

    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(builtin, "SPLITS", {"train": 2, "test": 1})
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Generated)
    monkeypatch.setattr("amcl_fast.pretrain", few)
    monkeypatch.setenv("AMCL_FAST_CACHE", str(folder / "cache"))
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "images").rename(folder / "path" / "to" / "images")
    space: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code.replace("batch_size=64, shuffle", "batch_size=8, shuffle"), space)
    assert torch.equal(space["encoder"](torch.ones(1, 3, 32, 32)), space["encoder"](torch.ones(1, 3, 32, 32)))
    assert space["result"].run_dir == Path("runs/vicreg") and space["trainer"].global_step == 2


def test_the_loss_of_the_example_is_that_of_its_paper(monkeypatch):
    """Two rows, worked out by hand."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import own_framework

    x, y = torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.tensor([[1.0, 1.0], [4.0, 1.0]])
    loss = own_framework.VICRegLoss()
    total = loss(x, y)
    variance = ((1 - 0.5001**0.5) + (1 - 0.01)) / 2 + (0 + (1 - 0.01)) / 2
    assert loss.last_stats["invariance"].item() == pytest.approx((1 + 9) / 4)
    assert loss.last_stats["variance"].item() == pytest.approx(variance, abs=1e-6)
    assert loss.last_stats["covariance"] == 0
    assert total.item() == pytest.approx(25 * 2.5 + 25 * variance, abs=1e-4)
    tilted = torch.tensor([[0.0, 0.0], [2.0, 3.0]])  # covariance 3, squared and for both orders, over two columns
    loss(tilted, tilted)
    assert loss.last_stats["covariance"].item() == pytest.approx(2 * (2 * 9) / 2)
