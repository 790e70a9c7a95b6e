"""A run of two processes over gloo, through the command line: one report, one list, one lock, one checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amcl_fast.cli import main
from amcl_fast.data.loader.order import Order
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
    # By the first process alone, whichever has found it.
    assert done.stderr.count("3.png: found during the run: it cannot be read and decoded\n") == 1
    assert done.stderr.count("1 file has turned out to be bad during the run: see run/skipped_files.txt\n") == 1
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "were not used: 1." in page and page.count("<img") == 14
    assert json.loads((tmp_path / "run" / "report" / "summary.json").read_text())["finished"] is True
    # The first save failed in the process that writes, and neither process waited for the other for ever.
    assert done.stderr.count("the checkpoint cannot be saved") >= 1 and "training goes on" in done.stderr
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == steps[-1] + 1


_SCRIPT = """
import amcl_fast
if __name__ == "__main__":
    result = amcl_fast.pretrain("settings.yaml", "images", run_dir="run", epochs=1)
    print(f"{result.steps} steps to {result.encoder.conv1.weight.double().sum().item()!r}")
"""


def test_a_script_starts_its_other_process(tmp_path):
    image_folder(tmp_path / "images", 8, 4)
    (tmp_path / "settings.yaml").write_text(_SETTINGS)
    (tmp_path / "script.py").write_text(_SCRIPT)
    run = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    ends = [line for line in run.stdout.splitlines() if line.startswith("2 steps to ")]
    assert len(ends) == 2 and len({*ends}) == 1
    assert read_run(tmp_path / "run").facts["machine"]["processes"] == 2


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


def test_a_new_run_of_which_a_process_is_killed_goes_on(images, tmp_path):
    settings = _SETTINGS.replace("every_n_epochs: 1", "every_n_steps: 1") + "knn: {every_n_epochs: 0}\n"
    (tmp_path / "settings.yaml").write_text(settings)
    command = [sys.executable, "-m", "tests.helpers.torchrun", "--standalone", "--nproc_per_node=2"]
    command += ["--max-restarts=1", *PRETRAIN[1:], "--config", "settings.yaml", "--data", images, "--run_dir", "run"]
    command += ["--trainer.callbacks+=tests.helpers.killing.KillOnce", "--trainer.callbacks.rank=1"]
    command += ["--trainer.callbacks.step=3", "--trainer.max_steps=4"]
    done = forks.run(command, cwd=tmp_path, env=environment(tmp_path), timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("restart 1 of torchrun: goes on from step 2 of run\n") == 1
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("amcl-fast")]
    assert told.startswith("amcl-fast pretrain: error: process 0 has lost process 1 (pid ")
    assert "Traceback" not in done.stderr and "/gloo/" not in done.stderr
    assert read_run(tmp_path / "run").series("loss")[0].tolist() == [0, 1, 2, 3]


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


_SEEN = """
import json
from pathlib import Path
import lightning as L
class Seen(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        entry = [trainer.global_step, trainer.world_size, trainer.train_dataloader._latest]
        with Path(f"seen-{trainer.global_rank}").open("a") as file:
            file.write(json.dumps(entry) + "\\n")
"""


def test_one_command_goes_on_whoever_dies_and_with_any_number_of_processes(tmp_path, monkeypatch, capsys):
    """One process, two by torchrun, of which one is killed, one again: each time within an epoch of three steps."""
    settings = _SETTINGS.replace("devices: 2, strategy: ddp, ", "") + "knn: {every_n_epochs: 0}\n"
    (tmp_path / "settings.yaml").write_text(settings.replace("every_n_epochs: 1", "every_n_steps: 1"))
    (tmp_path / "seeing.py").write_text(_SEEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    images = image_folder(tmp_path / "images", 12, 4, ".png")
    command = ["--config", "settings.yaml", "--data", str(images), "--run_dir", "run", "--resume", "auto"]
    command += ["--trainer.callbacks+=seeing.Seen"]
    assert main(["pretrain", *command, "--trainer.max_steps=2"]) == 0

    torchrun = [sys.executable, "-m", "tests.helpers.torchrun", "--standalone", "--nproc_per_node=2"]
    torchrun += ["--max-restarts=1", *PRETRAIN[1:], *command, "--trainer.devices=2", "--trainer.max_steps=5"]
    torchrun += ["--trainer.callbacks+=tests.helpers.killing.KillOnce", "--trainer.callbacks.rank=1"]
    torchrun += ["--trainer.callbacks.step=4"]
    done = forks.run(torchrun, cwd=tmp_path, env=environment(tmp_path), timeout=200)
    assert done.returncode == 0, done.stderr
    assert "process 0 has lost process 1 (pid " in done.stderr and done.stderr.count("Traceback") == 0
    assert done.stdout.count("goes on with 2 process(es) instead of 1") == 1

    capsys.readouterr()
    last = ["pretrain", *command, "--trainer.max_steps=-1", "--trainer.max_epochs=3", "--trainer.devices=1"]
    assert main(last) == 0
    assert "goes on with 1 process(es) instead of 2" in capsys.readouterr().out
    assert main(last) == 0
    assert capsys.readouterr().out == "run has finished: there is nothing left to train\n"
    seen = {}
    for rank in range(2):
        for line in (tmp_path / f"seen-{rank}").read_text().splitlines():
            step, processes, places = json.loads(line)
            seen[step, rank] = processes, places
    order = Order(24, 8)
    for step in range(1, 10):
        processes = 2 if 3 <= step <= 5 else 1
        parts = [seen[step, rank] for rank in range(processes)]
        assert [count for count, _ in parts] == [processes] * processes
        assert sorted(place for _, part in parts for place in part) == sorted(order.places(step - 1))
    assert read_run(tmp_path / "run").series("loss")[0].tolist() == list(range(9))
