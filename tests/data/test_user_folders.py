"""Folders as users have them, as they type them: what is taken, the line that says so, what is refused and how."""

import csv
import os
import shutil
import unicodedata

import numpy as np
import pytest
import yaml
from PIL import Image

from amcl_fast.arguments import parser
from amcl_fast.cli import main
from amcl_fast.data import ContrastiveDataModule
from amcl_fast.data.convert import convert
from amcl_fast.data.convert import main as convert_main
from amcl_fast.pretraining.command import settings_of
from tests.helpers.folders import shown

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
TINY = ("--data.size=16", "--data.batch_size=4", "--model.backbone.width=8", "--trainer.accelerator=cpu")


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Writes images at paths below the folder `set`, a tenth or so of which are never damaged: noise of 20 pixels."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)

    def write(*paths, count=2, ending="jpg"):
        for path in paths:
            (tmp_path / "set" / path).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / path / f"{number}.{ending}")
        return tmp_path / "set"

    return write


def found(root="set", **settings):
    """What a run would take, and the line that it prints of that."""
    data = ContrastiveDataModule(root=str(root), **settings)
    data.prepare_data()
    data.setup()
    return data


def refused(capsys, tmp_path, *arguments):
    """The line that refuses a run, which leaves nothing."""
    capsys.readouterr()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    before = sorted(tmp_path.rglob("*"))
    assert main(["pretrain", "--recipe", "demo", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("amcl-fast pretrain: error: ") and error.count("\n") == 1
    cache = tmp_path / "cache"
    assert [path for path in sorted(tmp_path.rglob("*")) if cache not in (path, *path.parents)] == before
    return error


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("train", "valid"), ("train", "validation"), ("Train", "Test"), ("TRAIN", "VAL"), ("training", "testing")],
)
def test_parts_by_any_usual_name(put, train, held_out):
    put(f"{train}/ant", f"{train}/bee", count=3)
    put(f"{held_out}/ant", f"{held_out}/bee")
    assert found().taken == f"6 images in 2 classes ({train}/), 4 held out ({held_out}/)"


def test_of_several_held_out_parts_the_line_says_which(put):
    put("train/ant", "train/bee", "val/ant", "valid/ant", "test/ant", "test/bee")
    assert found().taken == "4 images in 2 classes (train/), 4 held out (test/, not val/, valid/)"


def test_a_part_of_another_name_is_named(put, caplog):
    put("train/ant", "train/bee", "dev/ant", "masks", count=20)
    assert found().taken == "36 images in 2 classes (train/), 4 held out (a tenth of each class)"
    assert "set/dev is not used as the held-out part: that is called test, testing, val, valid or va" in caplog.text
    assert "masks" not in caplog.text
    assert found(held_out="set/dev").taken.endswith("20 held out (dev/), none of them of bee")


