"""The arguments of `python -m benchmarks.gpu`, and what it needs."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import results
from benchmarks.gpu import breakdown, checks, command
from tests.helpers.benchmarks.tiny import document

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


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


def test_sigterm_is_a_ctrl_c():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), command._interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_says_what_is_missing():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "quick"], capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "needs an NVIDIA GPU" in done.stderr


def test_needs_neither_trainer_nor_pipeline_nor_plots():
    """What a GPU machine may lack."""
    absent = ("lightning", "nvidia.dali", "torchvision", "matplotlib", "yaml", "jsonargparse", "lightly", "tqdm", "PIL")
    program = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); "
    program += "import benchmarks.gpu.command, benchmarks.gpu.run"
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
