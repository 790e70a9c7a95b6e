import base64
import gc
import timeit
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image

from amcl_fast.data import Augmentation, ContrastiveLoader, EvaluationLoader
from amcl_fast.data.graph import Output
from amcl_fast.data.loader.position import pack, unpack
from amcl_fast.data.locations import member, shown
from amcl_fast.data.reading.reader import Reader
from amcl_fast.data.scan.images import Images
from amcl_fast.data.sources.find import find_images
from tests.helpers.processes import end_group
from tests.helpers.small_shards import noise, picture, samples

RAW = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
PLAIN = Augmentation.from_letters("")
EVERYTHING = Augmentation.from_letters("abcde")


def numbered(folder: Path, count: int, classes: int = 4) -> Images:
    """Flat images whose red is their number, of class number mod `classes`."""
    folder.mkdir()
    files = []
    for number in range(count):
        files.append(str(folder / f"{number:03}.png"))
        Image.new("RGB", (8, 8), (number, 37 * number % 256, 91 * number % 256)).save(files[-1])
    return Images(files, [number % classes for number in range(count)], [str(c) for c in range(classes)])


def loader(images, augmentation=PLAIN, batch_size=8, threads=2, **options):
    output = Output(size=8, batch_size=batch_size, num_threads=threads, **RAW)
    return ContrastiveLoader(images, [augmentation] * 2, output, **options)


def numbers(batch):
    """Which of the `numbered` images a batch of plain views holds."""
    return batch[0][0][:, 0, 0, 0].round().int().tolist()


def epochs(data, count):
    """Copies of the batches of some epochs."""
    return copies(batch for _ in range(count) for batch in data)


def copies(batches):
    return [(tuple(view.clone() for view in views), labels) for views, labels in batches]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for (views, labels), (other_views, other_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(labels, other_labels)
        assert all(torch.equal(a, b) for a, b in zip(views, other_views, strict=True))


def corrupt(path):
    """Damage that no header check can see, of the pixels of a PNG."""
    content = bytearray(Path(path).read_bytes())
    start = content.index(b"IDAT") + 6
    content[start : start + 4] = b"\xff\xff\xff\xff"
    Path(path).write_bytes(content)


def test_batches_have_the_promised_form_and_the_right_labels(tmp_path):
    batches = list(loader(numbered(tmp_path / "i", 30)))
    assert len(batches) == 3
    for batch in batches:
        views, labels = batch
        assert isinstance(views, tuple)
        assert len(views) == 2
        for view in views:
            assert view.shape == (8, 3, 8, 8)
            assert view.dtype == torch.float32
            assert view.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64
        assert labels.tolist() == [number % 4 for number in numbers(batch)]


def test_views_of_an_image_differ(save):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    images = Images([save(f"{n}.png", noise) for n in range(8)], [0] * 8, ["a"])
    ((first, second), _), *_ = loader(images, EVERYTHING)
    assert (first - second).abs().mean((1, 2, 3)).min() > 0


def test_every_epoch_is_another_order_of_all_images_without_the_remainder(tmp_path):
    data = loader(numbered(tmp_path / "i", 30))
    orders = [[number for batch in data for number in numbers(batch)] for _ in range(4)]
    for order in orders:
        assert len(set(order)) == len(order) == 24
    assert len({tuple(order) for order in orders}) == 4
    # The dropped six are others each time.
    assert len(set(orders[0]) | set(orders[1])) > 24


@pytest.mark.parametrize("count", [48, 50])
def test_shards_are_disjoint_and_cover_an_epoch(tmp_path, count):
    images = numbered(tmp_path / "i", count)
    shards = [loader(images, batch_size=4, shard=shard, num_shards=3) for shard in range(3)]
    assert [len(shard) for shard in shards] == [4, 4, 4]
    seen = []
    for _ in range(3):
        parts = [[number for batch in shard for number in numbers(batch)] for shard in shards]
        epoch = sorted(number for part in parts for number in part)
        assert len(set(epoch)) == 48
        seen.append(parts)
    assert seen[0] != seen[1] != seen[2]


def test_shards_draw_their_own_augmentations(save):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    images = Images([save(f"{n}.png", noise) for n in range(16)], [0] * 16, ["a"])
    first, second = (next(iter(loader(images, EVERYTHING, shard=s, num_shards=2)))[0][0] for s in range(2))
    assert not torch.equal(first, second)


def test_seeds_repeat_and_differ_whatever_the_number_of_threads(tmp_path):
    images = numbered(tmp_path / "i", 30)
    runs = [
        epochs(loader(images, EVERYTHING, threads=threads, seed=seed), 2) for threads, seed in ((1, 3), (3, 3), (2, 4))
    ]
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0][0][0][0], runs[2][0][0][0])
    assert not torch.equal(runs[0][0][1], runs[2][0][1])


