"""A folder of everything that a folder of images can hold, through the command line: it trains."""

import os

import numpy as np
import pytest
from PIL import Image

from amcl_fast.cli import main
from amcl_fast.data.scan.classes import scan_classes
from amcl_fast.report import read_run
from tests.helpers.command_line import NT_XENT
from tests.helpers.damaged_files import png

SETTINGS = NT_XENT + "trainer: {max_epochs: 2, accelerator: cpu, log_every_n_steps: 1}"

noise = np.random.default_rng(0)


def pixels(height, width, channels=3, kind=np.uint8):
    return noise.integers(0, np.iinfo(kind).max + 1, (height, width, channels), dtype=kind).squeeze()


def usable(folder):
    """Odd images that are images; returns their names."""
    frames = [Image.fromarray(pixels(12, 12)) for _ in range(3)]
    Image.fromarray(pixels(20, 20)).save(folder / "plain.jpg")
    Image.fromarray(pixels(1, 1)).save(folder / "one pixel.png")
    Image.fromarray(pixels(1, 1)).save(folder / "one.jpg")
    Image.fromarray(pixels(40, 30_000)).save(folder / "wide.jpg", quality=50)
    Image.fromarray(pixels(3000, 2)).save(folder / "tall.png")
    Image.fromarray(pixels(20, 20)).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels(20, 20, 1)).save(folder / "grey.jpg")
    Image.fromarray(pixels(20, 20, 1, np.uint16)).save(folder / "sixteen.png")
    colour, alpha = (b"".join(b"\0" + noise.bytes(9 * n) for _ in range(7)) for n in (6, 8))
    (folder / "sixteen colour.png").write_bytes(png(9, 7, 16, 2, colour))
    (folder / "sixteen alpha.png").write_bytes(png(9, 7, 16, 6, alpha))
    Image.fromarray(pixels(20, 20, 4)).save(folder / "alpha.png")
    Image.fromarray(pixels(20, 20)).convert("P").save(folder / "palette.png")
    Image.fromarray(pixels(20, 20)).convert("1").save(folder / "bits.png")
    Image.fromarray(pixels(20, 20)).save(folder / "really a png.jpg", "PNG")
    Image.fromarray(pixels(20, 20)).save(folder / "no suffix", "JPEG")
    Image.fromarray(pixels(20, 20)).save(folder / "progressive.jpg", progressive=True)
    Image.fromarray(pixels(20, 20)).save(folder / "lossless.webp", lossless=True)
    Image.fromarray(pixels(20, 20)).save(folder / "ünïcode 日本 \n.jpg")
    Image.fromarray(pixels(20, 20)).save(folder / "bitmap.bmp")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(pixels(10, 20)).save(folder / "rotated.jpg", exif=exif)
    for name in ("moving.webp", "moving.png"):  # their first frame is taken
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    return {entry.name for entry in os.scandir(folder)}


def unusable(folder):
    """What cannot be used, name to the reason given."""
    whole = folder / "whole.jpg"
    Image.fromarray(pixels(64, 64)).save(whole)
    content = whole.read_bytes()
    whole.unlink()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "header alone.jpg").write_bytes(content[:20])
    (folder / "zero bytes.jpg").touch()
    (folder / "text.png").write_text("not found")
    (folder / "nulls.jpg").write_bytes(bytes(5000))
    frames = [Image.fromarray(pixels(12, 12)) for _ in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "moving.jpg", "GIF", save_all=True, append_images=frames[1:])
    Image.fromarray(pixels(12, 12)).save(folder / "picture.tiff")
    (folder / "bomb.png").write_bytes(png(60_000, 60_000))
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    Image.fromarray(pixels(12, 12)).save(os.fsencode(folder) + b"/latin \xe9.png", "PNG")
    return {
        "truncated.jpg": "corrupt",
        "header alone.jpg": "no frame header",
        "zero bytes.jpg": "empty file",
        "text.png": "not an image",
        "nulls.jpg": "not an image",
        "moving.gif": "GIF is not supported",
        "moving.jpg": "GIF is not supported",
        "picture.tiff": "TIFF is not supported",
        "bomb.png": "too large",
        "dangling.jpg": "dangling link",
        "loop.jpg": "cannot be read",
        "pipe.jpg": "not a regular file",
        "latin \udce9.png": "its name is not valid UTF-8",
    }


@pytest.fixture
def hostile(tmp_path):
    """ROOT/a and ROOT/b with everything; returns the root, the names of the usable files and the others' reasons."""
    root = tmp_path / "hostile images"
    for label in "ab":
        (root / label / "a folder.jpg").mkdir(parents=True)
    good = usable(root / "a") - {"a folder.jpg"}
    usable(root / "b")
    Image.fromarray(pixels(20, 20)).save(root / "a" / "a folder.jpg" / "inside.jpg")
    (root / "c").mkdir()
    return root, good | {"inside.jpg"}, unusable(root / "b")


def test_good_files_are_found_and_bad_ones_are_named(hostile):
    root, good, bad = hostile
    images = scan_classes(root)
    assert images.classes == ["a", "b"]
    found = {os.path.basename(path) for path, label in zip(images.files, images.labels, strict=True) if label == 0}
    assert found == good
    reasons = {os.path.basename(path): reason for path, reason in images.skipped}
    assert reasons.keys() == bad.keys()
    for name, reason in bad.items():
        assert reason in reasons[name], name


@pytest.mark.usefixtures("undrawn")
def test_a_hostile_folder_trains(hostile, tmp_path, monkeypatch, capsys):
    root, _, bad = hostile
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    assert main(["pretrain", "--config", "settings.yaml", "--data", str(root), "--run_dir", "run"]) == 0
    kinds = f"{len(bad) - 1} unreadable files, 1 image larger than is accepted"
    assert f"{len(bad)} left out ({kinds}): see run/skipped_files.txt\n" in capsys.readouterr().out
    run = read_run(tmp_path / "run")
    assert len(run.skipped) == len(bad) and len(run.series("loss")[0]) >= 4
    assert "picture.tiff" in (tmp_path / "run" / "report" / "index.html").read_text()
    assert main(["evaluate", "run", "--epochs", "1"]) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_left_out(make_folder):
    root = make_folder()
    (root / "ant" / "000.png").chmod(0)
    assert [reason for _, reason in scan_classes(root).skipped] == ["cannot be read: Permission denied"]


def test_an_unreadable_file_is_left_out(make_folder, monkeypatch):
    """The same where the tests run as root."""
    root = make_folder()
    closed, real = str(root / "ant" / "000.png"), os.open

    def refuse(path, *args, **kwargs):
        if path == closed:
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr("os.open", refuse)
    assert scan_classes(root).skipped == [(closed, "cannot be read: Permission denied")]
