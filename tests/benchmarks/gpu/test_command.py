"""The command on a GPU that is not there: `pretended` says what is replaced."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from amcl_fast.kernels import tuning
from benchmarks import results
from benchmarks.cases import CASES
from benchmarks.gpu import breakdown, checks, command, device, parts, sweep, tools, whole
from benchmarks.gpu import run as run_of_parts
from tests.helpers.benchmarks import pretended
from tests.helpers.benchmarks.pretended import COMMIT, NAME, Faults
from tests.helpers.benchmarks.schema import check_schema
from tests.helpers.benchmarks.tiny import document

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


@pytest.fixture
def pretend(monkeypatch):
    """A GPU that is not there."""
    pretended.install(monkeypatch.setattr)
    return monkeypatch


@pytest.fixture
def call(tmp_path, capfd):
    """The command with its output in a folder of the test: exit code, JSON and what was printed."""

    def of(*arguments):
        before = time.monotonic()
        with pytest.raises(SystemExit) as end:
            command.main([*arguments, "--output", str(tmp_path), "--tuned", str(tmp_path / "tuned"), "--jobs", "2"])
        of.seconds = time.monotonic() - before
        printed = capfd.readouterr()
        path = tmp_path / "nvidia-stand-in-1.json"
        return end.value.code, results.load(path)["sections"] if path.exists() else {}, printed.out, printed.err

    return of


def rows_of_parts(sections):
    return {row["part"]: row for row in sections["parts"]["rows"]}


def test_quick(pretend, call, tmp_path):
    code, sections, printed, complaints = call("quick")
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
    "hangs": r"ended after 1\.\d s, its time was up",
}


def test_what_goes_wrong_takes_nothing_else_with_it(pretend, call):
    faults = Faults(FAULTS)
    pretend.setattr(parts, "WORK", parts.Work(faults.perform, faults.unusable))
    pretend.setattr(run_of_parts, "WORK", parts.WORK)
    pretend.setattr(command, "_ITEM_SECONDS", 1.0)
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


def test_the_time_that_is_given_is_kept(pretend, call):
    pretend.setattr(command, "_RESERVE", 0.5)
    pretend.setattr(run_of_parts, "WORK", parts.WORK._replace(perform=lambda *task: pretended.perform(0.15, *task)))
    code, sections, printed, _ = call("quick", "--minutes", "0.1")
    assert code == 0 and call.seconds < 8.0
    told = rows_of_parts(sections)
    assert list(told) == list(parts.QUICK)
    # Every part has had its turn, and says what was left out.
    for name in ("compile", "smoke", "breakdown", "sweep", "losses"):
        row = told[name]
        assert row["done"] and row["left_out"] and not row["failed"], name
        assert f"{name}: left out, the time was up: {row['left_out'][0]}" in printed
        assert set(row["done"]).isdisjoint(row["left_out"])
    assert re.search(r"sweep \d+ s \(\d+ left out\)", printed.splitlines()[-1])
    # A sweep ends in time with what it has, and says so.
    cut = [row for row in sections["sweep"]["rows"] if "winner" in row]
    assert all(row["variants"][0] <= row["variants"][1] for row in cut)


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
    printed, complaints = process.communicate(timeout=30)
    assert process.returncode == 130 and complaints == ""
    assert printed.splitlines()[-1].endswith("; nothing failed; interrupted")
    found = results.load(tmp_path / "nvidia-stand-in-1.json")
    check_schema(found)
    assert [row["item"] for row in found["sections"]["smoke"]["rows"]]
    told = rows_of_parts(found["sections"])
    assert told["smoke"]["left_out"] and "breakdown" not in told
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)


def test_sigterm_is_a_ctrl_c():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), command._interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def parent_of(path):
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def test_a_graph_with_other_bits_is_a_row_and_a_failure(pretend, call):
    pretend.setattr(device, "graphed", lambda module, inputs: OtherBits(module))
    code, sections, _, complaints = call("losses", "--only", "N = 256, InfoNCE, graphed")
    (row,) = sections["losses"]["rows"]
    assert code == 1 and row["same_bits"] is False and 0 < row["difference"] < 1e-6
    assert "a graph's bits are not eager's: relative difference" in complaints


class OtherBits(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs) * (1 + 2**-22)


def test_a_precision_that_leaks_is_told(pretend, call):
    def leaks(step):
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        return []

    before = torch.backends.cuda.matmul.fp32_precision
    pretend.setattr(device, "kernels", leaks)
    code, _, _, complaints = call("losses", "--only", "φ in tf32")
    assert code == 1 and "leaves torch.backends.cuda.matmul.fp32_precision at 'tf32', it was" in complaints
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_parts_and_items_can_be_chosen(pretend, call, capfd):
    code, sections, *_ = call("resnet50", "--only", "NONE")
    assert code == 0 and sections.keys() == {"resnet50", "parts"}
    assert [row["run"] for row in sections["resnet50"]["rows"]] == ["none", "none again"]
    # A sweep alone has its kernels compiled before, and no others.
    code, sections, *_ = call("sweep", "--only", "scores")
    assert sections.keys() == {"resnet50", "compile", "sweep", "parts"}
    assert all(row["item"].startswith("sweep: scores") for row in sections["compile"]["rows"])
    command.main(["breakdown", "--list"])
    assert "breakdown\n  SimCLR, N = 4096, one table, ours\n" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["timing"], "PART must be one of quick, full, compile, smoke, .*, got timing"),
        (["quick", "--minutes", "0"], "--minutes must be above 0, got 0"),
        (["quick", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["quick", "--only", "nosuch"], "--only must be part of an item's name .*, got 'nosuch'"),
        (["--step", "nosuch"], "--step must be a case of ours that breakdown has .*, got 'nosuch'"),
        (["--table", "nowhere.json"], "--table must be the JSON of a machine with predictions, got 'nowhere.json'"),
    ],
)
def test_errors_in_one_line(pretend, arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    told = capsys.readouterr().err if end.value.code == 2 else str(end.value.code)
    assert re.search(message, told.splitlines()[-1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (json.dumps(document())[:-100], "must hold benchmark results of schema 1, got no JSON: "),
        ('{"schema": 0, "sections": {}}', "must hold benchmark results of schema 1, got 0"),
    ],
)
def test_a_json_that_cannot_be_added_to_is_told_before_any_work(pretend, tmp_path, content, reason):
    path = tmp_path / "nvidia-stand-in-1.json"
    path.write_text(content)
    with pytest.raises(SystemExit) as end:
        command.main(["ceilings", "--output", str(tmp_path)])
    assert re.fullmatch(rf"--output must be a folder for results, got '.*': {path} {reason}.*", end.value.code)
    assert path.read_text() == content


@pytest.mark.parametrize("option", ["--output", "--tuned"])
def test_a_file_where_a_folder_is_needed(pretend, tmp_path, option, capsys):
    (tmp_path / "file").touch()
    folders = {"--output": str(tmp_path), "--tuned": str(tmp_path), option: str(tmp_path / "file")}
    with pytest.raises(SystemExit) as end:
        command.main(["ceilings", *(word for pair in folders.items() for word in pair)])
    assert re.fullmatch(rf"{option} must be a folder, got '.*file', which is none", end.value.code)
    assert "ceilings" not in capsys.readouterr().out


def test_the_reason_is_not_hidden_where_a_part_cannot_begin(pretend, call):
    def interrupted(*_):
        raise KeyboardInterrupt

    pretend.setattr(run_of_parts, "_Section", interrupted)
    code, sections, printed, complaints = call("ceilings")
    assert (code, sections, complaints) == (130, {}, "") and printed.splitlines()[-1].endswith("; interrupted")


def test_says_what_is_missing():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "quick"], capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "needs an NVIDIA GPU" in done.stderr


def test_needs_neither_trainer_nor_pipeline_nor_plots():
    """What a GPU machine may lack."""
    absent = ("lightning", "nvidia.dali", "torchvision", "matplotlib", "yaml", "jsonargparse", "lightly", "tqdm", "PIL")
    program = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import benchmarks.gpu, benchmarks.run"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_the_tools_watch_runs(pretend, capsys):
    # Whatever is broken down; what ncu is to look at may be none of the cases.
    for case, _ in {key for key in breakdown.steps() if key[1] == "ours"}:
        with pytest.raises(SystemExit) as end:
            command.main(["--step", case])
        assert end.value.code == 0
    pretend.setattr(checks, "check", lambda case, dtype: fails(case))
    with pytest.raises(SystemExit) as end:
        command.main(["--ragged"])
    assert end.value.code == 1 and "FAILED  unusual align: ValueError: no" in capsys.readouterr().err


def fails(case):
    if case.name == "unusual align":
        raise ValueError("no")
    return iter(())


def test_a_table_of_the_h100(capsys):
    """The JSON that is there, with sections from before the parts."""
    command.main(["--table", str(Path(results.__file__).parent / "results" / "nvidia-h100-80gb-hbm3.json")])
    printed = capsys.readouterr().out
    assert "| SimCLR, N = 4096, one table: busy, ms | 1.7 | 0.95 – 1.1 | " in printed


def tool(folder, monkeypatch, name, script):
    """One of NVIDIA's tools that is a shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_memcheck_tells_what_the_tool_says(monkeypatch, tmp_path):
    script = 'echo "========= ERROR SUMMARY: 0 errors, $PYTORCH_NO_CUDA_MEMORY_CACHING"'
    tool(tmp_path, monkeypatch, "compute-sanitizer", script)
    assert list(tools.memcheck()) == [{"summary": "ERROR SUMMARY: 0 errors, 1"}]
    tool(tmp_path, monkeypatch, "compute-sanitizer", "echo Invalid read; exit 9")
    with pytest.raises(tools.WrongResult, match="exit code 9: Invalid read"):
        list(tools.memcheck())


