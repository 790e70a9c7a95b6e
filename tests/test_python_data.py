"""Data that a run from Python is given: datasets of images, augmentations, loaders, data modules."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from amcl_fast import pretrain
from amcl_fast.data.own.datasets import AugmentedLoader, DatasetModule
from amcl_fast.data.own.items import Items
from amcl_fast.data.scan.images import Images
from amcl_fast.optim import OptimizerConfig
from amcl_fast.runs.read import read_run
from tests.helpers.command_line import NT_XENT, image_folder
from tests.helpers.from_python import Column, Own, Stateful, Views, assert_same, crop, simclr, stop, train, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text(NT_XENT)
    return tmp_path


class Named(list):
    """Items with labels and names of classes beside them."""

    def __init__(self, items, targets, classes):
        super().__init__(items)
        self.targets, self.classes = targets, classes


def loader(dataset=None):
    return DataLoader(dataset or Views(), batch_size=8, shuffle=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": 3}, r"data must be a path, .* got int"),
        ({"data": Column(), "data.root": "images"}, r"data\.root must be left out where data is a .*Column"),
        ({"data": Column(0)}, r"data must have images, got a .*Column without any"),
        ({"data": Column(bad=(0,))}, r"data must give images by place, got an error of .*Column\[0\]: OSError: trunca"),
        ({"data": TensorDataset(torch.randn(4, 3, 8, 8))}, r"pixels from 0 to 255 as uint8, .* got float32 from -"),
        ({"data": Column(), "augment": [crop]}, r"augment must be a function, or one for each of two views"),
        ({"data": Column(), "augment": np.asarray}, r"augment must give float tensors \(3, S, S\), got numpy\.ndarray"),
        ({"data": Column(), "augment": crop, "data.views": 3}, r"data\.views must be left out with augment"),
        (
            {"data": Column(), "augment": crop, "data.size": 9},
            r"data\.size must be 8, .* or unset, got 9",
        ),
        ({"data": Column(), "evaluation": loader()}, r"evaluation must be a dataset of held-out images"),
        ({"data": iter(())}, r"data must give its batches anew in every epoch"),
        ({"data": loader(TensorDataset(torch.randn(8, 3, 8, 8)))}, r"batches \(views, labels\): .* got list of 1"),
        ({"data": loader(), "batch_size": 4}, r"data\.batch_size must be left out .* is 8 in its batches, got 4"),
        ({"data": loader(), "data.limit": 4}, r"data\.limit must be left out .* is for images, not for batches, got 4"),
        ({"data": loader(), "evaluation": Column()}, r"evaluation must be two datasets"),
        ({"data": loader(), "augment": crop}, r"augment must be left out where data gives batches"),
        ({"data": loader(), "trainer.overfit_batches": 1}, r"trainer\.overfit_batches must be 0 with a loader"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_made(given, message, folder):
    before = sorted(folder.iterdir())
    with pytest.raises(ValueError, match=message) as raised:
        train(epochs=1, method=simclr(), **given)
    assert "\n" not in str(raised.value) and sorted(folder.iterdir()) == before


def test_a_dataset_is_trained_on_as_its_folder_is(folder):
    """The same images in the same order give the same weights, and the same is measured."""
    image_folder(folder / "images", 8, 2, ".png")
    one = train(data="images", epochs=2, run_dir="folder")
    parts = [ImageFolder(f"images/{part}") for part in ("train", "test")]
    other = train(data=parts[0], evaluation=parts[1], epochs=2, run_dir="dataset")
    assert_same(weights(other), weights(one))
    assert other.knn == one.knn and other.knn["trained"] is not None


def test_rows_of_columns_go_on_exactly(folder):
    """With an image that cannot be read; a tenth of each class is held out."""
    given = {"data": Column(22, bad=(3,)), "data.size": 8, "batch_size": 8, "epochs": 2}
    whole = train(**given, method=simclr(), run_dir="whole")
    assert whole.knn["trained"] is not None
    assert "data[3]\tfound during the run: OSError: truncated" in Path("whole/skipped_files.txt").read_text()
    assert "go on with" in stop(1, **given, method=simclr(), run_dir="begun")
    again = pretrain(resume="begun", data=given["data"], method=simclr())
    assert_same(weights(again), weights(whole))


class Old(TensorDataset):
    """As torchvision's older ones: tensors with targets."""

    classes = ("cat", "dog")

    def __init__(self):
        super().__init__(torch.arange(48).view(4, 3, 2, 2) / 48)
        self.targets = torch.tensor([1, 0, 1, 1])


def test_images_labels_and_classes_of_datasets():
    for dataset, labels, classes in (
        (Column(4), [0, 1, 0, 1], ["0", "1"]),
        (Subset(Column(9), [8, 1]), [0, 1], ["0", "1"]),
        (TensorDataset(torch.zeros(2, 1, 4, 4), torch.tensor([2, 0])), [2, 0], ["0", "1", "2"]),
        (Old(), [1, 0, 1, 1], ["cat", "dog"]),
        ([(Image.new("RGB", (3, 3)), 1)], None, []),
        ([np.zeros((4, 4), np.uint8)], None, []),
    ):
        items = Items(dataset)
        assert items.labels is None if labels is None else items.labels.tolist() == labels
        assert items.classes == classes
    assert np.asarray(Items(Old()).picture(1))[0, 1].tolist() == [round(255 * at / 48) for at in (13, 17, 21)]


