"""amcl_fast.data.shards.pack: the same bytes however often it was interrupted, pixels and labels of the source."""

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amcl_fast.cli import main
from amcl_fast.data.locations import shown
from amcl_fast.data.reading.reduction import encoded
from amcl_fast.data.shards import pack as packing
from amcl_fast.data.shards.pack import pack
from amcl_fast.data.sources import named
from amcl_fast.data.sources.find import find_images
from amcl_fast.runs.lock import RunInUseError
from tests.helpers.command_line import environment
from tests.helpers.small_shards import noise, picture, samples


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def members(folder, part="train"):
    """(name, bytes) of all shards of a part."""
    found = []
    for path in sorted(Path(folder).glob(f"{part}-*.tar")):
        with tarfile.open(path) as tar:
            found += [(info.name, tar.extractfile(info).read()) for info in tar]
    return found


def classes(folder, part="train"):
    """Class of every image, by the stem of the file that it was."""
    images = getattr(find_images(folder), {"train": "train", "val": "held_out"}[part])
    stems = [Path(shown(path)).stem.partition("-")[2] for path in images.files]
    return {
        stem: images.classes[label] if label >= 0 else None for stem, label in zip(stems, images.labels, strict=True)
    }


@pytest.fixture
def source(tmp_path):
    """40 JPEGs of noise in two classes, 6 to measure on, 3 without a label, 2 that are bad."""
    for part, count in (("train", 20), ("val", 3)):
        for number, label in enumerate(("ant", "bee big")):
            folder = tmp_path / "source" / part / label
            folder.mkdir(parents=True)
            for image in range(count):
                (folder / f"{part[0]}{label[0]}{image}.jpg").write_bytes(noise(100 * number + image, 60))
    (tmp_path / "source" / "unlabeled").mkdir()
    for image in range(3):
        (tmp_path / "source" / "unlabeled" / f"u {image}.x.jpg").write_bytes(noise(900 + image, 60))
    (tmp_path / "source" / "train" / "ant" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path / "source"


def test_a_folder_becomes_shards_of_the_same_images(source, tmp_path, capsys):
    target = tmp_path / "target"
    assert main(["pack", str(source), str(target), "--shard_size", "40KB"]) == 0
    assert "49 images in" in capsys.readouterr().out
    assert classes(target) == {
        **{f"ta{n}": "ant" for n in range(20)},
        **{f"tb{n}": "bee big" for n in range(20)},
        **{f"u_{n}_x": None for n in range(3)},
    }
    assert classes(target, "val") == {**{f"va{n}": "ant" for n in range(3)}, **{f"vb{n}": "bee big" for n in range(3)}}
    ours = {name.partition("-")[2]: data for name, data in members(target) if name.endswith("jpg")}
    theirs = {
        path.name.replace(" ", "_").replace(".x", "_x"): path.read_bytes() for path in source.glob("[tu]*/**/*.jpg")
    }
    assert {**ours, "bad.jpg": b"\xff\xd8\xff"} == theirs
    shards = sorted(target.glob("*.tar"))
    assert len(shards) > 3 and all(path.stat().st_size <= 40_000 for path in shards)
    names = [name for name, _ in members(target)]
    assert names == sorted(names)
    order = [name.partition("-")[2] for name in names if name.endswith("jpg")]
    assert sorted(order) != order  # shuffled
    assert (target / "skipped_files.txt").read_text().startswith(f"{source}/train/ant/bad.jpg\ttruncated")
    with tarfile.open(shards[0]) as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.mode) for info in tar} == {(0, 0, 0, "", 0o644)}
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["complete"] and sum(shard["images"] for shard in manifest["parts"]["train"]) == 43


def test_seeds_repeat_and_differ_and_workers_do_not_matter(source, tmp_path):
    for name, options in (
        ("a", {}), ("b", {"workers": 3}), ("c", {"seed": 1}), ("d", {"shuffle": False, "shard_size": 10}),
    ):  # fmt: skip
        pack(source, tmp_path / name, **{"shard_size": "40KB", "workers": 1, **options})
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert members(tmp_path / "a") != members(tmp_path / "c")
    assert sorted(data for _, data in members(tmp_path / "a")) == sorted(data for _, data in members(tmp_path / "c"))
    order = [name.partition("-")[2] for name, _ in members(tmp_path / "d") if name.endswith("jpg")]
    assert order == [f"{Path(path).name.replace(' ', '_')}" for path in find_images(source).train.files] + [
        f"u_{n}_x.jpg" for n in range(3)
    ]
    counts = [entry["images"] for entry in json.loads((tmp_path / "d" / "manifest.json").read_text())["parts"]["train"]]
    assert counts == [10, 10, 10, 10, 3]


