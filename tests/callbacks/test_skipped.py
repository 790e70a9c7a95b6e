"""amcl_fast.callbacks.skipped: files found bad before, during and at the end of a run are all listed."""

from types import SimpleNamespace

import lightning as L
import pytest

from amcl_fast import callbacks
from amcl_fast.callbacks import MetricsFile, Report, SkippedFiles
from amcl_fast.data.loader.bad_files import tell
from amcl_fast.report import read_run
from tests.helpers.fake_data import FakeDataModule, FakeLoader
from tests.helpers.running import Stop, fit, method

FOUND = "found during the run: "
ODD = "/data/caf\udce9 1\n.jpg"  # a name that is not UTF-8, and has a line break


class Data(FakeDataModule):
    mean, std = (0.5,) * 3, (0.25,) * 3

    def train_dataloader(self):
        return FakeLoader(self.loader.steps, self.loader.batch)


class Find(L.Callback):
    """A file turns out to be bad at a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.datamodule.skipped.append((f"/data/{self.step}.jpg", "found <late>"))


def train(folder, *extra):
    data = Data()
    data.skipped = [("/data/first.jpg", "empty file"), (ODD, "its name is not valid UTF-8")]
    return fit(folder, method(), data, logger=MetricsFile(folder), extra=extra)


@pytest.mark.parametrize("order", [(Report, SkippedFiles), (SkippedFiles, Report)])
def test_files_found_late_are_in_the_list_and_in_the_report(tmp_path, order):
    train(tmp_path, Find(2), Find(7), *(kind() for kind in order))
    names = [file for file, _ in read_run(tmp_path).skipped]
    assert names == ["/data/first.jpg", r"/data/caf\xe9 1\n.jpg", "/data/2.jpg", "/data/7.jpg"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "/data/7.jpg" in page and "found &lt;late&gt;" in page and "were not used: 4." in page


class FindMany(L.Callback):
    """Files of a loader turn out to be bad at the last step."""

    def __init__(self, number):
        self.number = number

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 5:
            for number in range(self.number):
                entry = f"/data/{number}.jpg", f"{FOUND}no such file"
                tell(*entry)
                trainer.datamodule.skipped.append(entry)


def said(caplog):
    return [record.message for record in caplog.records if record.name.startswith("amcl_fast")]


def summary(folder, files):
    return f"{files} turned out to be bad during the run: see {folder / 'skipped_files.txt'}"


def test_bad_files_are_a_few_lines_and_a_count_in_every_training_of_a_process(tmp_path, caplog):
    for number in (40, 1, 3000):
        caplog.clear()
        train(tmp_path / f"{number}", SkippedFiles(), FindMany(number))
        named = [f"/data/{file}.jpg: {FOUND}no such file" for file in range(min(number, 5))]
        others = ["further files that turn out to be bad are only listed"] if number > 5 else []
        count = "1 file has" if number == 1 else f"{number:,} files have"
        assert said(caplog) == [*named, *others, summary(tmp_path / f"{number}", count)]
        assert read_run(tmp_path / f"{number}").num_skipped == number + 2
    caplog.clear()
    with pytest.raises(Stop):
        train(tmp_path / "stopped", SkippedFiles(), FindMany(9), Stop.at(6))
    assert said(caplog)[6:] == [summary(tmp_path / "stopped", "9 files have")]


def test_an_interrupted_run_has_its_list(tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, SkippedFiles(), Find(5), Stop.at(6))
    assert read_run(tmp_path).skipped[-1] == ("/data/5.jpg", "found <late>")


def test_a_run_that_has_not_begun_writes_no_list(tmp_path):
    class Fail(L.Callback):
        def on_fit_start(self, *_):
            raise Stop

    with pytest.raises(Stop):
        train(tmp_path, SkippedFiles(), Fail())
    assert not (tmp_path / "skipped_files.txt").exists()


def test_a_list_that_cannot_be_written_is_tried_again(tmp_path, monkeypatch):
    left = [OSError(28, "No space left on device")]
    real = callbacks.skipped.write_skipped

    def write(*args):
        if left:
            raise left.pop()
        return real(*args)

    monkeypatch.setattr(callbacks.skipped, "write_skipped", write)
    with pytest.warns(UserWarning, match=r"skipped_files\.txt cannot be written \(.*No space left"):
        train(tmp_path, SkippedFiles())
    assert len(read_run(tmp_path).skipped) == 2


def test_nothing_left_out_makes_no_file(tmp_path):
    fit(tmp_path, method(), Data(), extra=[SkippedFiles()])
    assert not (tmp_path / "skipped_files.txt").exists()


@pytest.mark.parametrize("alike", [True, False])
def test_processes_send_what_is_new(tmp_path, monkeypatch, alike):
    """The files that a scan has left out are the same in all of them, and many."""
    scanned = [(f"/data/{number}.jpg", "empty file") for number in range(1000)]
    data = SimpleNamespace(skipped=[*scanned])
    trainer = SimpleNamespace(world_size=2, datamodule=data, is_global_zero=False, default_root_dir=tmp_path)
    sent, theirs = [], []

    def exchange(own):
        sent.append(own)
        return [own, theirs[-1]] if theirs else [own, own if alike else "another digest"]

    monkeypatch.setattr(callbacks.skipped, "exchange", exchange)
    callback = SkippedFiles()
    callback.setup(trainer, None, "fit")
    own, other, both, late = ((f"/data/{name}.jpg", "found") for name in ("own", "other", "both", "late"))
    data.skipped += [own, both]
    theirs.append([other, both])
    callback.on_train_epoch_end(trainer, None)
    assert data.skipped == [*scanned, own, both, other]
    data.skipped.append(late)
    theirs.append([])
    callback.on_train_epoch_end(trainer, None)
    assert data.skipped == [*scanned, own, both, other, late]
    assert sent[1:] == [[*([] if alike else scanned), own, both], [late]]