def test_memcheck_ends_what_it_started(monkeypatch, tmp_path):
    monkeypatch.setattr(tools, "_MEMCHECK_SECONDS", 1)
    tool(tmp_path, monkeypatch, "compute-sanitizer", f"sleep 1000 & echo $! > {tmp_path}/child; wait")
    assert list(tools.memcheck()) == [{"summary": "not finished within 1 s"}]
    child = Path(f"/proc/{int((tmp_path / 'child').read_text())}")
    stop = time.monotonic() + 60
    # Killed; whoever adopted it may not have looked yet.
    while child.exists() and "State:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < stop
        time.sleep(0.1)


@pytest.fixture
def broken_down(tmp_path):
    """A JSON with kernels of ours and of others."""
    path = tmp_path / "gpu.json"
    found = document()
    kernels = [
        ("_select_maxima", 2, 30.0),
        ("_select_bounds", 1, 90.0),
        ("_scatter_kernel", 1, 500.0),
        ("_topk_scores", 10, 100.0),
    ]
    of_ours = [{"name": n, "calls": c, "us": us} for n, c, us in kernels]
    rows = [{"case": "SimCLR, N = 4096, all rows equal", "run": "ours", "kernels": of_ours}]
    rows.append({"case": "b", "run": "dense", "kernels": [{"name": "_dense_forward", "calls": 1, "us": 900.0}]})
    found["sections"]["breakdown"] = {"environment": found["sections"]["scale"]["environment"], "rows": rows}
    path.write_text(json.dumps(found))
    return path


