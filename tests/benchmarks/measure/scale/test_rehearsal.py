"""`bench scale` at a tiny size: rows, JSON, table, targets that are missed, processes that fail."""

import json
import subprocess

import pytest

from amcl_fast.benchmarks import command
from amcl_fast.benchmarks.measure.scale import children, rehearsal
from amcl_fast.benchmarks.measure.scale.tree import FULL, LEAST, tree
from amcl_fast.benchmarks.show import tables
from amcl_fast.cli import main


def first_step(made, size, knn):
    memory = {"resident": 3 << 30, "own": 2 << 30, "mapped": 1 << 30, "peak": 4 << 30}
    return {"seconds": 7.5, "memory": memory, "children": 1 << 20}


@pytest.mark.slow
def test_the_command(here, photographs, monkeypatch, capsys):
    monkeypatch.setattr(rehearsal, "_first_step", first_step)
    monkeypatch.setattr(rehearsal, "CASES", rehearsal.CASES[:3])  # kNN of one width, in two processes too
    arguments = ["bench", "scale", "--images", "2000", "--data", str(photographs), "--seconds", "0.2", "--output", "."]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    (path,) = here.glob("*.json")
    assert f"written: {path.name}, scale" in out
    document = json.loads(path.read_text())
    rows = document["sections"]["scale"]["rows"]
    assert {row["case"] for row in rows} == set(rehearsal.CASES)
    assert all(row.get("met") is None for row in rows)  # the targets are of the full size
    of = {row["what"]: row for row in rows}
    growth = of.pop("the most that anything grows by, as a power of the number of images")
    assert growth["missing"] == "it wants 20,000 images at the least"
    assert "links to" in of["making the folder of 2,000 images"]["note"]
    for what, row in of.items():
        assert row["value"] > 0 or row["unit"] == "MiB", what
    assert of["a loader's state in a checkpoint"]["value"] < 64
    scan = of["first scan, 2,000 images"]
    assert scan["details"]["answer"]["images"] == 1_800  # a tenth is held out
    assert of["pretrain to its first step, 2,000 images, kNN as by default"]["details"]["seconds"] == 7.5
    for form in ("float32", "float32, 2 processes", "float16"):
        row = of[f"kNN, 50,000 × 2,000 × 512, {form}: time"]
        whole = row["details"]["rows"]
        assert whole == (1_000 if "processes" in form else 2_000)
        assert row["basis"] == "extrapolated" and row["details"]["whole_pass"]["queries"] == 16_384
        *_, second = row["details"]["timed"]
        assert second["queries"] == 16_384 and second["rows"] <= whole
        seconds = second["knn"] + (whole - second["rows"]) * row["details"]["each"]
        assert row["value"] == pytest.approx(50_000 / 16_384 * seconds / 60)
        assert 0 < second["accuracy"] < 100
    table = tables.scale(rows)
    assert "| first scan, 2,000 images | ≤ 60 s: holds at full size |" in table
    assert len(table.splitlines()) == len(rows) + 2 and not list(here.glob("amcl-fast-scale*"))


def test_what_fails_is_told_and_the_rest_is_measured(here, photographs, monkeypatch, capsys):
    def failed(made, size, knn):
        if knn:
            raise children.Failed("no step")
        if size == "full":
            raise subprocess.TimeoutExpired("pretrain", 300)
        return first_step(made, size, knn)

    def measure(what, request, environment, processes=1):
        if what == "probe":
            raise children.Failed("it ended")
        return [{}]

    monkeypatch.setattr(rehearsal, "_first_step", failed)
    monkeypatch.setattr(children, "measure", measure)
    monkeypatch.setattr(rehearsal, "CASES", ("pretrain", "linear probe, width 512"))
    assert not command.measure(("scale",), "", "auto", None, photographs, here, 1000)
    out, err = capsys.readouterr()
    assert "pretrain to its first step, 1,000 images, kNN off: 7.5 s; 3,072 MiB resident" in out
    assert "pretrain to its first step, 1,000 images, kNN off: 240 s, at least; it was ended then" in out
    assert err.count("FAILED  pretrain to its first step: no step") == 1 and err.count(": it ended") == 2
    (path,) = here.glob("*.json")
    rows = json.loads(path.read_text())["sections"]["scale"]["rows"]
    assert [row.get("missing") for row in rows] == [None, None, "failed: no step", *["failed: it ended"] * 2]