def test_a_batch_stays_valid_as_long_as_it_is_held(tmp_path):
    data = loader(numbered(tmp_path / "i", 64), EVERYTHING)
    held, copied = [], []
    for _ in range(3):
        for views, _ in data:
            held.extend(views)
            copied.extend(view.clone() for view in views)
    assert len({view.data_ptr() for view in held}) == len(held)
    del data, views
    gc.collect()
    assert all(torch.equal(a, b) for a, b in zip(held, copied, strict=True))


def test_views_are_not_copied(tmp_path, monkeypatch):
    data = loader(numbered(tmp_path / "i", 16))
    addresses = []
    from_dlpack = torch.from_dlpack

    def spy(tensor):
        addresses.append(tensor.data_ptr())
        return from_dlpack(tensor)

    monkeypatch.setattr(torch, "from_dlpack", spy)
    views, _ = next(iter(data))
    assert [view.data_ptr() for view in views] == addresses[:2]


def test_an_abandoned_epoch_is_continued_by_a_full_one(tmp_path):
    data = loader(numbered(tmp_path / "i", 32))
    begun = [number for batch in islice(data, 2) for number in numbers(batch)]
    following = [numbers(batch) for batch in data]
    assert len(following) == len(data) == 4
    assert sorted(begun + following[0] + following[1]) == list(range(32))


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 6])
def test_a_restored_loader_continues_bit_for_bit(tmp_path, stop):
    images = numbered(tmp_path / "i", 30)
    expected = epochs(loader(images, EVERYTHING), 4)
    first = loader(images, EVERYTHING)
    done = copies(islice((batch for _ in range(4) for batch in first), stop))
    path = tmp_path / "state"
    torch.save(first.state_dict(), path)
    second = loader(images, EVERYTHING, threads=1)
    second.load_state_dict(torch.load(path, weights_only=True))
    assert sum(1 for _ in islice(second, 0)) == 0  # an iterator that is made and not used changes nothing
    second.load_state_dict(torch.load(path, weights_only=True))
    rest = copies(second)
    assert len(rest) == (3 - stop % 3)  # the rest of the epoch that was begun, or a new one
    while len(done) + len(rest) < 12:
        rest += copies(second)
    assert_same(done + rest, expected)


def test_a_state_of_other_settings_is_refused(tmp_path):
    images = numbered(tmp_path / "i", 30)
    state = loader(images).state_dict()
    for other, what in (
        (loader(images, batch_size=4), "batch_size was 8, is 4"),
        (loader(images, seed=1), "seed was 0, is 1"),
        (loader(images, EVERYTHING), "views was"),
        (loader(images, num_shards=2), "num_shards was 1, is 2"),
    ):
        with pytest.raises(ValueError, match=f"does not fit these settings: {what}"):
            other.load_state_dict(state)
    alone = loader(images, shard=1, num_shards=2).state_dict()
    with pytest.raises(ValueError, match="lacks shard 0"):
        loader(images, shard=0, num_shards=2).load_state_dict(alone)


def test_a_state_of_other_files_begins_their_order_anew(tmp_path, caplog):
    images = numbered(tmp_path / "i", 30)
    first = loader(images)
    next(iter(first))
    fewer = images.subset(range(29))
    second = loader(fewer)
    second.load_state_dict(first.state_dict())
    assert "not those of the checkpoint" in caplog.text
    rest = copies(second)
    assert len(rest) == 2
    assert_same(rest, epochs(loader(fewer), 1)[:2])

    moved = tmp_path / "moved"
    (tmp_path / "i").rename(moved)
    caplog.clear()
    elsewhere = loader(Images([str(moved / Path(f).name) for f in images.files], images.labels, images.classes))
    elsewhere.load_state_dict(first.state_dict())
    assert caplog.text == ""


