"""amcl_fast.data.locations: what names an image in a tar, and what people are told of it."""

import os

import pytest

from amcl_fast.data.locations import NUL, Member, absolute, member, shown


@pytest.mark.parametrize(
    "name", ["a.jpg", "n01/a b.v2.jpg", "../up.jpg", "ünï.jpg", "odd\udcff.jpg", "with\nnewline.jpg"]
)
def test_a_member_is_its_location_again(name):
    place = Member("/data/train-000000.tar", 512, 30_000, name)
    assert member(place.location) == place
    assert os.fsdecode(os.fsencode(place.location)) == place.location
    assert shown(place.location) == f"/data/train-000000.tar/{name}"
    assert absolute(place.location) == place.location


def test_a_path_is_a_location(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert member("/a/b.jpg") is None
    assert shown("/a/b.jpg") == "/a/b.jpg"
    assert absolute("a/../b.jpg") == str(tmp_path / "b.jpg")
    assert absolute(Member("x/../a.tar", 512, 3, "../b.jpg").location) == f"{tmp_path}/a.tar{NUL}512{NUL}3{NUL}../b.jpg"