@pytest.mark.parametrize(
    ("names", "held_out", "labels"),
    [
        (None, None, [1, -1, 0]),  # of classes 0 and 1, by number
        (["cat", "dog"], None, [1, -1, 0]),
        (["cat", "dog"], ["bee", "cat", "dog"], [0, 1, -1]),
    ],
)
def test_held_out_images_have_the_classes_that_are_trained_on(names, held_out, labels, caplog):
    train, queries = [(Image.new("RGB", (4, 4)), 0)] * 4, [(Image.new("RGB", (4, 4)), 0)] * 3
    of_train = Items(Named(train, [0, 1, 0, 1], names))
    module = DatasetModule(of_train, Items(Named(queries, [1, 2, 0], held_out)), root="", size=4, batch_size=2)
    module.setup("fit")
    assert module.classes == (names or ["0", "1"])
    assert module.measured_images()[1] == 2 and "of no class of data, and so are not measured: 1" in caplog.text
    assert module._query.labels.tolist() == labels


def test_views_of_one_s_own_are_the_same_whoever_makes_them(folder):
    """In worker processes, whose number may change; a run that was stopped goes on with the next batch's."""
    given = {"data": Column(), "augment": crop, "batch_size": 4, "knn": {"every_n_epochs": 0}}
    whole = train(**given, method=simclr(), epochs=2, run_dir="whole", **{"data.num_threads": 2})
    assert whole.size == 8 and whole.steps == 8
    given["data.num_threads"] = 1
    stop(2, **given, method=simclr(), epochs=2, run_dir="begun")
    del given["batch_size"]
    again = train(**given, method=simclr(), resume="begun")
    assert_same(weights(again), weights(whole))


@pytest.mark.parametrize(("done", "left"), [(4, 3), (5, 2)])
def test_views_of_other_images_go_on_in_the_same_epoch(done, left, caplog):
    """After two epochs of two batches, and one batch more, with images for three batches an epoch."""

    def of(count):
        items = Items(Column(count))
        images = Images([items.location(place) for place in range(count)], [0] * count, [])
        return AugmentedLoader(items, images, [crop], 4, seed=0, share=0, shares=1, workers=0)

    loader = of(13)
    loader.load_state_dict({**of(9).state_dict(), "done": done})
    assert sum(1 for _ in loader) == left and sum(1 for _ in loader) == 3
    assert "their order is another" in caplog.text


def test_batches_of_a_data_module_go_on_exactly_after_an_epoch(folder, capsys):
    optimizer = OptimizerConfig(lr_scaling="linear", lr=0.32)
    whole = train(data=Own(), method=simclr(optimizer=optimizer), epochs=2, run_dir="whole")
    assert whole.metrics[0]["lr"] == pytest.approx(0.32 * 8 / 256) and whole.steps == 6
    assert "kNN is not measured: batches come from a loader" in capsys.readouterr().out
    stop(2, data=Own(), method=simclr(optimizer=optimizer), epochs=2, run_dir="begun")
    again = pretrain(resume="begun", data=Own(), method=simclr(optimizer=optimizer))
    assert_same(weights(again), weights(whole))


def test_batches_of_a_loader_with_a_state_go_on_exactly(folder):
    whole = train(data=Stateful(), method=simclr(), epochs=2, run_dir="whole")
    assert read_run(whole.run_dir).facts["training_images"] is None  # and nothing in it is damaged
    told = stop(1, data=Stateful(), method=simclr(), epochs=2, run_dir="begun")
    assert told == "stopped, and saved; go on with amcl_fast.pretrain(resume='begun', method=…, data=…)"
    again = pretrain(resume="begun", data=Stateful(), method=simclr())
    assert again.steps == 6
    assert_same(weights(again), weights(whole))


def test_batches_of_a_loader_without_a_state_are_drawn_anew_within_an_epoch(folder):
    stop(1, data=loader(), method=simclr(), epochs=2, run_dir="begun")
    with pytest.warns(UserWarning, match="your dataloader is not resumable"):
        again = pretrain(resume="begun", data=loader(), method=simclr())
    assert again.steps == 6


def test_batches_of_a_loader_are_measured_on_datasets(folder):
    """With a recipe's settings of views, which have no meaning then."""
    Path("views.yaml").write_text("data: {views: [{count: 2}, {count: 2, size: 8}], limit: 3}")
    given = {"config": "views.yaml", "evaluation": (Column(), Column(10))}
    result = train(data=loader(), **given, method=simclr(), epochs=1, run_dir="run")
    assert all(value is not None for value in result.knn.values())
