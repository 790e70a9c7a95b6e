"""A run of two processes over gloo, through the command line: one report, one list, one lock, one checkpoint."""

import json
import sys
from pathlib import Path

import pytest
import torch

from amcl_fast.report import read_run
from tests.helpers import forks
from tests.helpers.command_line import AMCL, PRETRAIN, environment, image_folder, pretrain

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

_SETTINGS = f"""{AMCL}
        gather: true
        backend: reference
trainer: {{max_epochs: 2, accelerator: cpu, devices: 2, strategy: ddp, log_every_n_steps: 1}}
checkpoint: {{every_n_epochs: 1}}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = image_folder(tmp_path_factory.mktemp("images"), 12, 4, ".png")
    # Its header and its end are whole: found when it is decoded, by the one process whose part it is in.
    hidden = root / "train" / "a" / "3.png"
    content = bytearray(hidden.read_bytes())
    content[200:600] = bytes(400)
    hidden.write_bytes(content)
    return root


def test_two_processes_make_one_run(images, tmp_path):
    (tmp_path / "settings.yaml").write_text(_SETTINGS)
    full = ("--trainer.callbacks", "tests.helpers.disk.FullAt", "--trainer.callbacks.epoch", "0")
    watched = (*full, "--trainer.callbacks+", "tests.helpers.processes.TellThreads")
    done = pretrain(tmp_path, "--config", "settings.yaml", "--data", images, "--run_dir", "run", *watched)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("gloo threads in training 2, at the end 0") == 2, done.stderr
    assert "sync_dist" not in done.stderr  # Lightning's advice
    run = read_run(tmp_path / "run")
    assert run.facts["finished"] and run.facts["machine"]["processes"] == 2
    steps = run.series("loss")[0].tolist()
    assert steps == sorted(set(steps))  # logged by one process
    assert [len(series[0]) for series in run.heads("positive")] == [2, 2]
    assert [Path(file).name for file, _ in run.skipped] == ["3.png"]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "were not used: 1." in page and page.count("<img") == 8
    assert json.loads((tmp_path / "run" / "report" / "summary.json").read_text())["finished"] is True
    # The first save failed in the process that writes, and neither process waited for the other for ever.
    assert done.stderr.count("the checkpoint cannot be saved") >= 1 and "training goes on" in done.stderr
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == steps[-1] + 1


@pytest.fixture
def differing(tmp_path):
    """Trains with processes of which a statement has changed what they know of the data."""

    def run(data, statement):
        (tmp_path / "settings.yaml").write_text(_SETTINGS)
        (tmp_path / "differing.py").write_text(
            "import lightning as L\n"
            "from lightning.pytorch.strategies.launchers import subprocess_script\n"
            "from tests.helpers import forks\n"
            "subprocess_script.subprocess = forks\n"
            "class Differing(L.Callback):\n"
            "    def setup(self, trainer, pl_module, stage):\n"
            "        data, rank = trainer.datamodule, trainer.global_rank\n"
            f"        {statement}\n"
        )
        callback = ("--trainer.callbacks+", "differing.Differing")
        command = [*PRETRAIN, "--config", "settings.yaml", "--data", data, "--run_dir", "run", *callback]
        return forks.run(command, cwd=tmp_path, env=environment(tmp_path), timeout=300)

    return run


def test_processes_that_find_different_images_end_in_one_line(images, tmp_path, differing):
    """As when a folder is being filled, or is another one on the second machine."""
    # Not that the list which the first process has kept is an old one.
    fewer = "data._train.subset(range(len(data._train.files) - rank))"
    done = differing(images, f"assert data._is_kept == bool(rank); data._is_kept, data._train = False, {fewer}")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    told = "must hold the same images for every process, got 24 and 8, 23 and 8 to train on and held out"
    assert done.stderr.count(told) == 1
    assert not (tmp_path / "run").exists()


def test_where_nothing_can_be_measured_is_the_first_process_s_word(tmp_path, differing):
    done = differing(image_folder(tmp_path, 8, 2, ".png"), "data.unmeasurable = None if rank else 'of a test'")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kNN is not measured: of a test\n") == 1
    assert done.stdout.count("run directory: ") == 1


def test_processes_that_wait_for_one_that_was_refused_end_with_it(images, tmp_path):
    """torchrun tells them by SIGTERM, which finds them in a library, and kills them 30 s later."""
    (tmp_path / "settings.yaml").write_text(_SETTINGS)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").touch()
    command = [sys.executable, "-m", "tests.helpers.torchrun", "--standalone", "--nproc_per_node=2", *PRETRAIN[1:]]
    command += ["--config", "settings.yaml", "--data", images, "--run_dir", "run"]
    done = forks.run(command, cwd=tmp_path, env=environment(tmp_path), timeout=100)
    assert done.stderr.count("run holds a run") == 1
    assert done.returncode and "SIGKILL" not in done.stderr