def resume_in_two_processes(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name in ("images", "shards"):
        resume_own_part(rank, find_images(folder / name).train)
    end_group()


def resume_own_part(rank, images):
    data = loader(images, EVERYTHING, batch_size=4, shard=rank, num_shards=2)
    iterator = iter(data)
    next(iterator)
    state = [data.state_dict()]
    expected = copies(iterator)
    # As a checkpoint does it: what the first process wrote is loaded by all.
    torch.distributed.broadcast_object_list(state, src=0)
    restored = loader(images, EVERYTHING, batch_size=4, shard=rank, num_shards=2)
    restored.load_state_dict(state[0])
    assert_same(copies(restored), expected)


@pytest.mark.distributed
def test_every_process_resumes_its_own_part_from_the_first_ones_state(make_folder, make_shards, tmp_path):
    make_folder(per_class=8)
    make_shards({f"{shard}.tar": samples(range(8 * shard, 8 * shard + 8), content=noise) for shard in range(3)})
    torch.multiprocessing.spawn(resume_in_two_processes, (tmp_path,), nprocs=2)


def test_a_damaged_file_is_replaced_and_nothing_else_changes(tmp_path):
    images = numbered(tmp_path / "i", 30)
    expected = [numbers(batch) for batch in epochs(loader(images), 3)]
    victims = [expected[1][2], expected[1][5], expected[4][0]]
    for victim in victims:
        corrupt(images.files[victim])

    listed = []
    data = loader(images, on_bad_file=lambda path, reason: listed.append((path, reason)))
    batches = epochs(data, 3)
    assert sorted(path for path, _ in listed) == sorted({images.files[victim] for victim in victims})
    assert all("cannot be read and decoded" in reason for _, reason in listed)

    def substitute(number):
        while number in victims:
            number = (number + 1) % 30
        return number

    for batch, wanted in zip(batches, expected, strict=True):
        assert numbers(batch) == [substitute(number) for number in wanted]
        assert batch[1].tolist() == [substitute(number) % 4 for number in wanted]


def test_augmentations_go_on_bit_for_bit_around_a_damaged_file(tmp_path):
    images = numbered(tmp_path / "i", 30)
    expected = epochs(loader(images, EVERYTHING), 2)
    victim = numbers(next(islice(loader(images), 2, None)))[0]
    corrupt(images.files[victim])
    batches = epochs(loader(images, EVERYTHING), 2)
    differing = [
        (number, place)
        for number, (ours, theirs) in enumerate(zip(batches, expected, strict=True))
        for place in range(8)
        if any(not torch.equal(a[place], b[place]) for a, b in zip(ours[0], theirs[0], strict=True))
    ]
    assert (2, 0) in differing
    assert len(differing) <= 2  # it comes once an epoch, at most


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b""), lambda p: p.write_text("GIF89a")]
)
def test_files_that_vanish_or_change_during_the_run_do_not_end_it(tmp_path, damage):
    images = numbered(tmp_path / "i", 30)
    data = loader(images)
    next(iter(data))
    damage(Path(images.files[7]))
    damage(Path(images.files[8]))
    seen = [number for batch in epochs(data, 3) for number in numbers(batch)]
    assert 9 in seen
    assert seen.count(9) > 3


def test_replacements_are_part_of_the_state(tmp_path):
    images = numbered(tmp_path / "i", 24)
    corrupt(images.files[5])
    expected = [numbers(batch) for batch in epochs(loader(images), 2)]
    fresh = loader(images)
    list(fresh)
    listed = []
    second = loader(images, on_bad_file=lambda path, reason: listed.append(path))
    second.load_state_dict(fresh.state_dict())
    assert listed == [images.files[5]]
    assert [numbers(batch) for batch in second] == expected[3:]


def in_shards(make_shards):
    """30 flat images whose red is their number, in three tars."""
    root = make_shards({f"{n}.tar": samples(range(10 * n, 10 * n + 10), 4) for n in range(3)})
    return root, find_images(root).train


def overwrite(location, content, offset=0):
    """Change bytes within a tar, at their place in a member."""
    place = member(location)
    with open(place.shard, "r+b") as file:
        file.seek(place.offset + offset)
        file.write(content)


def test_shards_give_the_batches_of_files(make_shards, tmp_path):
    _, images = in_shards(make_shards)
    files = []
    for number in range(30):
        files.append(str(tmp_path / f"{number:04}.png"))
        Path(files[-1]).write_bytes(picture(number))
    ours, theirs = (epochs(loader(some, EVERYTHING), 2) for some in (images, Images(files, images.labels, ["0"])))
    assert_same(ours, theirs)
    assert [
        number for batch in EvaluationLoader(images, Output(size=8, batch_size=8, **RAW)) for number in batch[1]
    ] == [number % 4 for number in range(30)]


