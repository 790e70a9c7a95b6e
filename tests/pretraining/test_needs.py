"""What a training needs is estimated before it begins: bytes and operations by hand, and the line that tells it."""

import os
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from amcl_fast.cli import main
from amcl_fast.data import ContrastiveDataModule
from amcl_fast.data.scan.largest import Largest
from amcl_fast.pretraining import needs
from tests.helpers.command_line import NT_XENT, image_folder


def test_bytes_and_operations_of_an_encoder_as_worked_out_by_hand():
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    encoder[1].eval()
    # The convolution keeps the image, the linear layer what ReLU has made of it, which ReLU keeps too: once.
    assert needs.of_an_image(encoder, 8) == (4 * (3 * 64 + 4 * 64), 2 * (4 * 3 * 9 * 64 + 256 * 5))
    assert [part.training for part in encoder] == [True, False, True, True]
    assert next(encoder.parameters()).device.type == "cpu"


def test_nothing_of_an_encoder_changes():
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    needs.of_an_image(encoder, 8)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "images", 8, 2)
    Path("settings.yaml").write_text(NT_XENT + "trainer: {max_epochs: 3, accelerator: cpu, log_every_n_steps: 1}")
    return ["pretrain", "--config", "settings.yaml", "--data", "images", "--run_dir", "run", "--trainer.fast_dev_run=1"]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_what_is_too_much_is_told_in_one_line_before_work(start, monkeypatch):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(needs up to|training takes)")
        assert main(start) == 0
    monkeypatch.setattr(needs, "_ram", lambda: 2.0**20)
    monkeypatch.setattr(needs, "_CORE", 1e-3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.warns(UserWarning, match="needs up to") as told:
        assert main(start) == 0
    (line,) = [str(warning.message) for warning in told if "needs up to" in str(warning.message)]
    assert re.fullmatch(
        r"data\.batch_size 8 of 16 px needs up to 0 GiB for the backward pass, and there are 0 GiB: more "
        r"trainer\.devices or a smaller data\.batch_size take less, .*; training takes about [\d,]+ days on 2 CPU "
        r"cores \(3 × [\d.e-]+ GFLOP × 2 views × 48 images at 1e-12 GFLOP/s a core\)",
        line,
    ), line


def test_more_processes_than_cores_are_told(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    length = {"max_epochs": 1, "max_steps": -1, "limit_train_batches": 1.0, "accumulate_grad_batches": 1}
    place = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(strategy=place, num_devices=8, world_size=8, precision="32-true", **length)
    data = SimpleNamespace(size=16, view_sizes=[16, 16], batch_size=8, num_train=16, overfit_batches=0)
    with pytest.warns(UserWarning, match="starts 8 processes on 2 CPU cores, for torch finds no GPU: they take turns$"):
        needs.warn_of_needs(trainer, None, data)


@pytest.mark.parametrize(
    ("settings", "images"),
    [
        ({}, 3 * 96),
        ({"limit_train_batches": 2}, 3 * 16),
        ({"limit_train_batches": 0.5}, 3 * 48),
        ({"max_steps": 4, "accumulate_grad_batches": 2}, 64),
        ({"max_epochs": -1, "max_steps": 5}, 40),
    ],
)
def test_how_many_images_a_training_goes_through(settings, images):
    given = {"max_epochs": 3, "max_steps": -1, "limit_train_batches": 1.0, "accumulate_grad_batches": 1}
    data = SimpleNamespace(batch_size=8, num_train=100, overfit_batches=0)
    assert needs._images(SimpleNamespace(**{**given, **settings}), data) == images


def test_a_batch_of_images_that_does_not_fit_is_told_with_what_bounds_it(monkeypatch):
    monkeypatch.setattr(needs, "_ram", lambda: 8.0 * 2**30)
    length = {"max_epochs": 1, "max_steps": -1, "limit_train_batches": 1.0, "accumulate_grad_batches": 1}
    place = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(strategy=place, num_devices=1, world_size=1, precision="32-true", **length)

    def told(above, pixels):
        data = ContrastiveDataModule("photos", batch_size=32, reduce_above=above, device="cpu", num_threads=2)
        data._largest = Largest.of([pixels] * 40, [30_000_000] * 40)
        data._train = SimpleNamespace(files=range(40))
        data._query = data._train
        with warnings.catch_warnings(record=True) as lines:
            warnings.simplefilter("always")
            needs.warn_of_needs(trainer, None, data)
        return [str(line.message) for line in lines]

    assert told(None, 100_000_000) == [
        "should the largest images of photos meet in a batch of 32, they take up to 13 GiB decoded, 4 GiB read ahead, "
        "and there are 8 GiB: data.reduce_above (now null), data.max_image_pixels, data.max_image_bytes or "
        "data.batch_size bounds it"
    ]
    assert told(2_000_000, 100_000_000) == []  # of 8 megapixels at the most, 4 GiB in all
    assert told(None, 2_000_000) == []


def test_the_smallest_of_the_groups_is_what_there_is(tmp_path, monkeypatch):
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for version, (controllers, file) in {"one": ("memory", "memory.limit_in_bytes"), "two": ("", "memory.max")}.items():
        monkeypatch.setattr(needs, "_GROUPS", {controllers: (tmp_path / version, file)})
        monkeypatch.setattr(needs, "_GROUPS_OF_THIS", tmp_path / "cgroup")
        (tmp_path / "cgroup").write_text(f"7:cpu:/job/step\n3:{controllers}:/job/step\n")
        (tmp_path / version / "job/step").mkdir(parents=True)
        assert needs._ram() == there
        (tmp_path / version / "job/step" / file).write_text("max\n")
        assert needs._ram() == there
        (tmp_path / version / "job" / file).write_text("5000000\n")
        assert needs._ram() == 5e6
