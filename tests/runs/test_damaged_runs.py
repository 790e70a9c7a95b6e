"""Every file of a run, a study and a benchmark, damaged in every way: one line with its name, or left out by it."""

import json
import resource
import shutil
import warnings

import pytest

from amcl_fast.benchmarks import results
from amcl_fast.benchmarks.compare import of_files
from amcl_fast.callbacks.metrics import MetricsFile
from amcl_fast.encoder import load_encoder
from amcl_fast.kernels import tuning
from amcl_fast.pretraining import auto
from amcl_fast.report import page, read_run, summarise, write_comparison
from amcl_fast.runs.directory import RunDirectory
from amcl_fast.runs.lock import RunLock
from amcl_fast.runs.reading import DamagedError, read_json
from amcl_fast.runs.settings import read_settings
from amcl_fast.study.folder import RESULTS, open_folder
from amcl_fast.study.results import accuracies
from amcl_fast.study.training import Training
from tests.helpers.damaged_runs import TOLD, damage
from tests.helpers.shots import whole_run

_MOST_MIB = 512
"""That a reader may take for a file, whatever it says of itself; a bomb of 4 GB is among them."""


@pytest.fixture(autouse=True)
def bounded():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (_MOST_MIB << 10)


def refused(read, path, named=None):
    """What a reader says of a file, in a line that names it; "" if it takes it."""
    said = _error(read, path)
    assert not said or (str(named or path) in said and "\n" not in said and len(said) < 1000)
    return said


def _error(read, *given, **more):
    try:
        read(*given, **more)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_run(tmp_path_factory.mktemp("whole") / "run")


FILES = {
    "config.yaml": TOLD,
    "run.json": TOLD,
    "measures.json": TOLD,
    "evaluation-images.json": TOLD,
    "metrics.csv": TOLD,
    "snapshots/after.npz": TOLD - {"NULs within"},  # between members nobody looks
    "snapshots/neighbours.npz": TOLD - {"NULs within"},
    "skipped_files.txt": {"a folder", "a FIFO", "a link that leads nowhere", "a link to itself", "8 GiB of nothing"},
}


@pytest.mark.parametrize("name", FILES)
def test_a_report_goes_without_what_is_damaged_and_says_so(whole, tmp_path, name):
    run = tmp_path / "run"
    for of in {name, "metrics.csv", "run.json"}:
        (run / of).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / of, run / of)
    told = set()
    for kind, change in damage(run / name):
        change(run / name)
        line = refused(lambda path: read_run(run), run / name)
        told |= {kind} if line else set()
        if name == "metrics.csv" and (said := _error(read_run, run, partly=True)):
            assert said == line, kind
            continue
        found = read_run(run, partly=True)
        assert found.damaged == ({name: line} if line else {}), kind
        json.dumps(summary := summarise(found), allow_nan=False)
        if not line:
            page._page(found, summary, {}).encode(errors="surrogateescape")
    assert told >= FILES[name]


