"""A file that turns out to be bad during a run is replaced, and nothing else changes."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from amcl_fast.data import EvaluationLoader
from amcl_fast.data.graph import Output
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
