import json
import shutil
from pathlib import Path

import pytest
from tiny import SIMCLR, document

import amcl_fast
from benchmarks import compare


@pytest.fixture
def files(tmp_path):
    """Two results, the second twice as fast."""
    paths = []
    for name, factor in (("old", 1.0), ("new", 0.5)):
        found = document()
        found["sections"]["operators"]["rows"][0]["runs"]["ours"]["median_ms"] *= factor
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(found))
    return paths


def test_two_files(files):
    table = compare.compare(*map(str, files), "cpu", "", "auto", 1.0)
    assert table.splitlines() == [
        "| case | old, ms | new, ms | old / new |", "|---|---|---|---|", "| SimCLR | 10.000 | 5.000 | 2.00 |"
    ]  # fmt: skip


def test_what_cannot_be_compared(files):
    with pytest.raises(ValueError, match="share no case whose name contains 'nosuch'"):
        compare.compare(*map(str, files), "cpu", "nosuch", "auto", 1.0)
    with pytest.raises(ValueError, match="two result files or two commits"):
        compare.compare(str(files[0]), "HEAD", "cpu", "", "auto", 1.0)
    with pytest.raises(ValueError, match="could not check out 'no-such-commit'"):
        compare.compare("no-such-commit", "HEAD", "cpu", "SimCLR, N = 512", "auto", 1.0)


@pytest.fixture
def site(tmp_path):
    """A folder as an install of a commit leaves it: this package and the benchmarks."""
    (tmp_path / "amcl_fast").symlink_to(Path(amcl_fast.__file__).parent)
    shutil.copytree(Path(compare.__file__).parent, tmp_path / "benchmarks")
    return tmp_path


def test_two_processes_in_turn(site):
    sides = [compare._Side("it", site, "cpu", "reference") for _ in range(2)]
    try:
        medians = compare._in_turn(sides, SIMCLR, 0.0)
        assert len(medians) == 2 and all(0 < median < 1000 for median in medians)
    finally:
        for side in sides:
            side.close()


def test_a_wrong_commit_is_not_timed(site):
    check = site / "benchmarks" / "check.py"
    check.write_text(check.read_text() + "\nOracle.error = lambda self, run: 1.0\n")
    side = compare._Side("it", site, "cpu", "reference")
    try:
        with pytest.raises(ValueError, match=r"SimCLR, N = 512: relative error 1.0e\+00, .* not timed"):
            compare._in_turn([side], SIMCLR, 0.0)
    finally:
        side.close()