def test_shards_and_lists_are_packed_too(make_shards, tmp_path):
    root = make_shards({"train-0.tar": samples(range(12)), "val-0.tar": samples(range(20, 24))})
    pack(root, tmp_path / "again", shard_size=5)
    assert classes(tmp_path / "again") == {f"{number:04}": str(number % 3) for number in range(12)}
    assert (tmp_path / "again" / "classes.txt").read_text() == "0\n1\n2\n"
    (tmp_path / "one.png").write_bytes(picture(1))
    (tmp_path / "list.txt").write_text("one.png\n")
    pack(tmp_path / "list.txt", tmp_path / "listed", workers=1)
    assert [name for name, _ in members(tmp_path / "listed")] == ["00000000-one.png"]
    assert not (tmp_path / "listed" / "classes.txt").exists()


def test_a_data_set_is_packed_by_its_name(source, tmp_path, monkeypatch):
    monkeypatch.setattr(named, "prepare_download", lambda name: {"cifar10": source / "train", "stl10": source}[name])
    monkeypatch.chdir(tmp_path)
    assert main(["pack", "cifar10", "target", "--held_out", "stl10", "--workers", "1"]) == 0
    assert len(classes(tmp_path / "target")) == 40 and len(classes(tmp_path / "target", "val")) == 6


def photographs(folder):
    """One image of every kind that is not just a JPEG in RGB, 300 × 200 or the other way; (file, what it shows)."""
    y, x = np.mgrid[:200, :300]
    smooth = np.stack([x * 255 / 299, y * 255 / 199, 128 + 100 * np.sin(x / 20) * np.cos(y / 15)], -1).astype(np.uint8)
    plain = Image.fromarray(smooth)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "plain.jpg": (plain, {"quality": 98}),
        "turned.jpg": (plain.transpose(Image.Transpose.ROTATE_90), {"quality": 98, "exif": exif}),
        "cmyk.jpg": (plain.convert("CMYK"), {"quality": 98}),
        "grey.jpg": (plain.convert("L"), {"quality": 98}),
        "grey16.png": (Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 257), {}),
        "palette.png": (plain.quantize(256), {}),
        "alpha.png": (plain.convert("RGBA"), {}),
        "web.webp": (plain, {"lossless": True}),
        "bits.bmp": (plain, {}),
    }
    folder.mkdir()
    for name, (image, options) in kinds.items():
        image.save(folder / name, **options)
    return plain


def test_scaled_images_look_as_they_should(tmp_path):
    plain = photographs(tmp_path / "kinds")
    Image.fromarray(np.asarray(plain)[:100, :80]).save(tmp_path / "kinds" / "small.png")
    pack(tmp_path / "kinds", tmp_path / "target", shorter_side=100, shuffle=False, workers=1)
    made = {name.partition("-")[2].partition(".")[0]: data for name, data in members(tmp_path / "target")}
    assert made.pop("small") == (tmp_path / "kinds" / "small.png").read_bytes()
    wanted = plain.resize((150, 100), Image.Resampling.LANCZOS)
    for name, data in made.items():
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.getexif().get(0x0112), image.size) == ("JPEG", None, (150, 100)), name
            target = wanted.convert("L") if "grey" in name else wanted
            assert image.mode == target.mode, name
            if image.mode == "RGB":
                assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
            off = np.abs(np.asarray(image, int) - np.asarray(target, int))
            most = {"palette": 12, "cmyk": 3}.get(name, 2)
            assert off.mean() < most, (name, off.mean())


def test_a_large_photograph_is_scaled_as_well_by_steps(tmp_path):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).resize(
        (3000, 2000), Image.Resampling.BICUBIC
    )
    coarse.save(tmp_path / "large.jpg", quality=95)
    (tmp_path / "list.txt").write_text("large.jpg\n")
    pack(tmp_path / "list.txt", tmp_path / "target", shorter_side=128, workers=1)
    ((_, data),) = members(tmp_path / "target")
    with Image.open(tmp_path / "large.jpg") as whole:
        wanted = whole.resize((192, 128), Image.Resampling.LANCZOS)

    def error(jpeg):
        return np.sqrt(((np.asarray(Image.open(io.BytesIO(jpeg)), float) - np.asarray(wanted, float)) ** 2).mean())

    assert error(data) < 1.1 * error(encoded(wanted))