def test_a_run_to_its_first_step(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    small = {"data.size": 16, "data.batch_size": 8, "model.backbone.width": 8, "model.backbone.stem": "small"}
    monkeypatch.setattr(rehearsal, "_SETTINGS", rehearsal._SETTINGS | small)
    with tree(LEAST, photographs) as made:
        found = rehearsal._first_step(made, "small", knn=False)
        assert 0.5 < found["seconds"] < 300
        assert found["memory"]["peak"] >= found["memory"]["resident"] > 100 << 20 and found["children"] > 1 << 20
        monkeypatch.setattr("sys.executable", "/bin/false")
        with pytest.raises(children.Failed, match="pretrain: the command ended with code 1 before"):
            rehearsal._first_step(made, "full", knn=False)


@pytest.mark.parametrize(
    ("first", "seconds", "ratio"),
    [
        ({"queries": 1000, "rows": 50, "knn": 2.0, "product": 0.5}, 50 * (3 + 0.02 * 100), 50 * 5 / 100),
        # A row costs its product at the least.
        ({"queries": 1000, "rows": 50, "knn": 2.9, "product": 0.5}, 50 * (3 + 0.01 * 100), 50 * 4 / 100),
        (None, 50 * (3 + 0.01 * 100), 2.0),
    ],
)
def test_what_a_part_of_the_bank_tells_of_the_whole(monkeypatch, first, seconds, ratio):
    second = {"queries": 1000, "rows": 100, "knn": 3.0, "product": 1.0}
    others = {"accuracy": 50.0, "beyond": 1 << 20, "knn_processor": 1.0, "product_processor": 1.0}
    timed = [one | others for one in (first, second) if one]
    answer = {"timed": timed, "whole_pass": second | others, "rows": 200, "error": 0, "checked": 16, "bank_bytes": 1}
    monkeypatch.setattr(children, "measure", lambda *_: [answer])
    request = {"rows": 200, "width": 512, "dtype": "float32", "device": "cpu", "queries": None}
    of_product, time, memory = rehearsal._knn("kNN, width 512", "kNN", request, 1)
    assert of_product["value"] == pytest.approx(ratio) and time["value"] == pytest.approx(seconds / 60)
    assert of_product["basis"] == time["basis"] == "extrapolated" and memory["basis"] == "measured"


def test_growth_that_is_more_than_linear_is_missed():
    linear, square = (rehearsal._exponent(5.0, 5.0 + x, 5.0 + y, 0.1, FULL) for x, y in ((2.0, 20.0), (2.0, 200.0)))
    assert 0.95 < linear < rehearsal._LINEAR < 1.95 < square
    assert rehearsal._exponent(5.0, 5.01, 5.05, 0.1, FULL) == 0  # nobody notices


def test_what_does_not_fit_into_memory_is_a_row(here, monkeypatch, capsys):
    monkeypatch.setattr(rehearsal, "memory_free", lambda device: 3 << 30)
    monkeypatch.setattr(rehearsal, "CASES", ("kNN, width 2048", "linear probe, width 2048"))
    assert command.measure(("scale",), "", "auto", None, None, here)
    (path,) = here.glob("*.json")
    rows = json.loads(path.read_text())["sections"]["scale"]["rows"]
    assert len(rows) == 5
    assert rows[0]["missing"] == "11.8 GiB of memory must be free, got 3.0" in capsys.readouterr().out
    assert "| kNN, 50,000 × 1,281,167 × 2048, float32 | – | – | 11.8 GiB of memory" in tables.scale(rows)


@pytest.mark.parametrize(
    ("value", "enough", "told"), [(59.0, True, "met"), (61.0, True, "**missed**"), (61.0, False, "holds at full size")]
)
def test_targets(value, enough, told):
    row = rehearsal._row("start", "first scan", value, "s", 60.0, enough=enough, note="prepare", details={})
    assert tables.scale([row]).splitlines()[-1] == f"| first scan | ≤ 60 s: {told} | {value:g} s | prepare |"
    assert tables.scale_line(row) == f"first scan: {value:g} s (target ≤ 60 s: {told}); prepare"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "999"], "--images must be at least 1,000, got 999"),
        (["--queries", "0"], "--queries must be 1 to 50,000, got 0"),
        (["--queries", "50001"], "--queries must be 1 to 50,000, got 50,001"),
        (["--case", "nosuch"], "case must be part of one of these names: start, pretrain, kNN, width 512"),
    ],
)
def test_errors_in_one_line(here, arguments, message, capsys):
    assert main(["bench", "scale", *arguments]) == 2
    assert f"amcl-fast bench: error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "queries", "seconds", "asked"),
    [
        (FULL, None, None, [50_000, None, None]),
        (FULL, None, 30.0, [None, None, None]),
        (FULL, 7, None, [7, 7, 7]),
        (2_000, None, None, [None, None, None]),
    ],
)
def test_what_has_a_target_is_measured_whole(monkeypatch, images, queries, seconds, asked):
    found = []
    monkeypatch.setattr(rehearsal, "_knn", lambda case, what, request, _: found.append(request["queries"]) or [])
    assert list(rehearsal.measure(["kNN, width 512"], images, queries, seconds, None, "cpu")) == []
    assert found == asked
