"""How large an image may be: what is above is left out and named everywhere, and takes neither memory nor time."""

import io
import os
import re
import zlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from amcl_fast.data import ContrastiveDataModule
from amcl_fast.data.graph import Output
from amcl_fast.data.memory import Memory, most_memory
from amcl_fast.data.own.datasets import DatasetModule
from amcl_fast.data.own.items import Items
from amcl_fast.data.packed_paths import PackedPaths
from amcl_fast.data.reading.reader import Reader
from amcl_fast.data.reading.reduction import Reduction, reduce
from amcl_fast.data.scan import check, header_process
from amcl_fast.data.scan.headers import BadImage, Look, check_header, look
from amcl_fast.data.scan.largest import KEPT, Largest
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, SCANS, Limits
from amcl_fast.data.shards.pack import pack
from amcl_fast.data.sources.find import find_images
from amcl_fast.encoder import Encoder
from amcl_fast.evaluate.command import _data_module
from amcl_fast.left_out import summarise
from amcl_fast.runs.settings import refused_changes
from tests.helpers.damaged_files import chunk, png
from tests.helpers.hostile_images import flat_png, old_bmp, progressive_jpeg, run_length_bmp, sparse_jpeg
from tests.helpers.small_shards import picture, write_shards

LONG = flat_png(16, 16, extra=chunk(b"tEXt", b"key\0" + b"a" * 5_000))
SMALL = Limits(bytes=3_000, pixels=400)  # of which images of 16 x 16 are within, and none of 24 x 24


def seen(content, limits=DEFAULT_LIMITS, at_hand=True):
    return look(lambda at, count: content[at : at + count], len(content), limits, at_hand=at_hand)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (flat_png(9_999, 10_002), r"too large: 9999 x 10002 pixels; at most 100,000,000 .*\(data.max_image_pixels\)"),
        (old_bmp(65_535, 65_535), "too large: 65535 x 65535 pixels; at most 100,000,000"),
        (run_length_bmp(100_000_001, 1), "too large: 100000001 x 1 pixels; at most 100,000,000"),
        (progressive_jpeg(4_000, 4_000, 126), r"too large: 126 scans of 16,000,000 pixels; at most 125 .*_pixels\)"),
        (png(64, 64, data=np.random.default_rng(0).bytes(100_000)), "corrupt PNG: more data than 64 x 64 pixels have"),
    ],
    ids=["PNG", "old BMP", "long BMP", "scans", "surplus"],
)
@pytest.mark.parametrize("at_hand", [False, True])
def test_what_is_too_large_is_seen_in_headers_alone(content, reason, at_hand):
    assert len(content) < 300_000
    with pytest.raises(BadImage, match=reason):
        seen(content, at_hand=at_hand)


@pytest.mark.parametrize(("chunks", "looks"), [(1_000, Look.WHOLE), (200_001, Look.UNKNOWN)])
def test_not_all_of_millions_of_chunks_are_walked_through(chunks, looks):
    extent = b"VP8X\x0a\0\0\0\x08\0\0\0\x0f\0\0\x0f\0\0"
    content = b"WEBP" + extent + b"none\0\0\0\0" * chunks + b"EXIF\2\0\0\0\0\0"
    assert seen(b"RIFF" + len(content).to_bytes(4, "little") + content).looks is looks


def test_a_scan_reads_a_few_bytes_of_a_large_file(tmp_path):
    """All of it is read where a JPEG may have too many scans, if it has many pixels: then to decide, else in a run."""
    read = []

    def reading(content):
        return lambda at, count: read.append(len(content[at : at + count])) or content[at : at + count]

    small = progressive_jpeg(1_000, 1_000, 2_100)
    assert look(reading(small), len(small)).looks is Look.WHOLE
    assert sum(read) < 10_000
    with pytest.raises(BadImage, match=r"^too large: 2,100 scans of 1,000,000 pixels; at most 256 are decoded$"):
        seen(small)
    sparse_jpeg(tmp_path / "sparse.jpg", 1 << 40)
    with pytest.raises(BadImage, match="too large: 1,099,511,627,776 bytes; at most 200,000,000"):
        check_header(str(tmp_path / "sparse.jpg"))