def test_what_cannot_be_decoded_is_left_out_when_it_is_scaled(source, tmp_path):
    cut = source / "train" / "ant" / "cut.png"
    Image.effect_noise((200, 200), 50).save(cut)
    content = bytearray(cut.read_bytes())
    start = content.index(b"IDAT") + 6
    content[start : start + 4] = b"\xff\xff\xff\xff"
    cut.write_bytes(content)
    packed = pack(source, tmp_path / "target", shorter_side=50, shard_size=10)
    told = dict(packed.left_out)
    assert told[str(cut)].startswith("it cannot be decoded: ") and len(told) == 2
    assert packed.images == 49
    assert str(cut) in (tmp_path / "target" / "skipped_files.txt").read_text()
    assert pack(source, tmp_path / "target", shorter_side=50, shard_size=10).left_out == packed.left_out


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_what_was_interrupted_goes_on_to_the_same_bytes(source, tmp_path, stop):
    # So much is left after the first shard that the signal comes in time.
    for image in range(300):
        (source / "train" / "ant" / f"m{image}.jpg").hardlink_to(source / "train" / "ant" / f"ta{image % 20}.jpg")
    options = ["--shorter_side", "40", "--shard_size", "4", "--workers", "1"]
    assert main(["pack", str(source), str(tmp_path / "whole"), *options]) == 0
    command = [sys.executable, "-m", "amcl_fast.cli", "pack", str(source), str(tmp_path / "target"), *options]
    with subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not list((tmp_path / "target").glob("*.tar")) and time.monotonic() < until:
            time.sleep(0.001)
        process.send_signal(stop)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGINT else -stop)  # it was not through
    if stop == signal.SIGINT:
        assert (
            errors
            == "amcl-fast pack: stopped before its end: the shards that are whole stay; go on with the same command\n"
        )
        assert not list((tmp_path / "target").glob("*.partial"))
    whole = content(tmp_path / "whole")
    for name, data in content(tmp_path / "target").items():
        assert name in ("manifest.json", ".lock") or name.endswith(".partial") or data == whole[name]
    assert main(["pack", str(source), str(tmp_path / "target"), *options]) == 0
    assert content(tmp_path / "target") == whole


@pytest.mark.parametrize("after", range(1, 8))
def test_it_goes_on_from_any_shard(source, tmp_path, monkeypatch, after):
    options = {"shard_size": 7, "shorter_side": 40, "workers": 1}
    pack(source, tmp_path / "whole", **options)
    finish, done = packing.Writer.finish, []

    def full(writer):
        if len(done) == after:
            raise OSError(errno.ENOSPC, "No space left on device", "x.tar")
        done.append(finish(writer))
        return done[-1]

    monkeypatch.setattr(packing.Writer, "finish", full)
    with pytest.raises(OSError, match="No space"):
        pack(source, tmp_path / "target", **options)
    monkeypatch.undo()
    assert len(list((tmp_path / "target").glob("*.tar"))) == after
    assert not list((tmp_path / "target").glob("*.partial"))
    victim = tmp_path / "target" / "train-000000.tar"
    if after == 3:
        victim.unlink()
    if after == 4:
        os.truncate(victim, 100)
    pack(source, tmp_path / "target", **options)
    assert content(tmp_path / "target") == content(tmp_path / "whole")


