"""A run of the parts on a GPU that is not there: what is done, left out, failed, kept."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amcl_fast.kernels import tuning
from benchmarks import results
from benchmarks.cases import CASES
from benchmarks.gpu import breakdown, checks, command, parts, sweep, whole
from benchmarks.gpu import run as run_of_parts
from tests.helpers.benchmarks import pretended
from tests.helpers.benchmarks.pretended import COMMIT, NAME, Faults
from tests.helpers.benchmarks.schema import check_schema, rows_of_parts

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def test_quick(pretend, call, tmp_path):
    # However busy the machine is, no item's time is up.
    code, sections, printed, complaints = call("quick", "--minutes", "60")
    assert (code, complaints) == (0, "")
    assert sections.keys() == {*parts.QUICK, "parts"}
    check_schema(results.load(tmp_path / "nvidia-stand-in-1.json"))
    # In the order of the parts, and every item of each.
    told = rows_of_parts(sections)
    assert list(told) == list(parts.QUICK)
    for name, row in told.items():
        assert row["done"] and not row["failed"] and not row["left_out"], name
        assert {r["item"] for r in sections[parts.PARTS[name].section]["rows"]} == set(row["done"])
    last = printed.splitlines()[-1]
    assert last.startswith(f"written: {tmp_path / 'nvidia-stand-in-1.json'}; compile ")
    assert re.search(r"compile \d+ s, smoke \d+ s, .*, ncu \d+ s; nothing failed$", last)
    assert sections["sweep"]["environment"]["commit"] == COMMIT

    smoke = sections["smoke"]["rows"]
    assert len(smoke) >= 12 and all(row.get("same_twice", True) for row in smoke)
    assert sum(row.get("found") == "NaN" for row in smoke) == 6
    assert {row["unit"] for row in sections["ceilings"]["rows"]} == {"FLOP/s", "bytes/s"}
    broken = {(row["case"], row["run"]) for row in sections["breakdown"]["rows"]}
    assert {(case, run) for case in breakdown.CASES for run in ("ours", "dense")} < broken
    losses = {(row["case"], row["run"]): row for row in sections["losses"]["rows"]}
    for name in whole.cases():
        assert losses[name, "ours"]["busy_ms"] == pytest.approx(len(pretended.KERNELS) / 100)
        assert losses[name, "graphed"]["same_bits"] is True
    assert "Whole loss: AMCL-MoCo, N = 256, queue 65,536" in whole.cases()
    assert [row["run"] for row in sections["resnet50"]["rows"]] == ["none", "ours", "ours", "dense", "none again"]
    assert sections["ncu"]["rows"] == [{"item": "the slowest kernels", "kernel": "–", "refused": "no ncu"}]

    # What the sweeps say, and what the launchers will read.
    verdicts = {row["sweep"]: row for row in sections["sweep"]["rows"] if "winner" in row}
    assert verdicts.keys() == {one.name for one in sweep.SWEEPS}
    assert verdicts["strips"]["winner"] is None
    won = verdicts["similarities"]
    assert won["winner"]["num_warps"] == 4 and won["us"] == 0.5 * won["default_us"] and won["error"] <= won["tolerance"]
    # One warp is fastest of all, and wrong.
    assert verdicts["sums"]["winner"]["num_warps"] == 4
    tuned = json.loads((tmp_path / "tuned" / "nvidia-stand-in-1.json").read_text())
    assert (tuned["device"], tuned["capability"], tuned["commit"]) == (NAME, [9, 0], COMMIT)
    assert tuned["tables"]["select.similarities"] == {
        "d=8 adaptive": verdicts["similarities"]["winner"],
        "d=8 adaptive, queue": verdicts["similarities of a queue"]["winner"],
    }
    assert tuned["measured"]["topk.sums"]["d=8 adaptive"]["default_us"] == 10.0
    assert "decorrelate.strips" not in tuned["tables"]
    pretend.setattr(tuning, "FOLDER", tmp_path / "tuned")
    pretend.setattr(tuning, "path_of", lambda device, of=tuning.path_of: of(device, tmp_path / "tuned"))
    tuning.winners.cache_clear()
    assert tuning.chosen("topk.sums", "d=8 adaptive", {"num_warps": 8}, pretended.X)["num_warps"] == 4
    tuning.winners.cache_clear()


def test_full(pretend, call, tmp_path):
    pretend.setattr(parts.operators.memory, "in_fresh_process", lambda case, name: 1000)
    pretend.setattr(parts.operators, "interleaved", lambda runs, *_: dict.fromkeys(runs, document_timing()))
    code, sections, printed, complaints = call("full", "--seconds", "0")
    # Inf-CL and Liger are not installed, and none of ours is a failure.
    assert code == 0, complaints
    assert sections.keys() == {part.section for part in parts.PARTS.values()} | {"parts"}
    timed = {row["case"] for row in sections["operators"]["rows"]}
    assert timed == {case.name for case in CASES if "cuda" in case.targets}
    one_way = next(row for row in sections["operators"]["rows"] if row["operator"] == "infonce")
    assert one_way["runs"].keys() == {"ours", "dense", "compiled", "inf_cl", "liger"}
    assert {row["part"] for row in sections["parts"]["rows"]} == set(parts.FULL)
    assert sections["memcheck"]["rows"] == [{"item": "memcheck", "summary": "not run: no compute-sanitizer"}]
    assert len(sections["checks"]["rows"]) == len(checks.all_checks())
    assert "| SimCLR, N = 4096 | " in printed
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "nvidia-stand-in-1-speed-up.png").stat().st_size > 1000


def document_timing():
    return {"median_ms": 2.0, "q1_ms": 1.0, "q3_ms": 3.0, "rounds": 3}


FAULTS = {
    "compile": ("smoke: one table, softmax None, float32", "dies"),
    "smoke": ("one table, softmax None, float32", "poisons"),
    "ceilings": ("copy", "dies"),
    "breakdown": ("NT-Xent, N = 4096, one table, ours", "ends"),
    "sweep": ("scores", "raises"),
    "losses": ("Whole loss: AMCL-SimCLR, N = 512, InfoNCE, graphed", "hangs"),
    "resnet50": ("InfoNCE over the 100 hardest, ours", "raises"),
    "ncu": ("the slowest kernels", "dies"),
}


HOW = {
    "dies": "its process ended: SIGKILL",
    "ends": "its process ended: exit code 3",
    "raises": "ValueError: no such tile",
    "poisons": "RuntimeError: CUDA error: an illegal memory access was encountered",
    "hangs": "ended after 5.0 s, its time was up",
}


def test_what_goes_wrong_takes_nothing_else_with_it(pretend, call):
    clock = pretended.Clock()
    clock.install(pretend.setattr)
    faults = Faults(FAULTS, clock)
    pretend.setattr(parts, "WORK", parts.Work(faults.perform, faults.unusable))
    pretend.setattr(run_of_parts, "WORK", parts.WORK)
    pretend.setattr(command, "_ITEM_SECONDS", 3.0)
    code, sections, printed, complaints = call("quick")
    assert code == 1
    for name, row in rows_of_parts(sections).items():
        ((item, message),) = row["failed"].items()
        assert item == FAULTS[name][0] and re.fullmatch(HOW[FAULTS[name][1]], message), (name, message)
        every = parts.PARTS[name].items(parts.Place(Path(), Path(), 0.0, parts.QUICK))
        assert set(row["done"]) == set(every) - {item} and not row["left_out"], name
        assert f"{name}, {item}: {message}" in complaints
    # What does not compile shows again where it is measured.
    assert "not done  compile, " in complaints and "7 failed:" in complaints
    assert printed.splitlines()[-1].endswith("ncu 0 s (1 failed); 7 failed")


def test_the_time_that_is_given_is_kept(pretend, call):
    clock = pretended.Clock()
    clock.install(pretend.setattr)
    cut = ("compile", "smoke", "breakdown", "sweep", "losses")

    def perform(part, *task):
        clock.take(2.5 if part in cut else 0.0)
        yield from pretended.perform(0.0, part, *task)

    pretend.setattr(run_of_parts, "WORK", parts.WORK._replace(perform=perform))
    began = clock.monotonic()
    code, sections, printed, complaints = call("quick", "--minutes", "2")
    assert (code, complaints) == (0, "") and 60 < clock.monotonic() - began < 120
    told = rows_of_parts(sections)
    assert list(told) == list(parts.QUICK)
    # Every part has had its turn, and says what was left out.
    for name in cut:
        row = told[name]
        assert row["done"] and row["left_out"] and not row["failed"], name
        assert f"{name}: left out, the time was up: {row['left_out'][0]}" in printed
        assert set(row["done"]).isdisjoint(row["left_out"])
    assert re.search(r"sweep \d+ s \(\d+ left out\)", printed.splitlines()[-1])
    # A sweep ends in time with what it has, and says so.
    tried = [row["variants"] for row in sections["sweep"]["rows"] if "winner" in row]
    assert any(done < of for done, of in tried) and all(done <= of for done, of in tried)


def test_a_second_run_goes_on_where_the_first_one_ended(pretend, call, tmp_path):
    code, sections, *_ = call("ceilings", "smoke", "--only", "one table")
    assert code == 0 and "ceilings" not in sections
    first = {row["item"] for row in sections["smoke"]["rows"]}
    assert first and all("one table" in item for item in first)
    pretend.setattr(run_of_parts, "WORK", parts.WORK._replace(perform=lambda *task: noted(tmp_path / "begun", *task)))
    code, sections, *_ = call("ceilings", "smoke", "--resume")
    begun = (tmp_path / "begun").read_text().splitlines()
    assert code == 0 and first.isdisjoint(begun) and "product" in begun
    assert {row["item"] for row in sections["smoke"]["rows"]} == set(checks.smoke())
    assert set(rows_of_parts(sections)["smoke"]["done"]) == set(checks.smoke())
    # Measured again at this commit, rows replace those of their item.
    _, sections, *_ = call("smoke", "--only", "unusual align")
    assert len(sections["smoke"]["rows"]) == len(checks.smoke())
    # What another commit has found is kept under its name.
    pretend.setattr(results, "_output", lambda *command: "f" * 40)
    _, sections, *_ = call("ceilings", "--only", "copy")
    assert [row["item"] for row in sections["ceilings"]["rows"]] == ["copy"]
    assert len(sections["ceilings-0123456"]["rows"]) == 4 and len(sections["smoke"]["rows"]) == len(checks.smoke())


def test_a_part_remembers_what_another_call_has_done(pretend, call, tmp_path):
    faults = Faults({"ceilings": ("gather", "raises")})
    pretend.setattr(run_of_parts, "WORK", parts.Work(faults.perform, faults.unusable))
    for only in ("product", "gather", "copy"):
        _, sections, *_ = call("ceilings", "--only", only)
    told = rows_of_parts(sections)["ceilings"]
    assert told["done"] == ["product", "copy"] and told["failed"] == {"gather": HOW["raises"]}
    pretend.setattr(run_of_parts, "WORK", parts.WORK._replace(perform=lambda *task: noted(tmp_path / "begun", *task)))
    _, sections, *_ = call("ceilings", "--resume")
    assert (tmp_path / "begun").read_text().split() == ["gather", "elementwise"]
    told = rows_of_parts(sections)["ceilings"]
    assert sorted(told["done"]) == ["copy", "elementwise", "gather", "product"] and not told["failed"]
    # What is done with changes that are not committed is done by other sources.
    pretend.setattr(results, "versions", lambda of=results.versions: of() | {"dirty": True})
    _, sections, *_ = call("ceilings", "--resume", "--only", "copy")
    assert rows_of_parts(sections)["ceilings"]["done"] == ["copy"]
    assert [row["item"] for row in sections["ceilings"]["rows"]] == ["copy"]
    assert len(sections["ceilings-0123456"]["rows"]) == 4
    pretend.setattr(results, "versions", lambda of=results.versions: of() | {"dirty": False})
    _, sections, *_ = call("ceilings", "--only", "product")
    assert len(sections["ceilings-0123456-dirty"]["rows"]) == 1


def test_rows_that_are_of_no_item_are_kept_beside(pretend, call, tmp_path):
    path = tmp_path / "nvidia-stand-in-1.json"
    rows = [{"task": "by another command"}]
    about = results.versions() | {"load": 0.1, "elsewhere": None, "seconds": 1.0}
    for number in range(2):
        results.save(path, "cuda", "ceilings", about, rows + number * rows)
        _, sections, *_ = call("ceilings", "--only", "copy")
        assert [row["item"] for row in sections["ceilings"]["rows"]] == ["copy"]
    name = "ceilings-0123456"
    assert sections[name] == {"environment": about, "rows": rows}
    assert sections[f"{name}-2"]["rows"] == 2 * rows


def noted(path, part, item, place, until):
    with path.open("a") as file:
        print(item, file=file)
    yield from pretended.perform(0.0, part, item, place, until)


def test_what_is_there_is_kept_when_it_is_interrupted(tmp_path):
    script = [
        sys.executable,
        "-m",
        "tests.helpers.benchmarks.pretended",
        "0.2",
        "quick",
        "--output",
        str(tmp_path),
        "--only",
        "one table",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    for line in process.stdout:
        if line.startswith("one table"):
            break
    children = [int(path.name) for path in Path("/proc").glob("[0-9]*") if parent_of(path) == process.pid]
    os.killpg(process.pid, signal.SIGINT)
    printed, complaints = process.communicate(timeout=100)
    assert process.returncode == 130 and complaints == ""
    assert printed.splitlines()[-1].endswith("; nothing failed; interrupted")
    found = results.load(tmp_path / "nvidia-stand-in-1.json")
    check_schema(found)
    assert [row["item"] for row in found["sections"]["smoke"]["rows"]]
    told = rows_of_parts(found["sections"])
    assert told["smoke"]["left_out"] and "breakdown" not in told
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)


def parent_of(path):
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def test_the_reason_is_not_hidden_where_a_part_cannot_begin(pretend, call):
    def interrupted(*_):
        raise KeyboardInterrupt

    pretend.setattr(run_of_parts, "_Section", interrupted)
    code, sections, printed, complaints = call("ceilings")
    assert (code, sections, complaints) == (130, {}, "") and printed.splitlines()[-1].endswith("; interrupted")
