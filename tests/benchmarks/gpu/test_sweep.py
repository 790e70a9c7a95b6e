"""What is swept is what the launchers ask for; in the interpreter, at sizes of a test."""

import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch

from amcl_fast.kernels import tuning
from benchmarks.cases import named
from benchmarks.gpu import device, sweep, tools
from tests.helpers.benchmarks import pretended
from tests.helpers.benchmarks.schema import rows_of_parts


@pytest.fixture
def interpreted(monkeypatch):
    """The launchers on the CPU, at sizes of a test."""
    for name, value in {
        "KIND": "cpu",
        "sized": pretended.small,
        "settle": lambda: None,
        "release": lambda: None,
    }.items():
        monkeypatch.setattr(device, name, value)


@pytest.mark.parametrize("one", sweep.SWEEPS, ids=lambda one: one.name)
def test_sweeps_are_of_what_the_launchers_take(one, interpreted, monkeypatch):
    """A table that nobody asks for, or a kernel or parameter of another name, is a renaming that was missed here."""
    assert one.variants[0] == {} and len(one.variants) > 3
    assert all(variant not in one.variants[:number] for number, variant in enumerate(one.variants))
    assert set(one.kernels) <= tools._kernels()
    assert all(name.startswith(f"_{one.table.split('.')[0]}_") for name in one.kernels)
    defaults = {}

    def chosen(table, key, default, x):
        defaults[table] = default
        return default

    monkeypatch.setattr(tuning, "chosen", chosen)
    sweep.step_of_case(device.sized(named(one.case)), "ours")()
    assert one.table in defaults, f"no launcher asks for {one.table}"
    names = {name for variant in one.variants for name in variant}
    assert names <= {*defaults[one.table], "num_stages", "maxnreg", "num_warps"}


ONE = replace(
    next(one for one in sweep.SWEEPS if one.name == "sums"),
    variants=({}, {"num_warps": 2}, {"M": 128, "N": 128}, {"num_warps": 4, "BLOCK": 8}, {"num_warps": 1}),
)


def rows(folder, one=ONE, until=float("inf")):
    return list(sweep.rows(one, folder, until))


def file_of(folder):
    return json.loads((folder / "nvidia-stand-in-1.json").read_text())


def test_rows_and_their_winner(pretend, tmp_path):
    *variants, last = rows(tmp_path)
    assert [row["parameters"] for row in variants] == list(ONE.variants)
    assert variants[0]["us"] == {"_topk_sums": 10.0} and variants[0]["difference"] == 0
    assert "out of resources" in variants[2]["failed"]
    assert variants[3]["us"] == {"_topk_sums": 5.0}
    # The fastest, and wrong by a tenth.
    assert variants[4]["us"] == {"_topk_sums": 1.0} and variants[4]["difference"] == pytest.approx(0.1, rel=0.01)
    assert last["winner"] == {"num_warps": 4, "BLOCK": 8} and last["variants"] == [5, 5]
    assert (last["us"], last["default_us"]) == (5.0, 10.0)
    key = "d=8 adaptive"
    assert last["keys"] == [key] and file_of(tmp_path)["tables"] == {ONE.table: {key: last["winner"]}}
    assert file_of(tmp_path)["measured"][ONE.table][key]["us"] == 5.0
    assert sweep.line(last) == "sums: {'num_warps': 4, 'BLOCK': 8}: 5.0 us; chosen without the table 10.0 us"
    assert sweep.line(variants[0]) == ""


def test_what_is_faster_by_less_than_the_noise_does_not_win(pretend, tmp_path):
    rows(tmp_path)
    pretend.setattr(sweep, "NOISE", 0.6)
    *_, last = rows(tmp_path)
    assert last["winner"] is None and sweep.line(last) == "sums: as chosen; chosen without the table 10.0 us"
    # What an earlier sweep has put there is taken out.
    assert (
        file_of(tmp_path)["tables"] == {}
        and file_of(tmp_path)["measured"][ONE.table]["d=8 adaptive"]["default_us"] == 10
    )


def test_what_is_not_right_against_float64_does_not_win(pretend, tmp_path):
    pretend.setattr(sweep.Oracle, "error", lambda self, run: 1.0)
    assert rows(tmp_path)[-1]["winner"] is None