def test_a_full_disk_is_one_line(source, tmp_path, monkeypatch, capsys):
    def full(writer, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(writer._new.path))

    monkeypatch.setattr(packing.Writer, "_write", full)
    assert main(["pack", str(source), str(tmp_path / "target"), "--workers", "1"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No space left" in error and "the same command goes on" in error
    assert not list((tmp_path / "target").glob("*.partial"))


def test_a_folder_of_something_else_is_refused(source, tmp_path):
    target = tmp_path / "target"
    pack(source, target, shard_size=20, workers=1)
    before = content(target)
    for options, what in (
        ({"shard_size": 21}, "shard_size was 20, is 21"),
        ({"shorter_side": 9}, "shorter_side was None, is 9"),
        ({"seed": 3}, "seed was 0, is 3"),
        ({"shuffle": False}, "shuffle was True, is False"),
    ):
        with pytest.raises(ValueError, match=f"was packed with other settings: {what}; give another target"):
            pack(source, target, **{"shard_size": 20, **options})
    (source / "train" / "ant" / "new.jpg").write_bytes(noise(77, 30))
    with pytest.raises(ValueError, match="they were other images"):
        pack(source, target, shard_size=20)
    assert content(target) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="must be empty or not there, or begun by the same command"):
        pack(source, tmp_path / "other")
    (tmp_path / "other" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is not of this version"):
        pack(source, tmp_path / "other")
    with pytest.raises(ValueError, match="must be a folder or not there, got a file"):
        pack(source, tmp_path / "other" / "thesis.tex")
    with pytest.raises(ValueError, match="must lie outside of what is packed"):
        pack(source, source / "packed")
    with pytest.raises(ValueError, match=f"must lie outside of what is packed, {source}/val"):
        pack(source / "train", source / "val" / "packed", held_out=source / "val")


def test_what_a_system_leaves_on_a_fresh_disk_is_no_content(source, tmp_path):
    target = tmp_path / "target"
    (target / "lost+found").mkdir(parents=True)
    (target / ".Trash-1000").mkdir()
    assert pack(source, target, workers=1).images == 49
    assert len(find_images(target).train.files) == 43


def folder_of(root, classes):
    for number, name in enumerate(classes):
        for image in range(4):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / f"{image}.jpg").write_bytes(noise(10 * number + image))
    return root


def test_images_of_the_same_names_are_told_apart(tmp_path):
    """The classes have other names; the images are others; some are measured on that were trained on."""
    first = folder_of(tmp_path / "first", ("cat", "dog"))
    shutil.copytree(first, tmp_path / "smaller")
    (tmp_path / "smaller" / "dog" / "2.jpg").write_bytes(noise(99, 12))
    shutil.copytree(first, tmp_path / "held")
    pack(first, tmp_path / "target", workers=1)
    before = content(tmp_path / "target")
    for source, held_out, what in (
        (folder_of(tmp_path / "other", ("apple", "pear")), None, "the classes had other names"),
        (tmp_path / "smaller", None, "they were other images"),
        (first, tmp_path / "held", "they were other images"),
    ):
        with pytest.raises(ValueError, match=f"{what}; give another target, or remove it$"):
            pack(source, tmp_path / "target", held_out=held_out, workers=1)
        assert content(tmp_path / "target") == before
    first.rename(tmp_path / "moved")
    assert pack(tmp_path / "moved", tmp_path / "target", workers=1).images == 8
    after = content(tmp_path / "target")
    assert {**after, "manifest.json": None} == {**before, "manifest.json": None}


def test_what_another_process_has_packed_in_the_meantime_is_seen(tmp_path, monkeypatch):
    first, other = folder_of(tmp_path / "first", ("cat", "dog")), folder_of(tmp_path / "other", ("apple", "pear"))

    alone = packing._alone

    def after_another(folder):
        monkeypatch.undo()
        pack(other, folder, workers=1)
        return alone(folder)

    monkeypatch.setattr(packing, "_alone", after_another)
    with pytest.raises(ValueError, match="the classes had other names"):
        pack(first, tmp_path / "target", workers=1)
    assert (tmp_path / "target" / "classes.txt").read_text() == "apple\npear\n"


def test_a_job_has_as_many_images_as_fit_into_its_bytes():
    kilobyte, limit = 1 << 10, packing._JOB_BYTES
    assert packing._spans([kilobyte] * 70, 5) == [(5, 37), (37, 69), (69, 75)]
    assert packing._spans([limit, 1, limit - 1, 1, 9 * limit, 1], 0) == [(0, 1), (1, 3), (3, 4), (4, 5), (5, 6)]
    assert packing._spans([], 3) == []


def test_large_images_are_jobs_of_their_own(source, tmp_path, monkeypatch):
    jobs, job = [], packing.pack_process.job
    monkeypatch.setattr(packing.pack_process, "job", lambda paths, side: jobs.append(paths) or job(paths, side))
    pack(source, tmp_path / "target", workers=1)
    assert sorted(map(len, jobs)) == [6, 11, 32]
    jobs.clear()
    monkeypatch.setattr(packing, "_JOB_BYTES", 3000)
    pack(source, tmp_path / "again", workers=1)
    assert {len(paths) for paths in jobs} == {1}
    assert members(tmp_path / "again") == members(tmp_path / "target")


def test_two_at_once_are_told(source, tmp_path):
    (tmp_path / "target").mkdir()
    in_use = rf"target is in use: process {os.getpid()} on \S+ packs there$"
    with packing._alone(tmp_path / "target"), pytest.raises(RunInUseError, match=in_use):
        pack(source, tmp_path / "target")
    pack(source, tmp_path / "target", workers=1)
    assert not list((tmp_path / "target").glob(".*"))


def test_two_are_kept_apart_where_folders_cannot_be_locked(source, tmp_path, monkeypatch):
    """As on NFS, which locks what is open for writing alone."""
    flock = fcntl.flock

    def of_files(descriptor, operation):
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", of_files)
    (tmp_path / "target").mkdir()
    with packing._alone(tmp_path / "target"), pytest.raises(RunInUseError, match="packs there"):
        pack(source, tmp_path / "target")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_size": "many"}, "shard_size must be bytes with a unit .* got 'many'"),
        ({"shard_size": 0}, "shard_size must be bytes with a unit .* or a number of images, got 0"),
        ({"shard_size": "1KB"}, "got '1KB'"),
        ({"shorter_side": 0}, "shorter_side must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        pack(tmp_path, tmp_path / "target", **options)
    assert not (tmp_path / "target").exists()


def test_the_order_is_fixed_for_ever(source, tmp_path):
    pack(source, tmp_path / "target", workers=1)
    names = " ".join(name for name, _ in members(tmp_path / "target"))
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "e636f6314b21ab76"
