"""amcl_fast.runs.read: what a run directory holds, whole or not."""

import numpy as np
import pytest

from amcl_fast.report import read_run, write_comparison, write_report
from amcl_fast.runs.directory import write_facts
from tests.helpers.shots import METRICS, run_directory, snapshot


def test_every_metric_has_its_own_steps(tmp_path):
    run = read_run(run_directory(tmp_path))
    steps, values = run.series("knn")
    assert (steps.tolist(), values.tolist()) == ([9, 19], [41.5, 62.75])
    assert run.series("loss")[0].tolist() == [4, 9, 14]
    assert run.last("knn_pixels") == 11.5
    assert run.last("accuracy") is None
    assert not len(run.series("accuracy")[0])


def test_values_that_are_not_finite_are_left_out(tmp_path):
    """Beyond float32, too, which a run in float64 may log; and what has no step."""
    run = read_run(run_directory(tmp_path, metrics="step,loss\n1,2.5\n2,nan\n3,inf\n4,1e39\n,7.0\n5,3e38\n"))
    assert run.series("loss")[1].tolist() == [2.5, 3e38]


def test_half_a_line_of_a_run_that_goes_on_is_no_error(tmp_path):
    run = read_run(run_directory(tmp_path, metrics=METRICS + "24,1,4."))
    assert run.series("loss")[0].tolist() == [4, 9, 14]  # 4. may have been 4.75


@pytest.mark.parametrize("make", ["nothing", "empty", "file"])
def test_what_is_no_run_directory_is_refused_by_name(tmp_path, make):
    folder = tmp_path / "here"
    if make == "empty":
        folder.mkdir()
    if make == "file":
        folder.write_text("")
    with pytest.raises(FileNotFoundError, match=r"here.*expected the folder of a run"):
        read_run(folder)


def test_a_run_that_logged_nothing_has_a_report(tmp_path):
    """It is off, kNN, and ended before the first step whose metrics were due."""
    folder = run_directory(tmp_path / "short", after=snapshot())
    (folder / "metrics.csv").unlink()
    write_facts(folder, {"finished": True, "unmeasurable": "kNN is off: knn.bank is 0"})
    run = read_run(folder)
    assert run.metrics == {} and run.last("loss") is None
    page = write_report(folder).read_text()
    assert "0 optimiser steps logged" in page and "Not measured: kNN is off: knn.bank is 0." in page
    assert write_comparison([folder, run_directory(tmp_path / "usual")], tmp_path / "both").is_file()
    write_facts(folder, {"finished": True, "steps": 3})
    told = f"{folder / 'metrics.csv'} is missing, though the run has finished"
    assert read_run(folder, partly=True).damaged == {"metrics.csv": told}


@pytest.mark.parametrize("metrics", ["epoch,loss\n1,2\n", "step,loss\n1,abc\n", ""])
def test_a_damaged_metrics_file_is_named(tmp_path, metrics):
    with pytest.raises(ValueError, match=r"metrics\.csv"):
        read_run(run_directory(tmp_path, metrics=metrics))


def test_settings_facts_and_skipped_files(tmp_path):
    folder = run_directory(tmp_path)
    (folder / "config.yaml").write_text("data: {size: 32}\ntrainer: {max_epochs: 2}\n")
    (folder / "skipped_files.txt").write_text("/data/a b.jpg\tit is empty\n/data/tab\tbed.jpg\ttruncated\n")
    facts = {"finished": True, "training_images": None}  # of a loader that does not know
    write_facts(folder, facts)
    run = read_run(folder)
    assert run.setting("data.size") == 32
    assert run.setting("data.nothing.below") is None
    assert run.skipped == [("/data/a b.jpg", "it is empty"), ("/data/tab\tbed.jpg", "truncated")]
    assert run.facts == facts


def test_snapshots_are_read_back_as_they_were(tmp_path):
    written = snapshot(step=7)
    run = read_run(run_directory(tmp_path, after=written))
    assert run.before is None
    assert run.after is not None and run.after.step == 7
    assert (run.after.tau_min, run.after.tau_max, run.after.top_k) == (0.1, 1.0, 4)
    assert np.array_equal(run.after.hardest_tau, written.hardest_tau)
    assert np.array_equal(run.after.views, written.views)
