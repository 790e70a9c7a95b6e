"""A run of which somebody deletes files, or all of it, while it goes on: it ends as any, and can be gone on with."""

import shutil
import warnings

import pytest
import yaml

from amcl_fast.callbacks import Throughput
from amcl_fast.cli import main
from amcl_fast.report import read_run
from tests.helpers.command_line import NT_XENT, image_folder, saved_step
from tests.helpers.resuming import resume

pytestmark = pytest.mark.usefixtures("undrawn")

_SETTINGS = NT_XENT + "trainer: {max_epochs: 3, accelerator: cpu, log_every_n_steps: 1}"
FILES = ("config.yaml", "run.json", "metrics.csv", "tensorboard", "snapshots", "checkpoints", "report")


@pytest.fixture
def deleting(tmp_path, monkeypatch):
    """A training of three epochs of four steps, in the second of which something is deleted; returns its warnings."""
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "images", 16, 2)
    (tmp_path / "tiny.yaml").write_text(_SETTINGS)
    run, usual = tmp_path / "run", Throughput.on_train_batch_end

    def train(*names):
        def delete(self, trainer, *given):
            usual(self, trainer, *given)
            if trainer.global_step == 6:
                for path in (run / name for name in names):
                    path.unlink() if path.is_file() else shutil.rmtree(path)

        with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", UserWarning)
            patched.setattr(Throughput, "on_train_batch_end", delete)
            assert main(["pretrain", "--config=tiny.yaml", "--data=images", "--run_dir=run"]) == 0
        return [told for told in (str(warning.message) for warning in warned) if "deleted" in told or "written" in told]

    return train


def test_what_is_deleted_is_written_anew_with_a_line_each(deleting, tmp_path):
    run = tmp_path / "run"
    told = deleting(*(name for name in FILES if name != "report"))
    for name in ("config.yaml", "run.json", "metrics.csv", "tensorboard/", "snapshots/before.npz", "last.ckpt"):
        assert len([line for line in told if name in line and "was deleted" in line]) == 1, (name, told)
    assert len(told) == 6
    assert saved_step(run) == 12 and all((run / name).exists() for name in FILES)
    found = read_run(run)
    assert found.facts["finished"] and found.before is not None and found.after is not None
    assert found.series("loss")[0].tolist()[-6:] == [6, 7, 8, 9, 10, 11]
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"] == 3
    assert resume("--trainer.max_epochs=4") == 0 and saved_step(run) == 16


def test_a_folder_that_is_deleted_is_made_anew_and_locked(deleting, tmp_path):
    run = tmp_path / "run"
    told = deleting("")
    assert len([line for line in told if "it is made anew" in line]) == 1
    assert {path.name for path in run.iterdir()} >= {*FILES, ".lock"}
    assert saved_step(run) == 12 and read_run(run).series("loss")[0].tolist()[-4:] == [8, 9, 10, 11]
    assert resume("--trainer.max_epochs=4") == 0 and saved_step(run) == 16