def test_bad_samples_of_shards_are_replaced_and_named(make_shards, caplog):
    root, images = in_shards(make_shards)
    expected = [numbers(batch) for batch in epochs(loader(images), 3)]
    broken, gone, cut = expected[1][2], expected[1][5], 29
    overwrite(images.files[broken], b"\xff\xff\xff\xff", picture(broken).index(b"IDAT") + 6)
    overwrite(images.files[gone], bytes(512), -512)
    Path(member(images.files[cut]).shard).write_bytes(
        Path(member(images.files[cut]).shard).read_bytes()[: member(images.files[cut]).offset + 20]
    )
    victims = {broken, gone, cut}
    listed = []
    batches = epochs(loader(images, on_bad_file=lambda location, reason: listed.append((location, reason))), 3)

    def substitute(number):
        while number in victims:
            number = (number + 1) % 30
        return number

    assert [numbers(batch) for batch in batches] == [[substitute(n) for n in wanted] for wanted in expected]
    told = {location: reason.removeprefix("found during the run: ") for location, reason in listed}
    assert told[images.files[broken]] == "it cannot be read and decoded"
    assert told[images.files[gone]] == "the tar has changed: it is not where it was"
    assert told.get(images.files[cut]) in (None, "truncated: the tar ends within it")  # not all are in every epoch
    assert f"{root}/{gone // 10}.tar/s/{gone:04}.png: found during the run: the tar has changed" in caplog.text
    assert "\0" not in caplog.text and shown(images.files[gone]) in caplog.text
    measured = []
    evaluation = EvaluationLoader(
        images, Output(size=8, batch_size=8, **RAW), on_bad_file=lambda location, reason: measured.append(location)
    )
    reds = [round(float(red)) for pixels, _ in evaluation for red in pixels[:, 0, 0, 0]]
    assert reds == [number for number in range(30) if number not in victims]
    assert set(measured) == {images.files[victim] for victim in victims}


@pytest.mark.parametrize("stop", [0, 2, 3, 5])
def test_a_pool_of_shards_goes_on_bit_for_bit_and_is_read_ahead(make_shards, monkeypatch, stop):
    _, images = in_shards(make_shards)
    expected = epochs(loader(images, EVERYTHING, pool=16), 3)
    first = loader(images, EVERYTHING, pool=16)
    done = copies(islice((batch for _ in range(3) for batch in first), stop))
    state = first.state_dict()
    asked = []
    request = Reader.request
    monkeypatch.setattr(
        Reader,
        "request",
        lambda reader, files, coming=(): asked.append((files, coming)) or request(reader, files, coming),
    )
    second = loader(images, EVERYTHING, pool=16)
    second.load_state_dict(state)
    rest = []
    while len(done) + len(rest) < 9:
        rest += copies(second)
    assert_same(done + rest, expected)
    told = set()
    for files, coming in asked:
        told.update(coming)
        assert told.issuperset(files)
    assert max(len(coming) for _, coming in asked[1:]) <= 8
    with pytest.raises(ValueError, match="does not fit these settings: pool was 16, is None"):
        loader(images, EVERYTHING).load_state_dict(state)
    with pytest.raises(ValueError, match="does not fit these settings: pool was None, is 8"):
        loader(images, EVERYTHING, pool=8).load_state_dict(loader(images, EVERYTHING).state_dict())


def test_shards_that_vanish_do_not_end_a_run(make_shards):
    root, images = in_shards(make_shards)
    data = loader(images)
    (root / "1.tar").unlink()
    (root / "2.tar").rename(root / "1.tar")
    seen = {number for batch in epochs(data, 3) for number in numbers(batch)}
    assert seen == set(range(10)) | {0}
    (root / "1.tar").unlink()
    (root / "0.tar").unlink()
    with pytest.raises(RuntimeError, match="no file of the data set can be read and decoded"):
        epochs(loader(images), 1)


def test_an_error_that_no_file_explains_is_raised(tmp_path, monkeypatch):
    data = loader(numbered(tmp_path / "i", 16))
    monkeypatch.setattr("amcl_fast.data.decoding.trial.Trial.__call__", lambda trial, image: None)
    for file in (tmp_path / "i").iterdir():
        corrupt(file)
    with pytest.raises(RuntimeError, match="decode"):
        next(iter(data))


def test_data_without_any_good_file_is_an_error(tmp_path):
    images = numbered(tmp_path / "i", 16)
    for file in images.files:
        corrupt(file)
    with pytest.raises(RuntimeError, match="no file of the data set can be read and decoded"):
        next(iter(loader(images)))


