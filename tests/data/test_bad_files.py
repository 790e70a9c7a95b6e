"""A file that turns out to be bad during a run is replaced, and nothing else changes."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from amcl_fast.data import EvaluationLoader
from amcl_fast.data.decoding.trial import Trial
from amcl_fast.data.graph import Output
from amcl_fast.data.loader import order
from amcl_fast.data.loader.order import Order
from amcl_fast.data.locations import member, shown
from tests.helpers.loaders import EVERYTHING, RAW, corrupt, epochs, in_shards, loader, numbered, numbers, overwrite
from tests.helpers.small_shards import picture


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


def test_shards_that_vanish_do_not_end_a_run(make_shards):
    root, images = in_shards(make_shards)
    data = loader(images)
    (root / "1.tar").unlink()
    seen = {number for batch in epochs(data, 3) for number in numbers(batch)}
    assert seen == {*range(10), *range(20, 30)}
    (root / "2.tar").rename(root / "1.tar")
    with pytest.raises(RuntimeError, match=f"16 of 30 files .* the last {root}/[12].tar/s/00[12][0-9].png: .*; see"):
        epochs(loader(images), 1)


def test_an_error_that_no_file_explains_is_raised(tmp_path, monkeypatch):
    data = loader(numbered(tmp_path / "i", 16))
    monkeypatch.setattr("amcl_fast.data.decoding.trial.Trial.__call__", lambda trial, image: None)
    for file in (tmp_path / "i").iterdir():
        corrupt(file)
    with pytest.raises(RuntimeError, match="decode"):
        next(iter(data))


def test_data_of_which_most_go_bad_are_an_error(tmp_path):
    images = numbered(tmp_path / "i", 16)
    for file in images.files:
        corrupt(file)
    with pytest.raises(RuntimeError, match="9 of 16 files to train on cannot be read and decoded any more, the last"):
        next(iter(loader(images)))


class Trials:
    """Counts the images that are tried out, and permutations that are made."""

    def __init__(self, monkeypatch):
        self.tried = self.shuffled = 0
        for owner, name, counter in ((Trial, "__call__", "tried"), (order, "permutation", "shuffled")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name), counter))

    def _counted(self, function, counter):
        def counted(*arguments):
            setattr(self, counter, getattr(self, counter) + 1)
            return function(*arguments)

        return counted


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_only_what_dali_names_and_then_its_batch_is_tried_out(tmp_path, monkeypatch, kind):
    images = numbered(tmp_path / "i", 160)
    trials = Trials(monkeypatch)
    batches = Order(160, 64).places(1).tolist() if kind == "training" else list(range(64, 128))

    def again():
        if kind == "training":
            return [numbers(batch) for batch in epochs(loader(images, batch_size=64), 1)]
        output = Output(size=8, batch_size=64, **RAW)
        return [round(float(red)) for pixels, _ in EvaluationLoader(images, output) for red in pixels[:, 0, 0, 0]]

    corrupt(images.files[batches[30]])
    again()
    assert trials.tried == 1
    for place in (3, 40, 50):
        corrupt(images.files[batches[place]])
    trials.tried = trials.shuffled = 0
    seen = again()
    # One that it names; when it fails a second time, the batch, and what stands in or, in an evaluation, moves up.
    assert 60 < trials.tried <= (68 if kind == "training" else 96)
    assert trials.shuffled == (2 if kind == "training" else 0)  # it is read ahead into the second epoch
    bad = [batches[place] for place in (3, 30, 40, 50)]
    flat = seen[1] if kind == "training" else seen
    assert not set(flat) & set(bad) and len(flat) == (64 if kind == "training" else 156)


def test_a_resume_is_without_no_file_that_is_good_again(tmp_path):
    """What an outage has cost comes back, and what still cannot be decoded is replaced as it was."""
    images = numbered(tmp_path / "i", 30)
    files = [Path(path) for path in images.files]
    damaged, mended, gone = 5, 11, range(16, 24)
    contents = [path.read_bytes() for path in files]
    for place in (damaged, mended):
        corrupt(files[place])
    for place in gone:
        files[place].unlink()
    first = loader(images)
    listed = []
    assert len(epochs(first, 2)) == 6
    assert set(first._stand_ins.bad) == {damaged, mended, *gone}
    state = first.state_dict()
    for place in (mended, *gone):
        files[place].write_bytes(contents[place])
    second = loader(images, on_bad_file=lambda path, reason: listed.append((path, reason)))
    second.load_state_dict(state)
    assert listed == [(images.files[damaged], "found during the run: it cannot be read and decoded")]
    seen = [[numbers(batch) for batch in epochs(second, 1)] for _ in range(2)]
    order_of = Order(30, 8)
    expected = [[6 if p == damaged else p for p in order_of.places(batch).tolist()] for batch in range(6, 12)]
    assert seen[0] + seen[1] == expected
    # One that cannot be read now is noted with today's reason when it is met.
    files[damaged].unlink()
    third = loader(images, on_bad_file=lambda path, reason: listed.append((path, reason)))
    third.load_state_dict(state)
    assert listed[1:] == [(images.files[damaged], "found during the run: no such file")]
