"""amcl_fast.data.sources.builtin: complete, repeatable, safe to interrupt, and of no use to raw pixels."""

import multiprocessing
import time

import numpy as np
import pytest
import torch
from PIL import Image

from amcl_fast.data.sources import builtin
from amcl_fast.data.sources.textures import TEXTURES, draw
from amcl_fast.evaluate import knn_accuracy


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return builtin.prepare_builtin(tmp_path_factory.mktemp("cache"))


def read(folder, per_class):
    """Images (N, pixels), in [-1, 1], and labels."""
    paths = [path for name in TEXTURES for path in sorted((folder / name).iterdir())[:per_class]]
    images = np.stack([np.asarray(Image.open(path)) for path in paths]).reshape(len(paths), -1)
    labels = torch.arange(len(TEXTURES)).repeat_interleave(per_class)
    return torch.from_numpy(images).float() / 127.5 - 1, labels


def test_files_are_jpegs_by_split_and_class(dataset):
    for split, size in (("train", 500), ("test", 100)):
        folders = sorted((dataset / split).iterdir())
        assert [folder.name for folder in folders] == sorted(TEXTURES)
        assert {len(list(folder.glob("*.jpg"))) for folder in folders} == {size}
    with Image.open(dataset / "train" / "rings" / "0000.jpg") as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (40, 40), "RGB")


def test_raw_pixels_do_not_separate_the_classes(dataset):
    (bank, bank_labels), (queries, query_labels) = read(dataset / "train", 200), read(dataset / "test", 50)
    for k in (20, 200):
        assert knn_accuracy(bank, bank_labels, queries, query_labels, k=k, num_classes=10) < 20


def test_brightness_and_colour_do_not_separate_the_classes(dataset):
    """Nor do the mean and the spread of each channel, which no crop changes much."""
    (bank, bank_labels), (queries, query_labels) = (
        (torch.cat([(pixels := images.view(len(images), -1, 3)).mean(1), pixels.std(1)], 1), labels)
        for images, labels in (read(dataset / "train", 200), read(dataset / "test", 50))
    )
    centre, spread = bank.mean(0), bank.std(0)
    found = knn_accuracy(
        (bank - centre) / spread, bank_labels, (queries - centre) / spread, query_labels, k=50, num_classes=10
    )
    assert found < 40


def test_no_image_is_there_twice(dataset):
    files = list(dataset.glob("*/*/*.jpg"))
    assert len({path.read_bytes() for path in files}) == len(files) == 6000


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(builtin, "SPLITS", {"train": 2, "test": 1})


@pytest.mark.usefixtures("few")
def test_cache_folder_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("AMCL_FAST_CACHE", str(tmp_path))
    assert builtin.prepare_builtin().parent.parent == tmp_path


@pytest.mark.usefixtures("few")
def test_second_call_draws_nothing(tmp_path, monkeypatch):
    folder = builtin.prepare_builtin(tmp_path)
    monkeypatch.delattr(builtin, "draw")
    assert builtin.prepare_builtin(tmp_path) == folder


@pytest.mark.usefixtures("few")
def test_interrupted_drawing_is_done_again(tmp_path, monkeypatch):
    calls = []

    def killed(texture, random):
        calls.append(texture)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return draw(texture, random)

    monkeypatch.setattr(builtin, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        builtin.prepare_builtin(tmp_path)
    assert not [path for path in (tmp_path / "datasets").iterdir() if not path.name.startswith(".")]
    folder = builtin.prepare_builtin(tmp_path)
    assert len(list(folder.glob("*/*/*.jpg"))) == 30
    assert not list((tmp_path / "datasets").glob("*.partial"))


def prepare_slowly(cache, results):
    """Body of a process: draw few images, slowly; report how many were drawn and found."""
    builtin.SPLITS = {"train": 1, "test": 1}
    drawn = []

    def slow(texture, random):
        drawn.append(texture)
        time.sleep(0.02)
        return draw(texture, random)

    builtin.draw = slow
    folder = builtin.prepare_builtin(cache)
    results.put((len(drawn), len(list(folder.glob("*/*/*.jpg")))))


def test_two_processes_at_once_draw_once(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=prepare_slowly, args=(tmp_path, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert found == [(0, 20), (20, 20)]
