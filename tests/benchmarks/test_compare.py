import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import amcl_fast
from benchmarks import compare, results
from tests.helpers.benchmarks.tiny import SIMCLR, document


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
    # It prints, when it is imported and when a case is prepared, also from beneath Python.
    for name in ("cases.py", "check.py"):
        path = tmp_path / "benchmarks" / name
        path.write_text(path.read_text() + "\nimport os\nprint('a side', flush=True)\nos.write(1, b'prints\\n')\n")
    return tmp_path


@pytest.fixture
def sides(site):
    found = [compare._Side(site, "cpu", "reference") for _ in range(2)]
    yield found
    for side in found:
        side.close()


@pytest.mark.slow
def test_two_processes_in_turn(sides):
    row = compare._in_turn(sides, SIMCLR, 0.0)
    for name in "ab":
        run = row["runs"][name]
        assert 0 < run["q1_ms"] <= run["median_ms"] <= run["q3_ms"] < 1000 and run["rounds"] == 3
    assert 0 < row["ratio_q1"] <= row["ratio"] <= row["ratio_q3"]
    # What a commit cannot run is a line: an option that it does not know, or a process that ends.
    newer = replace(SIMCLR, name="newer", settings=SIMCLR.settings | {"nosuch": 1})
    row = compare._in_turn(sides, newer, 0.0)
    assert "nosuch" in row["runs"]["a"]["failed"] and "ratio" not in row
    sides[1]._process.kill()
    sides[1]._process.wait()
    row = compare._in_turn(sides, SIMCLR, 0.0)
    assert row["runs"]["a"]["rounds"] == 3 and "ratio" not in row
    assert row["runs"]["b"] == {"failed": "its process ended with exit code -9; its error is above"}
    table = compare._table("old", "new", [{"case": "SimCLR"} | row])
    assert table.splitlines()[-1].endswith(" | failed: its process ended with exit code -9; its error is above |  |")
    assert "ratio" in compare._in_turn(sides, SIMCLR, 0.0)  # by a new process


def test_a_wrong_commit_is_not_timed(site):
    check = site / "benchmarks" / "check.py"
    check.write_text(check.read_text() + "\nOracle.error = lambda self, run: 1.0\n")
    side = compare._Side(site, "cpu", "reference")
    try:
        row = compare._in_turn([side, side], SIMCLR, 0.0)
    finally:
        side.close()
    assert row["runs"]["a"]["failed"].startswith("relative error 1.0e+00, tolerance ")


def test_commits_are_a_section_of_the_machine(tmp_path, monkeypatch, capsys):
    """All cases, with the commits in full; some of them are printed only."""
    commit = "1234567890" * 4
    timing = {"median_ms": 2.0, "q1_ms": 1.0, "q3_ms": 3.0, "rounds": 5}
    row = {"case": "SimCLR", "dtype": "float32", "runs": {"a": timing, "b": {"failed": "TypeError: no"}}}
    monkeypatch.setattr(compare, "_commit", lambda name: commit)
    monkeypatch.setattr(compare, "_of_commits", lambda *_: [row])
    monkeypatch.setattr(results, "_QUIET", 1e6)
    printed = compare.compare("old", "new", "cpu", "SimCLR", "auto", 0.0, tmp_path).splitlines()
    assert printed == ["| case | old, ms | new, ms | old / new |", "|---|---|---|---|",
                       "| SimCLR | 2.000 | failed: TypeError: no |  |"]  # fmt: skip
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == "not written: --case\n"
    compare.compare("old", "new", "cpu", "", "auto", 0.0, tmp_path)
    (path,) = tmp_path.glob("*.json")
    section = results.load(path)["sections"]["compare"]
    assert section["rows"] == [row]
    assert section["environment"]["compared"] == [commit, commit] and section["environment"]["threads"]
    assert f"written: {path}, compare" in capsys.readouterr().err


def test_rows_are_written_case_by_case(tmp_path, monkeypatch):
    """Whatever ends the comparison costs the case that is measured, not those before."""
    left = [SIMCLR, replace(SIMCLR, name="second"), replace(SIMCLR, name="third")]
    timing = {"median_ms": 2.0, "q1_ms": 1.0, "q3_ms": 3.0, "rounds": 5}

    def in_turn(sides, case, seconds):
        if case.name == "third":
            raise KeyboardInterrupt
        return {"runs": {"a": timing, "b": timing}, "ratio": 1.0, "ratio_q1": 1.0, "ratio_q3": 1.0}

    for name, value in {
        "_commit": lambda name: name, "_install": lambda commit, folder: folder, "select": lambda *_: left,
        "_in_turn": in_turn,
    }.items():  # fmt: skip
        monkeypatch.setattr(compare, name, value)
    with pytest.raises(KeyboardInterrupt):
        compare.compare("old", "new", "cpu", "", "auto", 0.0, tmp_path)
    (path,) = tmp_path.glob("*.json")
    section = results.load(path)["sections"]["compare"]
    assert [row["case"] for row in section["rows"]] == [SIMCLR.name, "second"]
    assert section["environment"]["compared"] == ["old", "new"]
