"""A loader goes on where another one stopped, bit for bit."""

import base64
import timeit
from itertools import islice
from pathlib import Path

import pytest
import torch

from amcl_fast.data.loader.position import pack, unpack
from amcl_fast.data.reading.reader import Reader
from amcl_fast.data.scan.images import Images
from amcl_fast.data.sources.find import find_images
from tests.helpers.loaders import (
    EVERYTHING,
    assert_same,
    copies,
    corrupt,
    epochs,
    in_shards,
    loader,
    numbered,
    numbers,
)
from tests.helpers.processes import end_group, spawn
from tests.helpers.small_shards import noise, samples


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
        (loader(images, num_shards=2), "batch_size was 8, is 16"),
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
    spawn(resume_in_two_processes, args=(tmp_path,), nprocs=2)


def of_all(shards):
    """Which images the processes see together, batch by batch, until all are at the end of the epoch."""
    return [sorted(number for part in parts for number in numbers(part)) for parts in zip(*shards, strict=True)]


def state_of_all(shards):
    """As the processes of a group would have it."""
    states = [data.state_dict() for data in shards]
    return {**states[0], "shards": pack([unpack(state["shards"])[0] for state in states])}


@pytest.mark.parametrize("pool", [None, 8])
@pytest.mark.parametrize("numbers_of_processes", [(1, 2, 1), (2, 1, 4)])
def test_other_numbers_of_processes_see_the_same_batches(make_shards, pool, numbers_of_processes):
    _, images = in_shards(make_shards)

    def shards(processes):
        options = {"batch_size": 8 // processes, "num_shards": processes, "pool": pool}
        return [loader(images, shard=shard, **options) for shard in range(processes)]

    uninterrupted = of_all(shards(numbers_of_processes[0]))
    seen, state = [], None
    for processes in numbers_of_processes:  # a batch each
        now = shards(processes)
        if state is not None:
            for data in now:
                data.load_state_dict(state)
        iterators = [iter(data) for data in now]
        seen += [sorted(number for iterator in iterators for number in numbers(next(iterator)))]
        state = state_of_all(now)
    assert seen == uninterrupted and len(seen) == 3
    # The next epoch is the one that this number of processes would have had.
    following = of_all(now)
    expected = shards(numbers_of_processes[-1])
    assert [of_all(expected), of_all(expected)][1] == following


def test_augmentations_of_another_number_of_processes_are_no_repetition_and_go_on_bit_for_bit(tmp_path):
    one = numbered(tmp_path / "i", 1)
    images = Images([*one.files] * 24, [0] * 24, ["a"])  # of which nothing but the augmentations differs
    halves = [loader(images, EVERYTHING, batch_size=4, shard=shard, num_shards=2) for shard in range(2)]
    for half in halves:
        next(iter(half))
    data, restored = loader(images, EVERYTHING), loader(images, EVERYTHING)
    data.load_state_dict(state_of_all(halves))
    iterator = iter(data)
    first = copies([next(iterator)])
    (beginning,) = copies(islice(loader(images, EVERYTHING), 1))
    assert not torch.equal(first[0][0][0], beginning[0][0])
    restored.load_state_dict(data.state_dict())
    assert_same(copies(restored), copies(iterator))


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


def test_a_state_is_small_whatever_went_bad(tmp_path):
    images = numbered(tmp_path / "i", 30)
    many = Images([f"{images.files[0]}/{number}" for number in range(100_000)], [0] * 100_000, ["a"])
    data = loader(many, EVERYTHING)
    reasons = [f"found during the run: not an image: it starts with b'{number:08}'" for number in range(999)]
    reasons.append("found during the run: it cannot be read and decoded")
    data._note(dict(zip(range(0, 100_000, 100), reasons, strict=True)))
    data._checkpoint = loaded = bytes(range(256)) * 10
    assert min(timeit.repeat(data.state_dict, number=1, repeat=5)) < 0.05
    state = data.state_dict()
    path = tmp_path / "state"
    torch.save(state, path)
    assert path.stat().st_size < 64 * 1024
    listed = []
    other = loader(many, EVERYTHING, on_bad_file=lambda *entry: listed.append(entry))
    other.load_state_dict(torch.load(path, weights_only=True))
    # What is wrong with it today.
    assert listed == [(many.files[99_900], "found during the run: cannot be read: Not a directory")]
    assert other._checkpoint == loaded


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