def test_scans_are_those_before_the_end_of_the_image():
    """A video may follow; and no comment hides any."""
    video = b"\xff\xda" * 3_000_000
    whole = progressive_jpeg(4_000, 4_000, 125)
    assert seen(whole + video).looks is Look.PARSED
    first = whole.rindex(b"\xff\xda")
    for between in (b"\xff\xfe\0\x04\xff\xd9", b"\xff\xfe\0\x02" * 100_000):
        hidden = whole[:first] + between + 2 * whole[first:-2] + b"\xff\xd9"
        with pytest.raises(BadImage, match="126 scans of 16,000,000 pixels; at most 125"):
            seen(hidden)
    with pytest.raises(BadImage, match="corrupt JPEG: no end"):
        seen(whole[:first] + b"\xff\xfe\0\x02" * 200_000 + whole[first:])


def test_images_of_encoders_are_not_too_long():
    """The ten scans of a progressive one with colours, of the most pixels; a PNG that cannot be packed."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    exactly = Limits(pixels=300 * 400)
    for kind, options in [("JPEG", {"progressive": True}), ("JPEG", {}), ("PNG", {"compress_level": 0}), ("PNG", {})]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **options)
        assert seen(file.getvalue(), exactly).looks is Look.WHOLE
        assert seen(file.getvalue(), exactly).streams == (kind == "JPEG" and not options)
    assert seen(progressive_jpeg(400, 300, SCANS), exactly).looks is Look.WHOLE
    with pytest.raises(BadImage, match="21 scans of 120,000 pixels; at most 20"):
        seen(progressive_jpeg(400, 300, SCANS + 1), exactly)


@pytest.fixture
def mixed(tmp_path):
    """Four images of 16 x 16, one of 24 x 24, one of many bytes; as a folder, a list and shards."""
    images = {f"{label}/{number}.png": picture(number) for label in ("ant", "bee") for number in range(2)}
    images |= {"ant/large.png": picture(9, size=24), "bee/long.png": LONG}
    for name, content in images.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    lines = [f"folder/{name},{name[:3]}" for name in images]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    labels = [(name.replace("png", "cls"), str(int(name.startswith("bee"))).encode()) for name in images]
    write_shards(tmp_path / "shards", {"0.tar": [*images.items(), *labels]})
    return tmp_path


@pytest.mark.parametrize("source", ["folder", "list.csv", "shards"])
def test_limits_leave_out_and_take_in_again_whatever_earlier_scans_have_kept(mixed, source, monkeypatch):
    looked_at = []
    look_at = header_process.look_at
    monkeypatch.setattr(header_process, "look_at", lambda path, *more: looked_at.append(path) or look_at(path, *more))
    root = mixed / source
    find_images(root)
    looked_at.clear()
    for limits, expected in [(DEFAULT_LIMITS, 6), (SMALL, 4), (DEFAULT_LIMITS, 6), (SMALL._replace(pixels=576), 5)]:
        found = find_images(root, limits=limits)
        assert len(found.train.files) + (len(found.held_out.files) if found.held_out else 0) == expected
        if limits == SMALL:
            reasons = sorted(reason for _, reason in found.train.skipped)
            assert [re.sub(r"[\d,]+ bytes", "N bytes", reason) for reason in reasons] == [
                "too large: 24 x 24 pixels; at most 400 are accepted (data.max_image_pixels)",
                "too large: N bytes; at most 3,000 are accepted (data.max_image_bytes)",
            ]
            assert summarise(found.train.skipped) == "2 left out (2 images larger than is accepted)"
    # Verdicts of each pair of limits are kept beside the others'. Tars are looked at by processes of their own.
    assert len(looked_at) == (0 if source == "shards" else 2 * 6)


def test_the_data_module_keeps_to_its_limits_on_every_way(mixed):
    def module(**settings):
        data = ContrastiveDataModule(str(mixed / "folder"), size=8, batch_size=2, num_threads=1, **settings)
        data.prepare_data()
        data.setup()
        return data

    data, small = module(), module(max_image_bytes=3_000, max_image_pixels=400)
    assert (data.num_train, small.num_train) == (4, 2)  # a tenth of each class, one at least, is held out
    assert small.train_dataloader()._checked.reader._limits == SMALL == small.limits
    assert [Path(path).name for path, _ in small.skipped] == ["large.png", "long.png"]
    # Found again by another process, which has no limits of its own to go by.
    assert data._kept()[0].train.files != small._kept()[0].train.files
    for name in ("max_image_bytes", "max_image_pixels"):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0$"):
            ContrastiveDataModule(**{name: 0})
        assert refused_changes({"data": {name: 1}}, {"data": {name: 2}}) == {}


def test_a_position_is_taken_up_with_other_limits_and_told_if_the_images_are_others(mixed, caplog):
    def loader(pixels):
        settings = {"size": 8, "batch_size": 2, "num_threads": 1, "max_image_pixels": pixels}
        data = ContrastiveDataModule(str(mixed / "folder"), **settings)
        data.prepare_data()
        data.setup()
        return data.train_dataloader()

    state = loader(576).state_dict()
    loader(577).load_state_dict(state)
    assert not caplog.messages
    loader(575).load_state_dict(state)
    assert caplog.messages == ["the image files are not those of the checkpoint: their order begins anew"]


def test_evaluations_follow_the_run(mixed):
    encoder = Encoder(None, None, 8, (0.5,) * 3, (0.5,) * 3, 1.0, {}, data=str(mixed), limits=SMALL)
    cpu = SimpleNamespace(type="cpu")
    made = _data_module(mixed, encoder, str(mixed / "folder"), None, None, None, 2, cpu)
    assert made.limits == SMALL
    own = _data_module(mixed, encoder, str(mixed / "folder"), None, None, None, 2, cpu, limits=(None, 7_000))
    assert own.limits == SMALL._replace(pixels=7_000)


def test_packing_leaves_out_what_is_too_large(mixed):
    packed = pack(mixed / "folder", mixed / "small", max_image_bytes=3_000, max_image_pixels=400, workers=1)
    assert packed.images == 4
    assert sorted(Path(path).name for path, _ in packed.left_out) == ["large.png", "long.png"]
    with pytest.raises(ValueError, match="max_image_pixels must be at least 1, got 0"):
        pack(mixed / "folder", mixed / "none", max_image_pixels=0)


def test_a_dataset_of_ones_own_keeps_to_the_limits():
    class Pictures:
        targets = (0, 0, 1, 1)

        def __len__(self):
            return 4

        def __getitem__(self, place):
            content = LONG if place == 2 else picture(place, size=24 if place == 3 else 16)
            return {"image": {"bytes": content}, "label": self.targets[place]}

    limits = {"max_image_bytes": 3_000, "max_image_pixels": 400}
    data = DatasetModule(Items(Pictures()), root="own", size=8, batch_size=2, num_threads=1, **limits)
    with closing(data._output(2).reader(None, 1)) as reader:
        bad = reader.read([f"data[{place}]" for place in range(4)]).bad
    assert bad == {
        2: f"too large: {len(LONG):,} bytes; at most 3,000 are accepted (data.max_image_bytes)",
        3: "too large: 24 x 24 pixels; at most 400 are accepted (data.max_image_pixels)",
    }


def peak_of(reader):
    """Mebibytes that a reader's process has had."""
    status = Path(f"/proc/{reader._worker._process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def test_making_images_smaller_takes_the_memory_of_four_of_the_largest(tmp_path):
    """Twelve PNGs of 8 megapixels and 1.3 kB, of which Pillow makes 32 MB each, by sixteen threads."""
    content = flat_png(2_900, 2_800)
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(content)
    files = [str(tmp_path / f"{number}.png") for number in range(12)]
    peaks = []
    for most in (8_120_000, 100_000_000):
        reduction = Reduction(1_000_000, 300)
        with closing(Reader(reduction=reduction, threads=16, limits=Limits(pixels=most))) as reader:
            encoded = reader.read(files)
            peaks.append(peak_of(reader))
        assert not encoded.bad
        assert {Image.open(io.BytesIO(image)).size for image in encoded.images} == {(363, 350)}
    assert peaks[0] < 180 < peaks[1], peaks


def test_what_pillow_would_unpack_for_long_is_not_given_to_it(tmp_path):
    """Rows of run lengths, which it fills byte by byte; and texts of many megabytes beside pixels."""
    (tmp_path / "runs.bmp").write_bytes(run_length_bmp(10_000, 10_000))
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1 << 24), 9))
    (tmp_path / "text.png").write_bytes(flat_png(3_000, 3_000, extra=text))
    reader = Reader(reduction=Reduction(1_000_000, 300))
    with closing(reader):
        encoded = reader.read([str(tmp_path / "runs.bmp"), str(tmp_path / "text.png")])
        assert peak_of(reader) < 200
    assert encoded.bad == {
        0: "too large: 10000 x 10000 pixels in 41,080 bytes, and Pillow, which would make it smaller, cannot decode it",
    }
    assert Image.open(io.BytesIO(encoded.images[1])).size == (375, 375)