def test_waiting_is_counted(tmp_path):
    data = loader(numbered(tmp_path / "i", 16))
    assert data.wait_seconds == 0
    next(iter(data))
    first = data.wait_seconds
    assert first > 0
    next(iter(data))
    assert data.wait_seconds > first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 31}, "30 training images are too few: 1 process.* with batches of 31 need 31"),
        ({"num_shards": 4}, "30 training images are too few"),
        ({"shard": 2, "num_shards": 2}, "shard=2: expected 0 <= shard < num_shards=2"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        loader(numbered(tmp_path / "i", 30), **options)


def test_no_view_is_refused(tmp_path):
    with pytest.raises(ValueError, match="views: got none"):
        ContrastiveLoader(numbered(tmp_path / "i", 8), [], Output(size=8, batch_size=4))


@pytest.mark.parametrize("count", [5, 16, 21])
def test_evaluation_gives_every_image_once_in_order(tmp_path, count):
    data = EvaluationLoader(numbered(tmp_path / "i", count), Output(size=8, batch_size=8, **RAW))
    for _ in range(2):
        batches = list(data)
        assert len(batches) == len(data)
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert images.shape == (count, 3, 8, 8)
        assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
        assert images[:, 0, 0, 0].round().int().tolist() == list(range(count))
        assert labels.tolist() == [number % 4 for number in range(count)]


def test_evaluation_leaves_out_damaged_files(tmp_path):
    images = numbered(tmp_path / "i", 60)
    bad = {0, 20, 21, 59}
    for number in bad:
        corrupt(images.files[number])
    listed = []
    data = EvaluationLoader(
        images, Output(size=8, batch_size=8, **RAW), on_bad_file=lambda path, reason: listed.append(path)
    )
    for _ in range(2):
        pixels, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
        good = [number for number in range(60) if number not in bad]
        assert pixels[:, 0, 0, 0].round().int().tolist() == good
        assert labels.tolist() == [number % 4 for number in good]
    assert listed == [images.files[number] for number in sorted(bad)]


def test_evaluation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="images: got none"):
        EvaluationLoader(Images([], [], []), Output(size=8, batch_size=8))


def test_a_state_is_small_whatever_went_bad(tmp_path):
    images = numbered(tmp_path / "i", 30)
    many = Images([f"{images.files[0]}/{number}" for number in range(100_000)], [0] * 100_000, ["a"])
    data = loader(many, EVERYTHING)
    reasons = [f"found during the run: not an image: it starts with b'{number:08}'" for number in range(1000)]
    data._replace(dict(zip(range(0, 100_000, 100), reasons, strict=True)))
    data._checkpoint = loaded = bytes(range(256)) * 10
    assert min(timeit.repeat(data.state_dict, number=1, repeat=5)) < 0.05
    state = data.state_dict()
    path = tmp_path / "state"
    torch.save(state, path)
    assert path.stat().st_size < 64 * 1024
    listed = []
    other = loader(many, EVERYTHING, on_bad_file=lambda *entry: listed.append(entry))
    other.load_state_dict(torch.load(path, weights_only=True))
    assert listed == [(many.files[100 * number], reason) for number, reason in enumerate(reasons)]
    assert other._checkpoint == loaded and other._source == data._source


def test_a_state_of_many_processes_is_small(tmp_path):
    images = numbered(tmp_path / "i", 16)
    loaders = [loader(images, EVERYTHING, batch_size=4, shard=shard, num_shards=2) for shard in range(2)]
    for data in loaders:
        next(iter(data))
    first, second = (unpack(data.state_dict()["shards"])[0] for data in loaders)
    # What differs between processes follows from the seed.
    ours, theirs = (data._checkpoint for data in loaders)
    assert ours != theirs and first["checkpoint"] == second["checkpoint"]
    loaders[1].load_state_dict(loaders[1].state_dict())
    assert loaders[1]._checkpoint == theirs
    shards = [{**first, "shard": shard} for shard in range(512)]
    assert len(first["checkpoint"]) > 1000 and len(pack(shards)) < 32 * 1024 and unpack(pack(shards)) == shards


def test_a_state_of_an_earlier_version_goes_on_where_it_was(tmp_path):
    """Its processes were listed as they were."""
    images = numbered(tmp_path / "i", 30)
    corrupt(images.files[5])
    first = loader(images, EVERYTHING)
    done = list(islice(first, 2))
    state = first.state_dict()
    shards = unpack(state["shards"])
    assert len(done) == 2 and shards[0]["checkpoint"]
    earlier = [
        {
            "shard": shard["shard"],
            "checkpoint": base64.b64encode(first._checkpoint).decode(),
            "bad": dict(shard["bad"]),
        }
        for shard in shards
    ]
    rest = []
    for form in (state, {**state, "shards": earlier}):
        second = loader(images, EVERYTHING)
        second.load_state_dict(form)
        rest.append(copies(second))
    assert_same(*rest)
    assert len(rest[0]) == 1
