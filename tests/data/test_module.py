"""amcl_fast.data.module: from a folder or a name to loaders."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from amcl_fast.data import Augmentation, ContrastiveDataModule, module
from amcl_fast.data.sources import named
from tests.helpers.loaders import pixels_and_labels, prepared
from tests.helpers.small_shards import noise, samples


def test_a_folder_with_a_test_part(make_folder):
    root = make_folder("set/train", per_class=8).parent
    make_folder("set/test", per_class=2)
    (root / "train" / "ant" / "bad.png").write_text("text")
    (root / "test" / "cow" / "bad.png").write_text("text")
    data = prepared(root)
    assert data.classes == ["ant", "bee", "cow"]
    assert (data.num_classes, data.num_train, data.channels) == (3, 24, 3)
    assert [Path(path).parent.name for path, _ in data.skipped] == ["ant", "cow"]
    batches = list(data.train_dataloader())
    assert len(batches) == 6
    bank, query = data.features_loaders()
    images, labels = pixels_and_labels(bank)
    assert images.shape == (24, 3, 8, 8)
    assert labels.bincount().tolist() == [8, 8, 8]
    assert pixels_and_labels(query)[1].tolist() == [0, 0, 1, 1, 2, 2]


def test_val_is_held_out_too_and_names_decide_the_labels(make_folder):
    root = make_folder("set/train", per_class=4).parent
    make_folder("set/val", per_class=1, classes=("cow", "dog"))
    data = prepared(root)
    _, query = data.features_loaders()
    assert pixels_and_labels(query)[1].tolist() == [2]
    assert [reason for _, reason in data.skipped] == ["its class 'dog' is not one of the training classes"]


def test_without_a_test_part_a_tenth_of_every_class_is_held_out(make_folder):
    root = make_folder(per_class=20)
    data, other_seed = prepared(root), prepared(root, seed=1)
    bank, query = (pixels_and_labels(loader) for loader in data.features_loaders())
    assert data.num_train == 54
    assert bank[1].bincount().tolist() == [18] * 3
    assert query[1].bincount().tolist() == [2] * 3
    together = torch.cat([bank[0], query[0]])[:, :, 0, 0]
    assert len(together.unique(dim=0)) == 60
    assert torch.equal(query[0], pixels_and_labels(other_seed.features_loaders()[1])[0])


def test_limit_takes_the_same_balanced_subset_every_time(make_folder):
    root = make_folder("set/train", per_class=20).parent
    make_folder("set/test", per_class=2)
    data = prepared(root, limit=8)
    assert data.num_train == 8
    images, labels = pixels_and_labels(data.features_loaders()[0])
    assert sorted(labels.bincount().tolist()) == [2, 3, 3]
    assert torch.equal(images, pixels_and_labels(prepared(root, limit=8, seed=5).features_loaders()[0])[0])
    assert prepared(root, limit=1000).num_train == 60


def test_unlabelled_images_are_trained_on_but_are_in_no_bank(make_folder):
    root = make_folder("set/train", per_class=2).parent
    make_folder("set/test", per_class=2)
    make_folder("set/unlabeled", per_class=4)
    data = prepared(root, batch_size=6)
    assert data.num_train == 18
    assert data.num_classes == 3
    labels = torch.cat([labels for _, labels in data.train_dataloader()])
    assert (labels == -1).sum() == 12
    assert pixels_and_labels(data.features_loaders()[0])[1].bincount().tolist() == [2, 2, 2]


def test_a_file_found_bad_in_the_run_is_listed_and_left_out_of_the_bank(make_folder, caplog):
    root = make_folder("set/train", per_class=4).parent
    make_folder("set/test", per_class=1)
    data = prepared(root)
    victim = root / "train" / "bee" / "002.png"
    victim.unlink()
    assert sum(len(labels) for _ in range(2) for _, labels in data.train_dataloader()) == 24
    assert [path for path, _ in data.skipped] == [str(victim)]
    assert pixels_and_labels(data.features_loaders()[0])[1].bincount().tolist() == [4, 3, 4]
    assert len(list(data.train_dataloader())) == 3
    assert len(data.skipped) == 1
    assert [record.message for record in caplog.records] == [f"{victim}: found during the run: no such file"]


def test_what_another_process_has_listed_is_listed_once_and_many_bad_files_at_once(make_folder):
    data = prepared(make_folder())
    data._note_bad_file("/data/0.jpg", "of a test")
    data.skipped[:] = [("/data/1.jpg", "of a test"), ("/data/0.jpg", "of a test")]
    for number in (0, 1, 2, 2):
        data._note_bad_file(f"/data/{number}.jpg", "of a test")
    assert [path for path, _ in data.skipped] == ["/data/1.jpg", "/data/0.jpg", "/data/2.jpg"]

    class Long(list):
        def __contains__(self, entry):
            raise AssertionError("the whole list is looked through for each file")

    data.skipped = Long(data.skipped)
    data._note_bad_file("/data/3.jpg", "of a test")
    assert len(data.skipped) == 4


def test_views_by_number_and_letters_or_one_by_one(make_folder):
    root = make_folder()
    assert prepared(root, views=3, augmentation="ab").views == [Augmentation.from_letters("ab")] * 3
    own = [Augmentation(blur=1.0), Augmentation(blur=0.1)]
    assert prepared(root, views=own).views == own
    ((views, _), *_) = prepared(root, views=3).train_dataloader()
    assert len(views) == 3


def test_the_builtin_and_downloaded_sets_are_prepared_by_name(make_folder, monkeypatch):
    root = make_folder()
    made = {"cifar10": root, "stl10": make_folder("parts/test", 2).parent}
    make_folder("parts/train", 3)
    monkeypatch.setattr(named, "prepare_download", made.__getitem__)
    assert prepared("cifar10").num_classes == 3
    # Of what has parts the held-out one is measured on.
    assert prepared("cifar10", held_out="stl10").measured_images()[1] == 6
    builtin = type(sys)("amcl_fast.data.sources.builtin")
    builtin.prepare_builtin = lambda: root
    monkeypatch.setitem(sys.modules, "amcl_fast.data.sources.builtin", builtin)
    assert prepared("builtin").num_classes == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"device": "cuda"}, "device must be 'auto', 'cpu' or 'gpu', got 'cuda'"),
        ({"views": 1}, "views must be at least 2 and at most 256, got 1"),
        ({"std": (1.0, 0.0, 1.0)}, r"data.std must be three numbers .* above 0, got \[1.0, 0.0, 1.0\]$"),
        ({"std": (0.2, float("nan"), 0.2)}, r"data.std must be .*, got \[0.2, nan, 0.2\]$"),
        ({"mean": (0.5, float("inf"), 0.5)}, r"data.mean must be .*, got \[0.5, inf, 0.5\]$"),
        ({"mean": (-0.1, 0.5, 0.5)}, r"data.mean must be .* at least 0, got \[-0.1, 0.5, 0.5\]$"),
        ({"mean": (0.5, 0.5)}, r"data.mean must be three numbers .*, got \[0.5, 0.5\]$"),
        (
            {"mean": (123.7, 116.3, 103.5)},
            r"data.mean must be three numbers of pixels in \[0, 1\], at least 0, got \[123.7, 116.3, 103.5\]; "
            r"divided by 255: \[0.4851, 0.4561, 0.4059\]$",
        ),
        ({"std": (58.4, 57.1, 57.4)}, r"got \[58.4, 57.1, 57.4\]; divided by 255: \[0.229, 0.2239, 0.2251\]$"),
        ({"std": (58.0, 57.0, 0.0)}, r"above 0, got \[58.0, 57.0, 0.0\]$"),
        ({"mean": (0.5, 0.5, 1.5)}, r"at least 0, got \[0.5, 0.5, 1.5\]$"),
        ({"augmentation": "x"}, "augmentation must be letters out of .* got 'x'"),
        ({"crop_pct": 0.0}, r"crop_pct must be at least 0.01 and at most 1, got 0.0"),
        ({"held_out": "a", "evaluation": "b"}, "data.held_out must be unset beside data.evaluation, .*, got a"),
        ({"crop_pct": 1.1}, r"crop_pct must be at least 0.01 and at most 1, got 1.1"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveDataModule(**options)


def test_errors_name_what_is_wrong_with_the_data(make_folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nowhere does not exist; expected"):
        prepared(tmp_path / "nowhere")
    with pytest.raises(RuntimeError, match="call setup"):
        ContrastiveDataModule().train_dataloader()
    data = prepared(make_folder())
    monkeypatch.setattr(module, "world", lambda: (0, 3))
    with pytest.raises(ValueError, match="batch_size must divide by the 3 processes, got 4"):
        data.train_dataloader()
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"data\.device must be cpu or auto .*, got gpu"):
            prepared(tmp_path / "images", device="gpu").train_dataloader()


def test_every_setting_can_come_from_a_command_line_or_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ContrastiveDataModule, "data")
    config = parser.parse_args(
        [
            "--data.size=64",
            "--data.views=[{blur: 1.0, crop_scale: [0.2, 1.0]}, {flip: 0.0}]",
            "--data.mean=[0, 0, 0]",
        ]
    )
    data = parser.instantiate(config).data
    assert data.views == [Augmentation(blur=1.0, crop_scale=(0.2, 1.0)), Augmentation(flip=0.0)]
    assert (data.size, data.mean) == (64, (0.0, 0.0, 0.0))
    data = parser.instantiate(parser.parse_args(["--data.views=3", "--data.augmentation=ae"])).data
    assert data.views == [Augmentation.from_letters("ae")] * 3


class Recorder(lightning.LightningModule):
    """Keeps the first view of every batch, and saves a checkpoint after a given one."""

    def __init__(self, save_after=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.save_after, self.seen = save_after, []

    def training_step(self, batch, number):
        (first, _), _ = batch
        self.seen.append(first.clone())
        return self.weight * first.mean()

    def on_train_batch_end(self, *arguments):
        if len(self.seen) == self.save_after:
            self.trainer.save_checkpoint("middle.ckpt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def make_source(make_folder, make_shards, tmp_path):
    """27 images of the kind that is asked for."""

    def make(kind):
        if kind == "shards":
            return make_shards({f"{n}.tar": samples(range(9 * n, 9 * n + 9), content=noise) for n in range(3)})
        root = make_folder(per_class=9)
        if kind == "list":
            lines = [f"images/{path.parent.name}/{path.name}\t{path.parent.name}" for path in root.glob("*/*")]
            (tmp_path / "list.txt").write_text("\n".join(sorted(lines)))
            return tmp_path / "list.txt"
        if kind == "unlabelled":
            for number, path in enumerate(root.glob("*/*")):
                path.rename(root / f"{number}.png")
        return root

    return make


@pytest.mark.parametrize(
    ("kind", "stop"), [("folder", 2), ("folder", 6), ("folder", 8), ("unlabelled", 3), ("list", 9), ("shards", 8)]
)
def test_lightning_resumes_in_the_middle_of_an_epoch(make_source, tmp_path, monkeypatch, kind, stop):
    monkeypatch.chdir(tmp_path)
    root = make_source(kind)
    options = {"accelerator": "cpu", "max_epochs": 3, "logger": False, "enable_checkpointing": False}
    options |= {"enable_progress_bar": False, "enable_model_summary": False}
    whole = Recorder(stop)
    lightning.Trainer(**options).fit(whole, datamodule=prepared(root))
    resumed = Recorder()
    lightning.Trainer(**options).fit(resumed, datamodule=prepared(root), ckpt_path="middle.ckpt", weights_only=True)
    assert len(whole.seen) == 18
    assert len(resumed.seen) == 18 - stop
    assert all(torch.equal(a, b) for a, b in zip(resumed.seen, whole.seen[stop:], strict=True))


@pytest.mark.parametrize(
    ("dtype", "precision", "device", "expected"),
    [
        ("auto", None, "cpu", "float32"),
        ("auto", "bf16-mixed", "cpu", "float32"),
        ("auto", "32-true", "gpu", "float32"),
        ("auto", "64-true", "gpu", "float32"),
        ("auto", None, "gpu", "float32"),
        ("float32", "16-true", "gpu", "float32"),
        ("float16", None, "cpu", "float16"),
        ("float16", "32-true", "cpu", "float16"),
        *[("auto", precision, "gpu", "float16") for precision in ("16-mixed", "bf16-mixed", "16-true", "bf16-true")],
    ],
)
def test_views_are_halved_where_the_training_is(make_folder, monkeypatch, dtype, precision, device, expected):
    data = prepared(make_folder(), dtype=dtype, batch_size=4)
    if precision is not None:
        data.trainer = SimpleNamespace(precision=precision)
    output = data._output
    monkeypatch.setattr(data, "_output", lambda size: replace(output(size), device=device))
    assert data.train_dataloader()._output.dtype == expected
    assert data.linear_probe_loader()._loader._output.dtype == "float32"
    assert {loader._output.dtype for loader in data.features_loaders()} == {"float32"}


def test_a_pool_is_for_shards(make_source):
    with pytest.raises(ValueError, match=r"data.shuffle_pool must be null where images are files.* got 8"):
        prepared(make_source("folder"), shuffle_pool=8)
    with pytest.raises(ValueError, match="shuffle_pool must be at least 1, got 0"):
        prepared(make_source("shards"), shuffle_pool=0)
    assert prepared(make_source("shards"), shuffle_pool=8).train_dataloader()._order.ahead == 2


def test_a_position_does_not_depend_on_the_precision_of_the_views(make_folder):
    folder = make_folder()
    whole, half = (prepared(folder, dtype=dtype, batch_size=4).train_dataloader() for dtype in ("float32", "float16"))
    iterator = iter(whole)
    next(iterator)
    half.load_state_dict(whole.state_dict())
    for (float32, labels), (float16, same) in zip(iterator, half, strict=True):
        assert torch.equal(labels, same)
        assert all(torch.equal(a.half(), b) for a, b in zip(float32, float16, strict=True))


def test_values_for_which_half_precision_has_no_room(make_folder):
    data = prepared(make_folder(), dtype="float16", std=(1e-6, 1.0, 1.0), batch_size=4)
    with pytest.raises(ValueError, match=r"data.dtype must be float32 for data.std .*, got float16"):
        data.train_dataloader()
    with pytest.raises(ValueError, match=r"data.dtype must be auto, float32 or float16, got 'half'"):
        prepared(make_folder("other"), dtype="half")


def test_importing_needs_no_extras_and_a_missing_dali_is_named():
    code = """