@pytest.mark.parametrize(
    "beside",
    [
        chunk(b"iCCP", b"of a printer\0\0" + zlib.compress(bytes(1 << 21))),
        chunk(b"tEXt", b"key\0a text")[:-4] + b"none",
        chunk(b"gAMA", b"\0"),
    ],
    ids=["profile", "checksum", "gamma"],
)
def test_what_lies_beside_the_pixels_of_a_png_costs_none(beside):
    content = flat_png(300, 200, extra=beside)
    assert Image.open(io.BytesIO(reduce(content, 2))).size == (150, 100)
    damaged = content[:-20] + bytes(20)
    assert reduce(damaged, 2) is damaged


def test_where_pillow_ends_the_process_large_images_are_left_out_and_the_others_read(tmp_path, monkeypatch):
    (tmp_path / "large.png").write_bytes(flat_png(2_100, 2_000))
    (tmp_path / "small.png").write_bytes(picture(1))
    reader = Reader(reduction=Reduction(1_000_000, 300))
    start, attempts = reader._start, []

    def dies(threads):
        attempts.append(threads)
        worker = start(threads)
        if len(attempts) < 3:
            worker.kill()
        return worker

    monkeypatch.setattr(reader, "_start", dies)
    with closing(reader):
        encoded = reader.read([str(tmp_path / "large.png"), str(tmp_path / "small.png")])
        assert attempts == [1, 1, 0]
        assert not reader.read([str(tmp_path / "large.png")]).bad  # of another list
    assert attempts == [1, 1, 0, 1]
    assert [*encoded.bad] == [0]
    assert encoded.images[1].tobytes() == picture(1)


