from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from amcl_fast.data import ContrastiveDataModule
from amcl_fast.data.sources.download import prepare_download


class Fake:
    """Stands for a torchvision data set: six images, two of each class or none labelled."""

    classes = ("cat", "dog", "maple tree")
    made: ClassVar[list[str]] = []

    def __init__(self, root, train=None, split=None, download=False):
        assert download
        Fake.made.append(root)
        Path(root).mkdir(parents=True, exist_ok=True)
        self.labelled = split != "unlabeled"

    def __iter__(self):
        pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
        return ((Image.fromarray(pixels[n]), n % 3 if self.labelled else -1) for n in range(6))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    Fake.made = []
    for name in ("CIFAR10", "CIFAR100", "STL10"):
        monkeypatch.setattr(torchvision.datasets, name, Fake)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_data_set_is_fetched_once_and_kept_as_a_folder_of_classes(name, own_cache):
    folder = prepare_download(name)
    assert folder == own_cache / "datasets" / name
    assert len(list(folder.glob("train/maple tree/*.png"))) == 2
    assert len(list(folder.glob("test/*/*.png"))) == 6
    assert prepare_download(name) == folder
    assert len(Fake.made) == 2
    assert [path.name for path in folder.parent.iterdir()] == [name]  # the archive is gone
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    assert np.array_equal(np.asarray(Image.open(folder / "train" / "cat" / "000003.png")), pixels[3])


def test_stl10_trains_on_its_unlabelled_images_too():
    data = ContrastiveDataModule(root="stl10", batch_size=4, device="cpu")
    data.prepare_data()
    data.setup("fit")
    assert data.num_train == 12
    assert data.classes == ["cat", "dog", "maple tree"]
    bank, query = data.features_loaders()
    assert [len(labels) for _, labels in bank] == [4, 2]
    assert [len(labels) for _, labels in query] == [4, 2]


def test_a_failed_download_names_the_remedies_and_leaves_nothing(monkeypatch, own_cache):
    def offline(*arguments, **options):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(ConnectionError, match=r"cifar10 could not be .*not known.*ROOT/train/CLASS.*'builtin'"):
        prepare_download("cifar10")
    assert list((own_cache / "datasets").iterdir()) == []


def test_another_name_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of .*, got 'mnist'"):
        prepare_download("mnist")
