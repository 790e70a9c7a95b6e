"""What takes the place of bad files: the next good one, found at the same cost however many are bad."""

import os

import numpy as np
import pytest

from amcl_fast.data import Augmentation, ContrastiveLoader
from amcl_fast.data.graph import Output
from amcl_fast.data.loader.bad_files import StandIns
from amcl_fast.data.reading.reader import Reader
from amcl_fast.data.scan.images import Images
from tests.helpers.damaged_files import JPEG


def next_good(place, bad, count):
    """The rule itself."""
    return next(p % count for p in range(place, place + count) if p % count not in bad)


@pytest.mark.parametrize("count", [1, 2, 7, 60])
def test_the_next_good_one_stands_in_whatever_the_order_in_which_others_go_bad(count):
    draw = np.random.default_rng(count)
    stand_ins = StandIns(count)
    for number, place in enumerate(draw.permutation(count)[:-1].tolist()):
        assert stand_ins.add(place, f"{number}") and not stand_ins.add(place, "again")
        for asked in draw.integers(count, size=5).tolist():
            good = next_good(asked, stand_ins.bad, count)
            assert stand_ins.of(asked) == good
            every = [p % count for p in range(good, good + count) if p % count not in stand_ins.bad]
            for most in (1, 3, count + 1):
                assert list(stand_ins.following(asked, most)) == every[:most]
    assert list(stand_ins.bad.values()) == [str(number) for number in range(count - 1)]


class Counting(dict):
    steps = 0

    def __getitem__(self, place):
        Counting.steps += 1
        return super().__getitem__(place)


@pytest.mark.parametrize("order", ["rising", "falling", "scattered"])
def test_an_event_costs_the_same_however_many_are_bad(order, monkeypatch):
    places = list(range(8000))
    if order == "scattered":
        places = np.random.default_rng(0).permutation(80_000)[:8000].tolist()
    stand_ins = StandIns(80_000)
    stand_ins._next = Counting()
    monkeypatch.setattr(Counting, "steps", 0)
    for place in places if order != "falling" else reversed(places):
        stand_ins.add(place, "gone")
        stand_ins.of(place)
        stand_ins.of(0)
    assert Counting.steps < 5 * 8000


def test_a_folder_that_vanishes_is_read_once_and_in_few_pieces(tmp_path, monkeypatch):
    (tmp_path / "good.jpg").write_bytes(JPEG)
    files = [str(tmp_path / f"{number:04}") for number in range(600)]
    for path in files:
        os.link(tmp_path / "good.jpg", path)
    data = ContrastiveLoader(
        Images(files, range(600), ["a"]), [Augmentation()], Output(size=8, batch_size=64, num_threads=1)
    )
    order = [data._order.places(batch).tolist() for batch in range(27)]
    gone = set(range(150, 440)) - {300}
    for place in gone:
        os.unlink(files[place])
    reads = []
    read = Reader.read
    monkeypatch.setattr(Reader, "read", lambda reader, some: reads.append(some) or read(reader, some))
    seen = [labels.tolist() for _ in range(3) for _, labels in data]
    assert seen == [[next_good(place, gone, 600) for place in places] for places in order]
    known = {files[place] for place in data._stand_ins.bad}
    assert known <= {files[place] for place in gone} and len(known) > 280
    wanted = [path for some in reads for path in some if path in known]
    assert len(wanted) == len(set(wanted))
    assert max(map(len, reads)) <= 64 and len(reads) < 60