def test_many_bytes_of_few_pixels_do_not_stay_in_memory(tmp_path):
    """40 MB of nothing after an image: it is written anew, and the memory is given back."""
    (tmp_path / "padded.png").write_bytes(picture(7) + bytes(40_000_000))
    (tmp_path / "small.png").write_bytes(picture(8))
    with closing(Reader(reduction=Reduction(1_000_000, 300))) as reader:
        for _ in range(2):
            reader.request([str(tmp_path / "padded.png"), str(tmp_path / "small.png")])
            encoded = reader.take()
            assert not encoded.bad
            assert Image.open(io.BytesIO(encoded.images[0])).size == (16, 16)
            assert encoded.images[1].tobytes() == picture(8)
        for memory in reader._memories:
            assert os.fstat(memory.descriptor).st_blocks * 512 <= 4 << 20


def test_the_memory_of_the_largest_images_as_worked_out_by_hand():
    largest = Largest.joined([Largest.of([9_000_000, 40_000], [70_000_000, 9]), Largest.of([5_000_000], [8])])
    assert largest == ([9_000_000, 5_000_000, 40_000], [70_000_000, 9, 8])
    output = Output(size=32, batch_size=2, prefetch=3, num_threads=1, reduce_above=1_000_000)
    views = 12 * 4 * 2 * (32**2 + 8**2)
    expected = Memory(
        decoded=3 * 8_000_000 * 3 // 2, encoded=5 * 8_000_009, reduced=12 * 9_000_000 + 70_000_009, views=views
    )
    assert most_memory(output, [32, 8], largest) == expected
    whole = most_memory(replace(output, reduce_above=None), [32, 8], largest)
    assert whole == Memory(decoded=3 * 14_000_000 * 3 // 2, encoded=5 * 70_000_009, reduced=0, views=views)
    on_gpu = most_memory(replace(output, device="gpu"), [32, 8], largest)
    assert on_gpu == expected._replace(decoded=0, views=0)
    many = Largest.of([100] * (KEPT + 5), [7] * (KEPT + 5))
    assert most_memory(replace(output, batch_size=KEPT + 3), [1], many)[:2] == (
        round(4.5 * 100 * (KEPT + 3)),
        35 * (KEPT + 3),
    )


@pytest.mark.parametrize("source", ["folder", "list.csv", "shards"])
def test_the_largest_images_are_known_after_every_scan(mixed, source):
    for _ in range(2):  # the second time from the cache
        data = ContrastiveDataModule(str(mixed / source), size=8, batch_size=3, max_image_bytes=3_000)
        data.prepare_data()
        assert data._kept()[0].largest == data._found[0].largest
        data.setup()
        assert data._largest.pixels == [576, *[256] * 4]
        assert data._largest.bytes == sorted([len(picture(9, size=24)), *(len(picture(n)) for n in (0, 0, 1, 1))])[::-1]
    assert data.most_memory(3).decoded == round(4.5 * (576 + 2 * 256))


@pytest.mark.parametrize("most", [1, 3, 100])
def test_of_many_classes_no_more_is_remembered_than_the_largest_of_all(mixed, monkeypatch, most):
    """A class may have a handful of images, of millions in all."""
    monkeypatch.setattr(check, "KEPT", most)
    sizes = {str(path): path.stat().st_size for path in (mixed / "folder").rglob("*.png")}
    groups = check.check_files(str(mixed), {path: PackedPaths.pack([path]) for path in sizes}).values()
    assert sum(len(group.largest.bytes) for group in groups) == min(most, len(sizes))
    found = Largest.joined(group.largest for group in groups)
    assert found.bytes == sorted(sizes.values(), reverse=True)[:most]
    assert found.pixels == [576, *[256] * 5][:most]


@pytest.mark.parametrize("source", ["folder", "list.csv", "shards", "parts"])
def test_the_largest_images_may_be_those_that_are_measured_on(mixed, source):
    small = {f"{label}/{number}.png": picture(number, size=8) for label in ("ant", "bee") for number in range(2)}
    for name, content in small.items():
        (mixed / "small" / name).parent.mkdir(parents=True, exist_ok=True)
        (mixed / "small" / name).write_bytes(content)
    if source == "parts":
        numbers = [(name.replace("png", "cls"), b"%d" % name.startswith("bee")) for name in small]
        large = [("large.png", picture(9, size=24)), ("large.cls", b"0")]
        write_shards(mixed / "parts", {"train-0.tar": [*small.items(), *numbers], "val-0.tar": large})
        found = find_images(mixed / "parts")
    else:
        (mixed / "shards" / "classes.txt").write_text("ant\nbee\n")
        found = find_images(mixed / "small", mixed / source)
    assert found.held_out.files and found.largest.pixels[0] == 576