def test_ncu_looks_at_the_two_slowest_of_ours(monkeypatch, tmp_path, broken_down):
    tool(tmp_path, monkeypatch, "ncu", 'echo "==PROF== Connected"; echo "  $2 of $6"; echo "$@"')
    first, second = tools.ncu(broken_down, time.monotonic() + 60)
    assert (first["kernel"], second["kernel"]) == ("_select_bounds", "_select_maxima")
    assert first["text"][0] == "  regex:^_select_bounds$ of 1"
    assert first["text"][1].endswith("-m benchmarks.gpu --step SimCLR, N = 4096, all rows equal")


def test_what_ncu_refuses_is_a_row(monkeypatch, tmp_path, broken_down):
    tool(tmp_path, monkeypatch, "ncu", 'echo "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"; exit 1')
    assert [row["refused"] for row in tools.ncu(broken_down, time.monotonic() + 60)] == 2 * [
        "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"
    ]
    tool(tmp_path, monkeypatch, "ncu", "echo '==WARNING== No kernels were profiled.'")
    assert [row["refused"] for row in tools.ncu(broken_down, time.monotonic() + 60)] == 2 * ["exit code 0"]
    tool(tmp_path, monkeypatch, "ncu", "sleep 100")
    assert next(tools.ncu(broken_down, time.monotonic() + 1))["refused"] == "not finished within 0 s"
    (row,) = tools.ncu(tmp_path / "nothing.json", time.monotonic() + 1)
    assert row["refused"] == "nothing is broken down yet"


def test_names_of_kernels_are_those_of_the_package():
    names = tools._kernels()
    assert {"_select_maxima", "_select_bounds", "_topk_sums", "_dense_forward", "_dense_gradient"} <= names
    assert device.BACKEND == "triton" and device.KIND == "cuda"
