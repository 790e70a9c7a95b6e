"""amcl_fast.data.shards.pack: the same bytes however often it was interrupted, pixels and labels of the source."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amcl_fast.cli import main
from amcl_fast.data.locations import shown, spans
from amcl_fast.data.reading.reduction import encoded
from amcl_fast.data.shards import pack as packing
from amcl_fast.data.shards.pack import pack
from amcl_fast.data.sources import named
from amcl_fast.data.sources.find import find_images
from tests.helpers.folders import content, folder_of
from tests.helpers.small_shards import noise, picture, samples


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


def test_a_job_has_as_many_images_as_fit_into_its_bytes():
    assert spans([10] * 70, 32, 1000, 5) == [(5, 37), (37, 69), (69, 75)]
    assert spans([100, 1, 99, 1, 900, 1], 32, 100) == [(0, 1), (1, 3), (3, 4), (4, 5), (5, 6)]
    assert spans([], 32, 100, 3) == []


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
