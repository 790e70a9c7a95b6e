import csv
import sys
from itertools import count

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amcl_fast.callbacks import Checkpoint, EventsFile, LastStep, MetricsFile, OnlineKNN, Throughput
from tests.helpers import forks
from tests.helpers.command_line import environment
from tests.helpers.disk import no_room
from tests.helpers.running import fit


def lines(folder):
    return (folder / "metrics.csv").read_text().splitlines()


def scalars(folder, name):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_columns_grow(tmp_path):
    log = MetricsFile(tmp_path)
    log.log_metrics({"loss": 1.5}, step=1)
    log.log_metrics({"knn": 40.0}, step=2)
    log.log_metrics({"loss": 0.5}, step=3)
    assert lines(tmp_path) == ["step,loss,knn", "1,1.5,", "2,,40.0", "3,0.5,"]


def test_resume_keeps_what_lies_before_it(tmp_path):
    log = MetricsFile(tmp_path)
    for step in (1, 2, 3):
        log.log_metrics({"loss": float(step)}, step=step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1")  # of a killed run: the first character of "11,…"
    before = lines(tmp_path)
    log = MetricsFile(tmp_path, resume_step=3)
    assert lines(tmp_path) == before  # nothing changes before something is logged
    log.log_metrics({"loss": 9.0, "knn": 1.0}, step=3)
    assert lines(tmp_path) == ["step,loss,knn", "1,1.0,", "2,2.0,", "3,9.0,1.0"]


def test_a_damaged_file_does_not_end_a_resume(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"step,loss\n1,2.0\n\xff\x00,\n,3\nx,4\n2,5.0\n")
    damaged = (tmp_path / "metrics.csv").read_bytes()
    with pytest.warns(UserWarning, match=r"metrics\.csv is damaged: .*kept as .*metrics-damaged\.csv"):
        MetricsFile(tmp_path, resume_step=2).write()
    assert lines(tmp_path) == ["step,loss", "1,2.0"]
    assert (tmp_path / "metrics-damaged.csv").read_bytes() == damaged


def test_what_is_logged_without_a_step_is_no_damage(tmp_path):
    """By callbacks of others; a resume, which may come to log it again, leaves it out."""
    log = MetricsFile(tmp_path)
    for step, metrics in ((0, {"loss": 1.0}), (None, {"own": 2.0}), (None, {"own": 3.0}), (1, {"loss": 4.0})):
        log.log_metrics(metrics, step=step)
    assert lines(tmp_path) == ["step,loss,own", "0,1.0,", ",,2.0", ",,3.0", "1,4.0,"]
    log = MetricsFile(tmp_path, resume_step=2)
    log.log_metrics({"new": 5.0}, step=2)
    assert lines(tmp_path) == ["step,loss,own,new", "0,1.0,,", "1,4.0,,", "2,,,5.0"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_new_run_never_writes_into_an_old_file(tmp_path):
    MetricsFile(tmp_path).log_metrics({"loss": 1.0}, step=1)
    with pytest.raises(FileExistsError, match="two runs never share a folder"):
        MetricsFile(tmp_path)


def test_the_same_metrics_of_a_step_are_logged_once(tmp_path):
    log = MetricsFile(tmp_path)
    for metrics in ({"loss": float("nan")}, {"loss": float("nan")}, {"loss": 1.0}):
        log.log_metrics(metrics, step=1)
    assert lines(tmp_path) == ["step,loss", "1,1.0"]


def test_a_step_has_one_row_whatever_is_logged_of_it(tmp_path):
    """Of a file of an earlier version too, whose steps have several; of none what the resume writes again."""
    (tmp_path / "metrics.csv").write_text("step,loss,knn\n1,9.0,\n1,,40.0\n2,8.0,\n")
    log = MetricsFile(tmp_path, resume_step=2)
    logged = [(2, {"loss": 0.5}), (2, {"knn": 5.0}), (3, {"loss": 0.25}), (3, {"tau": 1.0}), (3, {"knn": 7.0})]
    for step, metrics in logged:
        log.log_metrics(metrics, step=step)
        assert lines(tmp_path)[-1].startswith(f"{step},")  # at once
    expected = ["step,loss,knn,tau", "1,9.0,40.0,", "2,0.5,5.0,", "3,0.25,7.0,1.0"]
    assert lines(tmp_path) == expected
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,0.75,,\n")
    log.log_metrics({"loss": 0.125}, step=5)
    assert lines(tmp_path) == [*expected, "4,0.75,,", "5,0.125,,"]


def test_what_is_added_to_a_row_does_not_depend_on_how_many_there_are(tmp_path, monkeypatch):
    log = MetricsFile(tmp_path)
    log.log_metrics({"loss": 1.0, "knn": 1.0}, step=0)
    monkeypatch.setattr("amcl_fast.callbacks.metrics.write_file", None)  # the whole file, once more
    for step in range(1, 500):
        log.log_metrics({"loss": float(step)}, step=step)
        log.log_metrics({"knn": float(step)}, step=step)
    assert lines(tmp_path)[1:] == [f"{step},{float(step or 1)},{float(step or 1)}" for step in range(500)]


def test_a_run_of_fewer_steps_than_the_interval_has_its_metrics(tmp_path):
    """With the number of all steps, as what is measured at the end; the gradient's norm is there, clipped or not."""
    norms = []
    for clip in (None, 1e9):
        folder = tmp_path / str(clip)
        loggers = [MetricsFile(folder), EventsFile(folder)]
        folder.mkdir()
        settings = {"max_steps": 3, "log_every_n_steps": 50, "gradient_clip_val": clip}
        fit(folder, logger=loggers, extra=[LastStep(), Throughput(), OnlineKNN(every_n_epochs=5)], **settings)
        rows = list(csv.DictReader(lines(folder)))
        assert [row["step"] for row in rows] == ["0", "3"]
        assert all(rows[1][name] for name in ("loss", "lr", "tau_positive_mean", "images_per_second", "knn"))
        assert scalars(folder, "loss") == [(3, pytest.approx(float(rows[1]["loss"])))]
        norms.append(float(rows[1]["gradient_norm"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 0
    path = tmp_path / "None" / "checkpoints" / "last.ckpt"
    log = MetricsFile(tmp_path / "None", resume_step=3)
    settings = {"max_steps": 4, "log_every_n_steps": 4}
    fit(tmp_path / "None", logger=log, extra=[LastStep(), Throughput()], ckpt_path=path, **settings)
    rows = list(csv.DictReader(lines(tmp_path / "None")))
    assert [row["step"] for row in rows] == ["0", "3"] and rows[1]["epoch"]  # that of the logged fourth step


@pytest.mark.parametrize("kind", [MetricsFile, EventsFile])
@pytest.mark.parametrize("room", [0, 150])
def test_what_does_not_fit_waits_and_is_told_once(tmp_path, kind, room):
    """Room ends within a row, or before the first; later metrics bring a column of their own."""
    log = kind(tmp_path)

    def log_all():
        with no_room(room):
            for step in range(20):
                log.log_metrics({"loss": float(step), **({"knn": 5.0} if step == 9 else {})}, step=step)

    with pytest.warns(UserWarning, match=r"(metrics\.csv|tfevents).* cannot be written .*too large") as told:
        log_all()
    assert len(told) == 1
    log.log_metrics({"loss": 20.0}, step=20)
    if kind is MetricsFile:
        rows = [f"{step},{float(step)}," + ("5.0" if step == 9 else "") for step in range(21)]
        assert lines(tmp_path) == ["step,loss,knn", *rows]
    else:
        assert scalars(tmp_path, "loss") == [(step, float(step)) for step in range(21)]
        assert scalars(tmp_path, "knn") == [(9, 5.0)]


def test_a_resumed_run_hides_the_steps_that_it_repeats(tmp_path, monkeypatch):
    monkeypatch.setattr("amcl_fast.callbacks.metrics._numbers", count(9))  # of which 10 is no later in the alphabet
    first = EventsFile(tmp_path)
    for step in range(4):
        first.log_metrics({"loss": 1.0}, step=step)
    EventsFile(tmp_path, resume_step=2).log_metrics({"loss": 2.0}, step=2)
    assert scalars(tmp_path, "loss") == [(0, 1.0), (1, 1.0), (2, 2.0)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


_TRAIN = """
import sys
from pathlib import Path
from tests.helpers.running import fit
from tests.helpers.killing import KillAfterSave
from amcl_fast.callbacks import Checkpoint, MetricsFile, OnlineKNN
folder = Path(sys.argv[1])
fit(folder, checkpoint=Checkpoint(every_n_steps=1), logger=MetricsFile(folder), log_every_n_steps=1,
    extra=[OnlineKNN(), KillAfterSave(int(sys.argv[2]))])
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, checkpoint=Checkpoint(every_n_steps=1), logger=MetricsFile(folder), log_every_n_steps=1,
        extra=[OnlineKNN()])  # fmt: skip
    return lines(folder)


# Within an epoch, and at its end, where kNN has just been measured.
@pytest.mark.parametrize("step", [3, 4])
def test_a_kill_between_a_save_and_its_log_loses_no_row(tmp_path, whole, step):
    done = forks.run([sys.executable, "-c", _TRAIN, tmp_path, str(step)], env=environment(tmp_path))
    assert done.returncode == -9, done.stderr
    log = MetricsFile(tmp_path, resume_step=step)
    path = tmp_path / "checkpoints" / "last.ckpt"
    fit(tmp_path, checkpoint=Checkpoint(every_n_steps=1), logger=log, log_every_n_steps=1, ckpt_path=path,
        extra=[OnlineKNN()])  # fmt: skip
    assert lines(tmp_path) == whole
    assert sum(",loss" in line for line in whole) == 1
    assert [line.split(",")[0] for line in whole[1:]] == list("01234567")