def test_the_launchers_choice_must_run(pretend, tmp_path):
    pretend.setattr(device, "kernels", lambda step: [])
    with pytest.raises(KeyError, match="_topk_sums"):
        rows(tmp_path)
    pretend.setattr(sweep, "step_of_case", lambda case, run: lambda: [torch.ones(1)])
    with pytest.raises(KeyError):
        rows(tmp_path)
    pretend.setattr(device, "kernels", lambda step: [{"name": "_topk_sums", "calls": 1, "us": 1.0}])
    with pytest.raises(LookupError, match=r"no launcher of 'SimCLR, N = 4096, one table' asks for .*sums"):
        rows(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_sweep_ends_with_what_it_has(pretend, tmp_path):
    first, last = rows(tmp_path, until=time.monotonic() - 1)
    assert first["parameters"] == {} and last["winner"] is None
    assert sweep.line(last).endswith(", 1 of 5 variants, the time was up")


def test_two_sweeps_of_one_key_are_told(pretend, tmp_path):
    rows(tmp_path)
    with pytest.raises(ValueError, match="the sweeps 'sums' and 'more' are of one key, 'd=8 adaptive'"):
        rows(tmp_path, replace(ONE, name="more"))
    pretend.setattr(sweep.results, "_output", lambda *command: "f" * 40)
    assert rows(tmp_path, replace(ONE, name="more"))[-1]["winner"]


def test_the_file_is_either_the_old_one_or_the_new_one(pretend, tmp_path):
    *_, last = rows(tmp_path)
    path = tmp_path / "nvidia-stand-in-1.json"
    before = path.read_bytes()
    with path.open("rb") as reader:
        sweep.write(tmp_path, last | {"us": 4.0})
        assert reader.read() == before and list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_is_told_before_anything_is_measured(pretend, tmp_path):
    (tmp_path / "nvidia-stand-in-1.json").write_text('{"tables"')
    with pytest.raises(ValueError, match=r"nvidia-stand-in-1.json must be a JSON of tuned tables, got none: "):
        next(sweep.rows(ONE, tmp_path, float("inf")))


def test_everything_that_is_swept_is_compiled_before(pretend):
    assert len(sweep.compilations()) == sum(len(one.variants) for one in sweep.SWEEPS)
    for action in list(sweep.compilations().values())[:3]:
        action()


@pytest.mark.parametrize("when", ["at a variant", "at the launchers' choice", "when the winner is looked for"])
def test_a_sweep_goes_on_after_what_ends_its_process(pretend, call, tmp_path, when):
    one = next(one for one in sweep.SWEEPS if one.name == "scores")
    fatal = {"at a variant": (one.variants[2], one.variants[5], one.variants[-1])}.get(when, ())
    if when == "at the launchers' choice":
        fatal = (one.variants[0],)

    def step_of_case(case, run, of=sweep.step_of_case):
        if tuning._trying.get(one.table) in fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return of(case, run)

    pretend.setattr(sweep, "step_of_case", step_of_case)
    if when.startswith("when"):
        pretend.setattr(sweep, "_decided", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    code, sections, _, complaints = call("sweep", "--only", "scores")
    told = rows_of_parts(sections)["sweep"]
    found = sections.get("sweep", {"rows": []})["rows"]
    if when != "at a variant":
        assert code == 1 and not told["done"] and len(found) == (0 if fatal else len(one.variants))
        why = "its process ended: SIGKILL"
        assert told["failed"] == {"scores": why if fatal else f"RuntimeError: when the winner was looked for, {why}"}
        return
    *variants, last = found
    assert code == 0 and told["done"] == ["scores"] and not told["failed"]
    assert [row["parameters"] for row in variants] == list(one.variants)
    failed = {str(row["parameters"]): row["failed"] for row in variants if "failed" in row}
    assert failed == {str(parameters): "its process ended: SIGKILL" for parameters in fatal}
    assert complaints.count("going on after  sweep, scores: its process ended: SIGKILL") == 3
    # What is measured by the processes after the first is compared with the launchers' choice as well.
    assert {round(row["difference"], 2) for row in variants[6:-1]} == {0, 0.1}
    assert last["winner"]["num_warps"] == 4 and last["variants"] == [len(one.variants)] * 2 and last["keys"]
    tuned = json.loads((tmp_path / "tuned" / "nvidia-stand-in-1.json").read_text())
    assert tuned["tables"][one.table] == {last["keys"][0]: last["winner"]}
