import json
import multiprocessing
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from amcl_fast.data import Augmentation
from amcl_fast.data.scan.classes import scan_classes
from benchmarks import command
from benchmarks.measure import pipeline
from benchmarks.show import tables


@pytest.fixture
def folder(tmp_path):
    """Four photographs of two classes."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            pixels = random.integers(0, 255, (50, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.jpg")
    return tmp_path


def test_photographs_are_repeated(folder):
    source = pipeline.images(224, folder)
    assert len(source.files) == 16 * pipeline.BATCH[224]
    assert source.files[:4] == scan_classes(folder).files == source.files[4:8]


def test_both_libraries(folder, monkeypatch):
    pytest.importorskip("nvidia.dali")
    monkeypatch.setitem(pipeline.BATCH, 32, 4)
    source = scan_classes(folder).subset([0, 1, 2, 3] * 4)
    rows = pipeline.measure(32, "ab", source, seconds=0.2, rounds=2)
    assert [(row["library"], row["rounds"]) for row in rows] == [("dali", 2), ("torchvision", 2)]
    for row in rows:
        for name in ("images_per_second", "processor_ms"):
            low, median, high = row[name]
            assert 0 <= low <= median <= high
        assert row["images_per_second"][0] > 0  # processor time comes in ticks of 10 ms
    stop = time.monotonic() + 60
    while multiprocessing.active_children():  # torch gives its workers some seconds, then ends them
        assert time.monotonic() < stop
        time.sleep(0.1)


def test_files_and_shards(folder, monkeypatch):
    pytest.importorskip("nvidia.dali")
    monkeypatch.setitem(pipeline.BATCH, 32, 4)
    monkeypatch.setitem(pipeline.STORAGES, "shards, 256 px", 25)
    for path in folder.rglob("*.jpg"):
        Image.open(path).resize((240, 200)).save(path)
    before = dict(os.environ)
    temporary = folder.with_name("temporary")
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    read = []
    repeated = pipeline._repeated
    monkeypatch.setattr(pipeline, "_repeated", lambda images, size: read.append(images) or repeated(images, size))
    rows = pipeline.measure_storages(32, "a", folder, seconds=0.2, rounds=2)
    assert [len(images.files) for images in read] == [4] * 3
    assert len({tuple(images.labels.tolist()) for images in read}) == 1  # the same ones, in the same order
    assert not [path for path in temporary.iterdir() if path.is_dir()]
    assert [row["storage"] for row in rows] == list(pipeline.STORAGES) == ["files", "shards", "shards, 256 px"]
    files, shards, scaled = (row["bytes"] for row in rows)
    assert scaled < files < shards  # a tar has headers
    assert all(row["rounds"] == 2 and row["images_per_second"][1] > 0 for row in rows)
    assert dict(os.environ) == before


def test_storages_take_evenly_what_a_measurement_reads(folder, monkeypatch):
    """However large the data set, and only where there is room."""
    pytest.importorskip("nvidia.dali")
    monkeypatch.setitem(pipeline.BATCH, 32, 4)
    for path in sorted(folder.rglob("0.jpg")):
        for number in range(80):
            os.link(path, path.with_name(f"more{number:03d}.jpg"))
    packed = []

    def pack(source, target, **settings):
        packed.append([line.split(",") for line in source.read_text().splitlines()[1:]])
        raise OSError("no more")

    monkeypatch.setattr("amcl_fast.data.shards.pack.pack", pack)
    with pytest.raises(OSError, match="no more"):
        pipeline.measure_storages(32, "a", folder, seconds=0.1)
    assert len(packed[0]) == 64 and {label for _, label in packed[0]} == {"0", "1"}
    monkeypatch.setattr(pipeline, "_ROOM", 1 << 60)
    with pytest.raises(ValueError, match=r"TMPDIR must have [\d,]{9,} MiB free, got .* with [\d,]+ MiB"):
        pipeline.measure_storages(32, "a", folder, seconds=0.1)


def test_storages_that_fail_are_a_row_and_the_rest_is_kept(folder, monkeypatch, tmp_path, capsys):
    pytest.importorskip("nvidia.dali")

    def failed(*_):
        raise ValueError("no room")

    row = {"size": 32, "letters": "a", "library": "dali", "images_per_second": [1.0] * 3, "processor_ms": [2.0] * 3}
    monkeypatch.setattr(pipeline, "measure_storages", failed)
    monkeypatch.setattr(pipeline, "measure", lambda *_: [row])
    monkeypatch.setattr(command, "_pipelines", lambda: {"32 px": (32, "a", False), "kept": (224, "abcde", True)})
    monkeypatch.setattr(pipeline, "images", lambda *_: None)
    assert not command.measure(("pipeline",), "", "auto", 0.1, folder, tmp_path)
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["sections"]["pipeline"]["rows"]
    assert rows[0] == row and rows[1]["missing"] == "failed: no room"
    assert "FAILED  kept: no room" in capsys.readouterr().err
    assert "| files and shards | failed: no room |" in tables.pipeline(rows)


def test_a_missing_library_is_a_row(folder, monkeypatch):
    def missing(*_):
        raise ImportError("no such thing\nat all")

    monkeypatch.setattr(pipeline, "_STREAMS", dict.fromkeys(pipeline.LIBRARIES, missing))
    rows = pipeline.measure(32, "a", scan_classes(folder), seconds=0.1)
    assert [row["missing"] for row in rows] == ["not installed: no such thing"] * 2


def work(seconds):
    stop = time.process_time() + seconds
    while time.process_time() < stop:
        pass
    time.sleep(60)


def test_processor_time_of_workers_counts():
    before = pipeline._processor_seconds()
    worker = multiprocessing.get_context("fork").Process(target=work, args=(0.5,), daemon=True)
    worker.start()
    try:
        deadline = time.monotonic() + 20
        while pipeline._processor_seconds() - before < 0.45 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert 0.45 <= pipeline._processor_seconds() - before < 1.5
    finally:
        worker.terminate()
        worker.join()


@pytest.mark.parametrize("letters", pipeline.LETTERS)
def test_views_of_torchvision(folder, letters):
    from benchmarks.measure.torchvision_views import Views

    torch.manual_seed(0)
    views = Views(scan_classes(folder).files, 32, Augmentation.from_letters(letters), (0.5,) * 3, (0.2,) * 3)
    first, second = views[0]
    assert first.shape == second.shape == (3, 32, 32) and first.dtype == torch.float32
    assert first.min() >= -2.6 and first.max() <= 2.6
    assert torch.equal(first, second) == (letters == "")