import sys
import amcl_fast.data.scan.classes
assert not {"nvidia.dali", "lightning", "torchvision"} & set(sys.modules)
assert not hasattr(amcl_fast.data, "anything_else")
sys.modules["nvidia.dali"] = None  # as if it were not installed
from amcl_fast.data import ContrastiveDataModule
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == (
        "ImportError: the data pipeline needs NVIDIA DALI: pip install 'amcl-fast[train]'; train-cuda12 in place of "
        "train beside CUDA 12"
    )


def test_image_files_of_mixed_kinds_train(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "mixed" / label).mkdir(parents=True)
        for number, (suffix, mode) in enumerate([("jpg", "RGB"), ("jpg", "CMYK"), ("png", "LA"), ("webp", "RGB")] * 2):
            shape = tuple(rng.integers(1, 60, 2))
            image = Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).convert(mode)
            image.save(tmp_path / "mixed" / label / f"{number}.{suffix}")
    data = prepared(tmp_path / "mixed", augmentation="abcde")
    assert data.skipped == []
    assert all(view.isfinite().all() for views, _ in data.train_dataloader() for view in views)


def test_what_is_not_used_is_told_once(make_folder, caplog):
    root = make_folder("set/train", per_class=2).parent
    make_folder("set/test", per_class=1, classes=("dog",))
    data = prepared(root)
    data.prepare_data()
    data.setup("fit")
    assert [record.message for record in caplog.records] == [
        f"{root}/test is not used as the held-out part: its folders (dog) are not of the classes that are trained on "
        "(ant, bee, cow)"
    ]
    assert len(pixels_and_labels(data.features_loaders()[1])[1]) == 3
