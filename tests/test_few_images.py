"""Folders that leave little or nothing to measure, through the command line: they train, and say so in a line."""

import json

import numpy as np
import pytest
from PIL import Image

from amcl_fast.cli import main
from amcl_fast.report import read_run
from tests.helpers.command_line import NT_XENT

pytestmark = pytest.mark.slow

SETTINGS = NT_XENT + "trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1}"


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Fills folders with so many images each, trains on them; returns the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text(SETTINGS)

    def run(folders, *settings):
        noise = np.random.default_rng(0)
        for name, count in folders.items():
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.jpg")
        code = main(["pretrain", "--config", "settings.yaml", "--data", "set", "--run_dir", "run", *settings])
        return code, capsys.readouterr().out

    return run


def test_images_without_classes_train_go_on_and_are_reported(train, tmp_path, capsys):
    code, said = train({"": 16})
    assert code == 0 and said.count("kNN") == 1
    assert "kNN is not measured: the images have no labels\n" in said
    assert main(["pretrain", "--resume", "run", "--trainer.max_epochs", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("kNN") == 1 and "epoch 2/2" in said
    run = read_run(tmp_path / "run")
    assert not run.series("knn")[0].size and len(run.after.embedding) == 0
    drawn = {path.name for path in (tmp_path / "run" / "report").iterdir()}
    assert "loss.png" in drawn and not drawn & {"knn.png", "embedding.png"}
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "Not measured: the images have no labels." in page
    assert main(["evaluate", "run"]) == 2
    error = capsys.readouterr().err
    assert "error: kNN and linear probe cannot be measured on " in error
    assert error.endswith("set: the images have no labels\n")


@pytest.mark.usefixtures("undrawn")
def test_one_image_a_class_trains(train):
    code, said = train(dict.fromkeys("abcdefgh", 1))
    assert code == 0 and "kNN is not measured: no image is held out, since no class has two\n" in said


@pytest.mark.usefixtures("undrawn")
def test_as_many_neighbours_vote_as_there_are(train, tmp_path, capsys):
    code, said = train({"train/a": 5, "train/b": 4, "test/a": 1, "test/c": 2, "test/d": 3})
    assert code == 0 and "kNN accuracy (k = 9)\n" in said
    assert "5 left out (5 images of 2 classes that the training does not have (c, d)): see run/skipped" in said
    assert "unreadable" not in said
    assert main(["evaluate", "run", "--epochs", "1"]) == 0
    assert "(k = 9, temperature 0.1)" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "evaluation-set.json").read_text())["knn"]["k"] == 9


def test_held_out_images_that_all_turn_out_to_be_bad_do_not_end_the_run(train, tmp_path):
    held_out = tmp_path / "set" / "test" / "a"
    held_out.mkdir(parents=True)
    for number in range(3):
        path = held_out / f"{number}.png"
        Image.new("RGB", (20, 20)).save(path)
        content = path.read_bytes()
        data = content.index(b"IDAT") + 4
        path.write_bytes(content[:data] + bytes(8) + content[data + 8 :])
    code, said = train({"train/a": 12, "train/b": 12}, "--trainer.max_epochs", "2")
    assert code == 0 and "epoch 2/2" in said
    assert said.count("kNN") == 1
    assert "kNN is not measured any more: no file of those to be measured can be read and decoded any more\n" in said
    skipped = (tmp_path / "run" / "skipped_files.txt").read_text()
    assert skipped.count("found during the run") == 3
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "embedding.png" not in page
    assert "Not measured: no file of those to be measured can be read and decoded any more." in page


@pytest.mark.usefixtures("undrawn")
def test_evaluating_on_images_that_all_turn_out_to_be_bad_names_them(train, tmp_path, capsys):
    assert train({"train/a": 9, "train/b": 9, "test/a": 1})[0] == 0
    path = tmp_path / "set" / "test" / "a" / "0.jpg"
    Image.new("RGB", (20, 20)).save(path, "PNG")
    content = path.read_bytes()
    data = content.index(b"IDAT") + 4
    path.write_bytes(content[:data] + bytes(8) + content[data + 8 :])
    assert main(["evaluate", "run", "--epochs", "1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"amcl-fast evaluate: error: kNN and linear probe cannot be measured on {tmp_path / 'set'}: "
    )
