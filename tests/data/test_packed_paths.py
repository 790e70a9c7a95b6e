"""amcl_fast.data.packed_paths: what a list of strings does, in arrays."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest

from amcl_fast.data.packed_paths import PARTS, PackedPaths

PATHS = [
    "/data/ant/1.png",
    "/data/ant/zwei ü 日本.png",
    "/data/bee/new\nline.png",
    "relative.png",
    "/data/ant/3.png",
    "/data/bee/not UTF-8 \udcff\udce9.png",
    "folder/",
    "/shards/train 000.tar\x00512\x001000\x00n01440764/1.jpg",
    "/shards/train 000.tar\x002048\x0099\x00flat.jpg",
    "",
]


def test_every_string_comes_back():
    packed = PackedPaths.pack(PATHS)
    assert list(packed) == PATHS and [packed[place] for place in range(len(PATHS))] == PATHS
    assert packed[-3] == PATHS[-3] and packed[np.int64(2)] == PATHS[2]
    assert packed == PATHS and packed == tuple(PATHS) and packed != PATHS[1:] and packed != PATHS[::-1]
    assert packed.index(PATHS[4]) == 4 and PATHS[5] in packed and "/data/ant/2.png" not in packed
    for place in (len(PATHS), -len(PATHS) - 1):
        with pytest.raises(IndexError, match=rf"index must be in -10 to 9, got {place}"):
            packed[place]
    assert PackedPaths.pack(packed) is packed
    assert pickle.loads(pickle.dumps(packed)) == PATHS
    with pytest.raises(TypeError):
        hash(packed)


@pytest.mark.parametrize("chosen", [slice(None), slice(2, 8, 3), slice(None, None, -1), slice(5, 5)])
def test_selections_share_the_bytes(chosen):
    packed = PackedPaths.pack(PATHS)
    for part in (packed[chosen], packed.take(np.arange(10)[chosen])):
        assert part == PATHS[chosen] and part.compact() == PATHS[chosen]
        assert part.arrays["rests"] is packed.arrays["rests"]
    mask = np.zeros(10, bool)
    mask[chosen] = True
    assert packed.take(mask) == [path for path, kept in zip(PATHS, mask, strict=True) if kept]
    assert packed.take([]) == []


def test_a_compact_one_holds_what_it_needs():
    packed = PackedPaths.pack([f"/{folder}/{number}.png" for folder in range(300) for number in range(200)])
    few = packed.take(np.arange(7, 60_000, 1000)).compact()
    assert few == [f"/{place // 200}/{place % 200}.png" for place in range(7, 60_000, 1000)]
    assert few.arrays["rests"].size == sum(len(f"{place % 200}.png") for place in range(7, 60_000, 1000))
    assert len(few.arrays["prefix_offsets"]) == 60 + 1


def test_parts_are_joined_with_their_prefixes():
    halves = [PackedPaths.pack(PATHS[:4]), PackedPaths.pack([]), PackedPaths.pack(PATHS[4:])]
    assert PackedPaths.join(halves) == PATHS and halves[0] + halves[2] == PATHS
    assert PackedPaths.join([]) == []
    whole = PackedPaths.pack(PATHS)
    again = whole[6:] + whole[:6]
    assert again == PATHS[6:] + PATHS[:6] and again.arrays["rests"] is whole.arrays["rests"]


def test_the_files_of_folders_are_names():
    assert PackedPaths.in_folders([("/a b", b"1.png\0\xff\0"), ("/c", b""), ("/", b"1\0")]) == [
        "/a b/1.png",
        "/a b/\udcff",
        "/1",
    ]
    assert PackedPaths.in_folders([("/a", b"")]) == PackedPaths.in_folders([]) == []


@pytest.mark.parametrize(
    "folders",
    [
        [("/set/b", b"1\0002\0"), ("/set/a", b"0\0009\0")],
        [("/set/a", b"0\0b\0z\0"), ("/set/a/b", b"1\0"), ("/set", b"A\0b\0")],  # one within another
        [("/set/a", b"1\0"), ("/set/a b", b"1\0"), ("/set/a.b", b"1\0"), ("/set/ab", b"1\0"), ("/set/A", b"2\0")],
        [],
    ],
)
def test_files_of_folders_are_put_in_order(folders):
    packed = PackedPaths.in_folders(folders)
    assert packed.take(packed.in_order()) == sorted(packed)
    found = {prefix: (places.tolist(), packed.rests(places)) for prefix, places in packed.by_prefix()}
    for prefix, (places, names) in found.items():
        assert [packed[place] for place in places] == [prefix + name for name in names.decode().split("\0")[:-1]]
    assert sorted(place for places, _ in found.values() for place in places) == list(range(len(packed)))


def test_folders_within_folders_are_put_in_order():
    random = np.random.default_rng(0)
    names = ["a", "a b", "a.png", "aa", "b", "ü", "\udcff", "z"]
    for _ in range(200):
        folders: dict[str, set[str]] = {}
        for _ in range(int(random.integers(1, 30))):
            *path, name = (names[place] for place in random.integers(0, len(names), int(random.integers(1, 5))))
            folders.setdefault("/".join(["/set", *path]), set()).add(name)
        found = [(path, b"".join(os.fsencode(f"{name}\0") for name in sorted(some))) for path, some in folders.items()]
        packed = PackedPaths.in_folders([found[place] for place in random.permutation(len(found))])
        assert packed.take(packed.in_order()) == sorted(packed)


def test_one_file_above_all_folders_takes_no_strings():
    folders = [(f"/set/{number:03}", b"".join(b"%06d.jpg\0" % name for name in range(1000))) for number in range(100)]
    packed = PackedPaths.in_folders([*folders, ("/set", b"050.jpg\0")])
    tracemalloc.start()
    order = packed.in_order()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * len(packed)
    assert order[50_000] == 100_000 and (np.diff(np.delete(order, 50_000)) == 1).all()


def test_places_are_found_by_name():
    packed = PackedPaths.pack(PATHS + PATHS[:2])
    assert packed.places([PATHS[1], PATHS[8], "/data/ant/9.png", ""]).tolist() == [1, 8, 9, 11]
    assert packed.places([]).tolist() == [] and packed.places(["no"]).tolist() == []
    assert PackedPaths.pack([]).places(["no"]).tolist() == []


def test_names_with_labels_are_joined_without_strings():
    labels = np.array([0, 12, -1, 3, 0, 0, 0, 7, 7, 1])
    expected = [b"0/1.png", "12/zwei ü 日本.png".encode(), b"-1/new\nline.png", b"3/relative.png", b"0/3.png"]
    expected += [
        b"0/not UTF-8 \xff\xe9.png",
        b"0/",
        b"7/512\x001000\x00n01440764/1.jpg",
        b"7/2048\x0099\x00flat.jpg",
        b"1/",
    ]
    assert b"".join(PackedPaths.pack(PATHS).labelled_names(labels)) == b"".join(text + b"\0" for text in expected)
    many = PackedPaths.pack(f"/f/{number}.png" for number in range(50_000))
    text = b"".join(f"{number % 7}/{number}.png\0".encode() for number in range(50_000))
    assert b"".join(many.labelled_names(np.arange(50_000) % 7)) == text


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("change", ["shorter", "other kind", "too large", "negative"])
def test_arrays_that_do_not_fit_are_refused(name, change):
    arrays = {key: array.copy() for key, array in PackedPaths.pack(PATHS).arrays.items()}
    if change == "other kind":
        arrays[name] = arrays[name].astype(np.float32)
    elif change == "shorter":
        arrays[name] = arrays[name][:-1]
    elif arrays[name].dtype == np.uint8:
        arrays[name] = arrays[name][:0]
    else:
        arrays[name][-1] = -5 if change == "negative" else 10_000
    with pytest.raises(ValueError, match="not those of packed paths"):
        PackedPaths(arrays)


def test_a_million_paths_take_few_bytes():
    packed = PackedPaths.pack(f"/data/n{n // 1000:08}/n{n // 1000:08}_{n}.JPEG" for n in range(100_000))
    assert sum(array.nbytes for array in packed.arrays.values()) < 45 * len(packed)
