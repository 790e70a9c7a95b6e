"""amcl_fast.data.scan.walk: each real folder once, whatever the links."""

import os

from amcl_fast.data.scan import walk
from amcl_fast.data.scan.walk import Tree, list_files


def tree(root, *files):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(root, *starts):
    files, left_out = list_files([str(root)], {start: str(root / start) for start in starts})
    shown = {start: [os.path.relpath(path, root) for path in found] for start, found in files.items()}
    return shown, {os.path.relpath(path, root): reason for path, reason in left_out}


def test_a_folder_is_reached_under_its_own_name_before_links_to_it(tmp_path):
    root = tree(tmp_path / "set", "z/deep/1", "z/2")
    (root / "a").mkdir()
    (root / "a" / "link").symlink_to(root / "z" / "deep")
    files, left_out = listed(root, "a", "z")
    assert files == {"a": [], "z": ["z/2", "z/deep/1"]}
    assert left_out == {"a/link": f"a link to {root / 'z' / 'deep'}, which is in the data set already"}


def test_links_to_the_parent_multiply_nothing(tmp_path):
    root = tree(tmp_path / "set", *(f"{name}/{number}" for name in "ab" for number in range(3)))
    for name in "ab":
        for number in range(20):  # 2 ** 20 ways and more
            (root / name / f"up {number}").symlink_to(root / name)
            (root / name / f"top {number}").symlink_to("..")
    files, left_out = listed(root, "a", "b")
    assert files == {name: [f"{name}/{number}" for number in range(3)] for name in "ab"}
    assert len(left_out) == 80
    assert left_out["a/up 0"] == f"a link to {root / 'a'}, which is in the data set already"
    assert left_out["a/top 0"] == f"a link to {root}, which is in the data set already"


def test_links_up_from_elsewhere_and_above_the_root_are_not_followed(tmp_path):
    root = tree(tmp_path / "set", "a/1")
    tree(tmp_path, "elsewhere/b/2", "elsewhere/c/3")
    (root / "b").symlink_to(tmp_path / "elsewhere" / "b")
    (tmp_path / "elsewhere" / "b" / "up").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "all").symlink_to(tmp_path)
    files, left_out = listed(root, "a", "b")
    assert files == {"a": ["a/1"], "b": ["b/2"]}
    assert left_out == {
        "a/all": f"a link to {tmp_path}, which is in the data set already",
        "b/up": f"a link up to {tmp_path / 'elsewhere'}, in which it lies",
    }


def test_links_to_elsewhere_are_followed_once(tmp_path):
    root = tree(tmp_path / "set", "a/1")
    tree(tmp_path, "elsewhere/2", "elsewhere/below/3")
    (root / "a" / "below").symlink_to(tmp_path / "elsewhere" / "below")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "d").symlink_to(tmp_path / "other")
    files, left_out = listed(root, "a", "b", "c")
    # A start goes before what links below another one lead to.
    assert files == {"a": ["a/1"], "b": ["b/2", "b/below/3"], "c": []}
    assert left_out.keys() == {"a/below", "c"}


def test_a_linked_class_keeps_its_files_from_a_linked_class_above(tmp_path):
    pool = tree(tmp_path / "pool", "all/0", "all/cats/1", "all/cats/kittens/2", "all/deep/link/3")
    root = tree(tmp_path / "set", "cars/4", "cars/old/5")
    (root / "animals").symlink_to(pool / "all")
    (root / "cats").symlink_to(pool / "all" / "cats")
    (root / "old").symlink_to(root / "cars" / "old")
    (pool / "all" / "cars").symlink_to(root / "cars")
    for starts in (("animals", "cars", "cats", "old"), ("old", "cats", "cars", "animals")):
        files, left_out = listed(root, *starts)
        assert files == {
            "animals": ["animals/0", "animals/deep/link/3"],
            "cars": ["cars/4", "cars/old/5"],
            "cats": ["cats/1", "cats/kittens/2"],
            "old": [],  # under its own name before any link
        }
        assert left_out == {
            "old": f"a link to {root / 'cars' / 'old'}, which is in the data set already",
            "animals/cats": f"the same folder as {root / 'cats'}, which is in the data set already",
            "animals/cars": f"a link to {root / 'cars'}, which is in the data set already",
        }


def test_hidden_files_and_folders_are_ignored(tmp_path):
    root = tree(tmp_path / "set", "a/1", "a/.2", "a/.git/3")
    assert listed(root, "a") == ({"a": ["a/1"]}, {})


def test_a_folder_that_goes_while_it_is_listed_is_told(tmp_path):
    assert listed(tmp_path, "gone") == ({"gone": []}, {"gone": "the folder cannot be read: No such file or directory"})


def again(root, starts, others=None):
    """How many files are others once more, and the first pair of them."""
    known = Tree()
    list_files([str(root)], {start: str(root / start) for start in "ab"}, known)
    found = known.again(starts, others)
    return found and (found.number, *(os.path.relpath(path, root) for path in (found.path, found.other)))


def test_files_that_are_there_once_more_by_links_are_counted(tmp_path):
    root = tree(tmp_path / "set", "a/1", "a/2", "b/3", "b/.4")
    tree(tmp_path, "elsewhere/5")
    for number, target in enumerate((tmp_path / "elsewhere" / "5", root / "b" / ".4", tmp_path / "nowhere")):
        (root / "a" / f"link {number}").symlink_to(target)
    (root / "a" / "self").symlink_to("self")
    assert again(root, "ab") is None is again(root, "a", "b")  # links that lead nowhere are files of their own
    (root / "b" / "hard").hardlink_to(root / "a" / "2")
    assert again(root, "ab") == (1, "b/hard", "a/2") == again(root, "b", "a")
    assert again(root, "a", "b") == (1, "a/2", "b/hard") and again(root, "a") is None is again(root, "b")
    (root / "b" / "soft").symlink_to("../a/1")
    (root / "b" / "soft again").symlink_to("soft")
    assert again(root, "ab")[0] == 3 == again(root, "b", "a")[0]
    assert again(root, "b") == (1, "b/soft again", "b/soft")


def test_the_same_number_on_another_device_is_another_file(tmp_path, monkeypatch):
    root = tree(tmp_path / "set", "a/1", "b/2")
    monkeypatch.setattr(walk, "_read_folder", lambda path, read=walk._read_folder: read(path)._replace(ids=bytes(8)))
    assert again(root, "ab") is None