def test_imagenet_as_distributed_is_told_how_to_measure_on_val(put, caplog, capsys, tmp_path):
    put("train/n01440764", "train/n01443537", "val", count=4)
    assert found().taken == "6 images in 2 classes (train/), 2 held out (a tenth of each class)"
    told = (
        f"set/val is not used as the held-out part: it holds no folder of a class; sort its images into {tmp_path}/set/"
    )
    assert told in caplog.text and "val/CLASS/, or give a CSV file with a path and a class a line as" in caplog.text
    caplog.clear()
    with open("set/val/val_labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *((f"{n}.jpg", "n01443537") for n in range(3))])
    data = found(held_out="set/val/val_labels.csv")
    assert data.taken.endswith("8 images in 2 classes (train/), 3 held out (val_labels.csv), none of them of n01440764")
    assert shown(data._query) == {"n01443537": 3} and not caplog.text
    # Paths begin at the list's own folder; numbers alone are no paths.
    for name, text, first in (("set/l.csv", "0.jpg,n01443537\n", "0.jpg"), ("set/truth.txt", "490\n361\n", "490")):
        (tmp_path / name).write_text(text)
        told = refused(capsys, tmp_path, "--data=set", f"--data.held_out={name}")
        assert f"files can be used, the first: {tmp_path}/set/{first}: no such file" in told
    told = refused(capsys, tmp_path, "--data=set", "--data.held_out=set/val")
    assert f"{tmp_path}/set/val holds no folder of a class" in told and "or a CSV file with a path and a class" in told


def test_classes_that_differ_between_the_parts_are_named(put):
    put("train/ant", "train/bee", "train/cow", "val/bee", "val/cow", "val/dog")
    data = found()
    assert data.taken == "6 images in 3 classes (train/), 4 held out (val/), none of them of ant"
    assert {reason for _, reason in data.skipped} == {"its class 'dog' is not one of the training classes"}
    assert data._query.classes == data.classes == ["ant", "bee", "cow"]


def test_what_systems_leave_makes_no_noise(put, caplog):
    folders = ("@eaDir", "__MACOSX", "lost+found", ".ipynb_checkpoints")
    put("train/ant", "train/bee", *(f"{where}{name}" for where in ("", "train/", "train/ant/") for name in folders))
    for folder in ("set", "set/train", "set/train/ant"):
        for name in (".DS_Store", "Thumbs.db", "._0.jpg", "desktop.ini"):
            with open(f"{folder}/{name}", "w") as file:
                file.write("left behind")
    data = found()
    assert data.taken == "2 images in 2 classes (train/), 2 held out (a tenth of each class)"
    assert not data.skipped and not caplog.text


def test_each_file_counts_once_whatever_links_lead_to_it(put, caplog):
    root = put("ant", "bee", count=20)
    (root / "ant" / "up").symlink_to("..")
    (root / "ant" / "self").symlink_to(".")
    (root / "twin").symlink_to("bee")
    data = found()
    assert data.taken == "36 images in 2 classes (set/), 4 held out (a tenth of each class)"
    assert f"not a class of {root}: twin (a link to {root}/bee" in caplog.text
    assert "2 link(s) to folders not followed" in caplog.text


def test_classes_that_are_numbers_keep_their_order_and_the_line_says_so(put):
    put(*(f"train/{number}" for number in range(12)))
    assert "12 classes (train/), classes in the order 0, 1, 10, 11, …, 12 held out" in found().taken
    put(*(f"short/{number}" for number in range(10)))
    assert found("set/short").taken == "10 images in 10 classes (short/), 10 held out (a tenth of each class)"


def test_a_class_is_one_however_unicode_spells_it(put, caplog, tmp_path):
    put(f"train/{NFD}", "train/bee", f"val/{NFC}")
    data = found()
    assert data.taken == "4 images in 2 classes (train/), 2 held out (val/), none of them of bee"
    assert data.classes == ["bee", NFD] and not data.skipped and not caplog.text
    put(f"train/{NFC}", count=3)
    data = found()
    assert shown(data._train) == {"bee": 2, NFD: 5}
    assert f"in {tmp_path}/set/train twice, in two spellings of Unicode, and one class: {NFC}" in caplog.text
    with open("list.csv", "w") as file:
        file.writelines(f"set/train/{NFC}/{n}.jpg,{name}\n" for n, name in enumerate((NFC, NFD, "bee")))
    assert shown(found("list.csv", held_out="set/val")._train) == {NFC: 2, "bee": 1}


@pytest.mark.parametrize(
    ("ending", "name"), [("gif", "GIF"), ("tif", "TIFF"), ("ppm", "PNM"), ("webp", ""), ("bmp", "")]
)
def test_formats_are_taken_or_refused_with_the_command_that_converts_them(put, capsys, tmp_path, ending, name):
    put("ant", "bee", ending=ending)
    if not name:
        assert found().taken.startswith("2 images in 2 classes")
        return
    told = refused(capsys, tmp_path, "--data=set")
    assert told.endswith(f"; to convert 4 {name}: python -m amcl_fast.data.convert SOURCE TARGET\n")
    assert convert_main(["set", "png"]) == 0
    assert capsys.readouterr().out == "4 images converted to PNG, 0 linked, in png\n"
    assert found("png").taken.startswith("2 images in 2 classes (png/)")


def test_a_folder_of_many_formats_is_converted_beside_links_to_the_others(put, caplog, tmp_path):
    put("ant", "bee")
    sixteen = np.arange(0, 1 << 16, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(sixteen).save("set/ant/sixteen.tif")
    Image.fromarray(sixteen.astype(np.float32)).save("set/ant/float.tif")
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    frames[0].save("set/bee/moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "set" / "ant" / "0.txt").write_text("no image")
    assert found().taken.startswith("2 images in 2 classes (set/)")
    assert f"to convert 2 TIFF, 1 GIF: python -m amcl_fast.data.convert {tmp_path}/set TARGET" in caplog.text
    for _ in range(2):  # what is there stays
        converted, linked, failed = convert("set", "png")
        assert (converted, linked) == (2, 4) and [os.path.basename(path) for path, _ in failed] == ["float.tif"]
    assert np.array_equal(np.asarray(Image.open("png/ant/sixteen.tif.png")).ravel(), np.arange(256))
    assert np.asarray(Image.open("png/bee/moving.gif.png").convert("L"))[0, 0] == 10
    assert sorted(os.listdir("png/ant")) == ["0.jpg", "1.jpg", "sixteen.tif.png"]
    with pytest.raises(ValueError, match="TARGET must lie beside"):
        convert("set", "set/png")


def test_paths_with_variables_and_homes(put, monkeypatch, tmp_path, capsys):
    put("train/ant", "train/bee", "val/ant")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", str(tmp_path / "set"))
    monkeypatch.delenv("NOWHERE", raising=False)
    told = refused(capsys, tmp_path, "--data=$NOWHERE/set")
    assert "$NOWHERE/set names a variable of the environment that is not set: NOWHERE" in told
    kept = settings_of("demo", ["--data.root=$WHERE/train", "--data.held_out=~/set/val"])["data"]
    assert (kept["root"], kept["held_out"]) == (f"{tmp_path}/set/train", f"{tmp_path}/set/val")
    assert str(parser().parse_args(["pretrain", "--run_dir=${HOME}/run"]).run_dir) == f"{tmp_path}/run"
    data = found(kept["root"], held_out=kept["held_out"])
    assert data.taken == "4 images in 2 classes (train/), 2 held out (val/), none of them of bee"


def test_a_folder_without_a_recipe_gets_one_and_the_line_is_told_again(put, capsys, tmp_path):
    root = put("ant", "bee", count=10)
    (root / "ant" / "bad.jpg").write_text("")
    assert main(["pretrain", "--data=set", *TINY, "--epochs", "1", "--run_dir=run"]) == 0
    out = capsys.readouterr().out
    line = "18 images in 2 classes (set/), 2 held out (a tenth of each class), 1 left out (1 unreadable file): see run/"
    chosen = "simclr-builtin-amcl at 16 px, ResNet-18 of a quarter of the width, 4 images a batch, 1 epoch"
    assert "no --recipe given: 18 images in 2 classes, shorter side 20 px (median), colour; no GPU\n" in out
    assert f"\nchosen: {chosen}; " in out and f"\n{line}skipped_files.txt\n" in out
    rest = " ".join(("--trainer.log_every_n_steps 1 --knn.k 20 --data set", *TINY, "--epochs 1"))
    again = next(part for part in out.splitlines() if part.startswith("the same again: amcl-fast pretrain "))
    assert again.endswith(f" --recipe simclr-builtin-amcl --knn.every_n_epochs 1 {rest}")
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (kept["recipe"], kept["data"]["size"], kept["trainer"]["max_epochs"]) == ("simclr-builtin-amcl", 16, 1)
    assert main(["pretrain", "--resume=run", "--trainer.max_epochs=2"]) == 0
    assert f"\n{line}skipped_files.txt\n" in capsys.readouterr().out


def test_a_wrong_setting_is_told_before_images_are_looked_for(put, capsys, tmp_path):
    put("ant", "bee")
    assert main(["pretrain", "--data=set", "--trainer.max_epochs=many"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "max_epochs" in error
    assert main(["pretrain"]) == 2 and "--recipe must be given, " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