def test_pages_are_drawn_without_what_is_damaged(whole, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    for name in FILES.keys() - {"metrics.csv"}:
        (run / name).unlink()
        (run / name).mkdir()
    monkeypatch.setattr(page, "draw_figures", lambda run: {})
    for write in (page.write_report, lambda run: write_comparison([whole, run])):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            text = write(run).read_text()
        lines = [str(warning.message) for warning in warned]
        for name in FILES.keys() - {"metrics.csv"}:
            (line,) = (line for line in lines if name in line)
            assert line.endswith("it must be a regular file; the report goes without it") and str(run / name) in text
        assert "not known to have finished" in text


def _open(path):
    with RunLock() as lock:
        open_folder(path.parent, "epochs", [_training(path.parent)], lock)


def _training(folder):
    return Training("demo", 1, folder)


READERS = {
    RESULTS: _open,
    "config.yaml": read_settings,
    "tuned.json": tuning.read,
    "a.json": results.load,
    "b.json": lambda path: of_files(path, path),
    "any.json": read_json,
}
CONTENT = {
    "study.json": {"study": "epochs", "command": "amcl-fast study epochs"},
    "tuned.json": {"tables": {"select.similarities": {"bfloat16": {"num_warps": 4}}}},
    "a.json": {"schema": 1, "sections": {"operators": {"rows": []}}},
    "b.json": {"schema": 1, "sections": {"operators": {"rows": [{"case": "a", "runs": {"ours": {"median_ms": 1}}}]}}},
    "any.json": {"a": 1},
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_names_the_file(whole, tmp_path, name):
    path = tmp_path / name
    path.write_bytes((whole / name).read_bytes() if name not in CONTENT else json.dumps(CONTENT[name]).encode())
    assert not refused(READERS[name], path)
    told = set()
    for kind, change in damage(path):
        change(path)
        # Of another study it is the folder's name that helps.
        told |= {kind} if refused(READERS[name], path, path.parent if name == RESULTS else path) else set()
    lost = {"a link that leads nowhere", "a link to itself"}  # which no launch needs
    assert told >= TOLD - (lost if name == "tuned.json" else {"a link to itself"} if name == RESULTS else set())


def test_results_that_are_damaged_are_not_passed_over(tmp_path):
    (tmp_path / "study.json").write_text('{"study": "epochs"}')
    assert results.load_all(tmp_path) == []
    (tmp_path / "machine.json").write_text('{"schema": 1, "sec')
    with pytest.raises(DamagedError, match=r"machine\.json"):
        results.load_all(tmp_path)


def test_a_resume_keeps_what_is_whole_of_its_metrics(whole, tmp_path):
    path = tmp_path / "metrics.csv"
    shutil.copy(whole / "metrics.csv", path)
    for kind, change in damage(path):
        change(path)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            log = MetricsFile(tmp_path, resume_step=30)
            log.log_metrics({"loss": 1.5}, step=30)
        lines = [str(warning.message) for warning in warned]
        assert len(lines) == (kind in TOLD or bool(lines)), (kind, lines)
        assert all(str(path) in line and "metrics-damaged.csv" in line for line in lines), kind
        assert read_run(tmp_path).series("loss")[1][-1] == 1.5, kind
        kept = tmp_path / "metrics-damaged.csv"
        shutil.rmtree(kept) if kept.is_dir() else kept.unlink(missing_ok=True)


def test_a_study_refuses_what_its_settings_do_not_say(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "demo-1")
    found = _training(tmp_path).result()
    assert found is not None and accuracies(found)["knn"] == [41.5, 62.75]
    for kind, change in damage(run / "config.yaml"):
        if kind.startswith(("trainer", "knn")):
            change(run / "config.yaml")
            said = _error(lambda: accuracies(read_run(run)))
            assert said or kind == "trainer.max_epochs is a truth value", kind
            assert "config.yaml" in said or "must have" in said, kind


def test_what_a_checkpoint_must_hold_is_named(run):
    path = run / "checkpoints" / "last.ckpt"
    told = set()
    for kind, change in damage(path):
        change(path)
        told |= {kind} if refused(load_encoder, path) else set()
    assert told >= TOLD - {"NULs within"} | {"code", "pickled", "packed", "state_dict is nothing", "loops is missing"}
    assert not (run.parent / "executed").exists()


def test_a_run_of_which_nobody_knows_whether_it_has_finished_goes_on_from_its_checkpoint(run, capsys):
    files = RunDirectory(run)
    for kind, change in damage(files.facts, values=False):
        if kind not in TOLD | {"missing", "null", "an empty mapping", "nested"}:
            continue
        change(files.facts)
        with RunLock() as lock:
            found = auto._find(run, lock, "")
        lines = capsys.readouterr().out.splitlines()
        assert found is not None and found.checkpoint == files.last and found.step == 2
        assert not found.finished or not lines
        assert not lines or (len(lines) == 1 and "run.json is damaged" in lines[0]) or "Too many levels" in lines[0]
        assert lines or kind not in TOLD
