"""Where a run lives, where its data lies: homes, empty folders, two at once, other working directories."""

import logging
import os
import pwd
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from amcl_fast.cli import main
from amcl_fast.paths import absolute_data, expanded, find_data
from amcl_fast.pretraining.lightning_cli import PretrainCLI
from amcl_fast.runs.directory import NewFolder
from amcl_fast.runs.lock import RunLock
from tests.helpers.command_line import NT_XENT, environment, image_folder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

_SETTINGS = NT_XENT + "trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1}"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with images and settings, and another folder to be in."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    image_folder(tmp_path / "home" / "images", 8, 2)
    (tmp_path / "home" / "tiny.yaml").write_text(_SETTINGS)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def root_of(run):
    """data.root in config.yaml, which is that of the checkpoint too."""
    root = yaml.safe_load((run / "config.yaml").read_text())["data"]["root"]
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["settings"]["data"]["root"] == root
    return root


def exit_code(arguments):
    try:
        return main(arguments)
    except SystemExit as end:  # argparse's
        return end.code


def last_error(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def test_a_home_is_known_wherever_a_path_is_given(home, capsys):
    """The shell leaves the ~ in --option=~/PATH."""
    pytest.importorskip("safetensors")
    assert main(["pretrain", "--config=~/tiny.yaml", "--data=~/images", "--run_dir=~/runs/x"]) == 0
    run = home / "runs" / "x"
    assert root_of(run) == str(home / "images")
    assert main(["pretrain", "--resume=~/runs/x", "--trainer.max_epochs=2", "--data.root=~/images"]) == 0
    options = ["--data=~/images", "--epochs=1", "--batch_size=8", "--output=~/found.json"]
    assert main(["evaluate", "~/runs/x", *options]) == 0
    assert main(["export", "~/runs/x", "--output=~/a.safetensors"]) == 0
    assert main(["report", "~/runs/x"]) == 0
    assert {"found.json", "a.safetensors"} <= {path.name for path in home.iterdir()}
    assert not list(Path.cwd().iterdir())
    capsys.readouterr()
    assert exit_code(["pretrain", "--config=~/no.yaml"]) == 2
    assert str(home / "no.yaml") in (told := last_error(capsys)) and "~" not in told


def test_homes_of_others_and_folders_of_that_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    user = pwd.getpwuid(os.getuid())
    assert expanded(f"~{user.pw_name}/x") == os.path.join(user.pw_dir, "x")
    assert expanded("./~/x") == str(tmp_path / "~" / "x") and expanded("a/~") == "a/~"
    with pytest.raises(
        ValueError, match=r"^~nobody-here/x names the home of a user who is not known.*\./~nobody-here/x$"
    ):
        expanded("~nobody-here/x")
    with pytest.raises(SystemExit):
        main(["export", "~nobody-here/x"])


@pytest.mark.parametrize("option", ["--data=", "--run_dir=", "--resume=", "--config="])
def test_a_variable_of_the_shell_that_is_not_set_is_no_folder(option, home, capsys):
    settings = ["--config", str(home / "tiny.yaml"), "--data", str(home / "images")]
    assert exit_code(["pretrain", *settings, option]) == 2
    assert "a path must not be empty, got ''" in last_error(capsys)
    assert not list(Path.cwd().iterdir())


def test_a_folder_named_tilde_stays_within_reach(home):
    image_folder(Path("~") / "images", 8, 2)
    (Path("~") / "run").mkdir()
    settings = ["--config", str(home / "tiny.yaml"), "--data", "./~/images"]
    assert main(["pretrain", *settings, "--run_dir", "./~/run"]) == 0
    assert root_of(Path.cwd() / "~" / "run") == str(Path.cwd() / "~" / "images")


def test_relative_data_are_found_from_elsewhere(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert main(["pretrain", "--config", "tiny.yaml", "--data", "images", "--run_dir", "run"]) == 0
    assert root_of(home / "run") == str(home / "images")
    monkeypatch.chdir("/")
    run = str(home / "run")
    assert main(["pretrain", "--resume", run, "--trainer.max_epochs", "2"]) == 0
    assert main(["evaluate", run, "--epochs", "1", "--batch_size", "8"]) == 0
    assert (home / "run" / "evaluation-images.json").is_file()


def test_names_of_data_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "builtin").mkdir()
    assert [absolute_data(name) for name in ("builtin", "cifar10", "stl10")] == ["builtin", "cifar10", "stl10"]
    assert absolute_data("./builtin") == str(tmp_path / "builtin") == absolute_data("../" + tmp_path.name + "/builtin")
    assert find_data("cifar100", tmp_path) == "cifar100"


def test_runs_of_before_kept_them_relative(home, monkeypatch, capsys):
    """They are looked for from where the run may have been started."""
    monkeypatch.chdir(home)
    assert main(["pretrain", "--config", "tiny.yaml", "--data", "images", "--run_dir", "runs/run"]) == 0
    path = home / "runs" / "run" / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    state["settings"]["data"]["root"] = "images"
    torch.save(state, path)
    config = home / "runs" / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(home / "images"), "images"))
    monkeypatch.chdir("/")
    run = str(home / "runs" / "run")
    assert main(["evaluate", run, "--epochs", "1", "--batch_size", "8"]) == 0
    (home / "images").rename(home / "moved")
    for command in (["evaluate", run], ["pretrain", "--resume", run]):
        capsys.readouterr()
        assert main(command) == 2
        assert f"images, is a relative path, and is in none of {home / 'runs'}, {home}, /: give --data" in last_error(
            capsys
        )
    (home / "moved").rename(home / "images")
    assert main(["pretrain", "--resume", run, "--trainer.max_epochs", "2"]) == 0
    assert root_of(home / "runs" / "run") == str(home / "images")


def test_a_relative_path_that_leads_to_two_places_is_refused(tmp_path, monkeypatch):
    """The folder that somebody resumes from may have other images of that name."""
    run, own, here = tmp_path / "old" / "runs" / "run", tmp_path / "old" / "images", tmp_path / "here"
    for folder in (run, own, here / "images"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(ValueError, match=rf"in more than one place: give one of {own}, {here / 'images'} as --data"):
        find_data("images", run)
    (here / "images").rmdir()
    assert find_data("images", run) == str(own)
    (here / "images").symlink_to(own)
    assert find_data("images", run) == str(own)
    own.rename(tmp_path / "moved")
    (here / "images").unlink()
    (here / "images").mkdir()
    assert find_data("images", run) == str(here / "images")


def test_the_shards_of_an_old_run_are_found_by_their_pattern(tmp_path, monkeypatch):
    run = tmp_path / "old" / "runs" / "run"
    (tmp_path / "here" / "shards").mkdir(parents=True)
    run.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    pattern = "shards/train-{000..002}.tar"
    with pytest.raises(FileNotFoundError, match="is in none of"):
        find_data(pattern, run)
    (tmp_path / "here" / "shards" / "train-001.tar").touch()
    assert find_data(pattern, run) == absolute_data(pattern) == f"{tmp_path}/here/{pattern}"
    assert find_data("/gone/{0..1}.tar", run) == "/gone/{0..1}.tar"


def test_an_empty_folder_is_used(home, capsys):
    start = ["pretrain", "--config", str(home / "tiny.yaml"), "--data", str(home / "images"), "--run_dir", "made"]
    Path("made").mkdir()
    assert main([*start, "--data", "nowhere"]) == 2
    assert Path("made").is_dir() and not list(Path("made").iterdir())  # whoever made it may want it
    (Path("made") / ".lock").touch()
    assert main(start) == 0
    assert (Path("made") / "checkpoints" / "last.ckpt").is_file()
    assert main(start) == 2
    assert "made holds a run" in (line := last_error(capsys)) and "--resume made" in line


def test_a_folder_with_other_things_is_refused_before_the_data_are_read(home, capsys):
    Path("made").mkdir()
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (Path("made") / name).touch()
    start = ["pretrain", "--config", str(home / "tiny.yaml"), "--data", "nowhere", "--run_dir"]
    assert main([*start, "made"]) == 2
    line = last_error(capsys)
    assert "made holds a.txt, b.txt, c.txt and 1 more, which is no run" in line and "--resume" not in line
    assert main([*start, "made/a.txt"]) == 2
    assert "made/a.txt is no folder" in last_error(capsys)
    assert main([*start, "made/a.txt/run"]) == 2
    assert "made/a.txt" in last_error(capsys)
    assert len(list(Path("made").iterdir())) == 4


def test_folders_of_runs_that_do_not_start_are_taken_away(home, capsys):
    start = ["pretrain", "--config", str(home / "tiny.yaml"), "--data", "nowhere"]
    assert main([*start, "--run_dir", "one/two/three"]) == 2
    assert main(start) == 2
    assert not list(Path.cwd().iterdir())


def test_runs_of_one_second_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    names = []
    for _ in range(3):
        with RunLock() as lock:
            names.append(NewFolder(None, "demo", lock).reserve())
    assert [str(name) for name in names] == [f"runs/demo-20260101-000000{end}" for end in ("", "-2", "-3")]
    assert os.environ["AMCL_FAST_RUN_DIR"] == str(names[-1])  # for the processes that the trainer starts


_RACE = """
import sys, time
from pathlib import Path
from amcl_fast.runs.directory import NewFolder
from amcl_fast.runs.lock import RunLock
time.strftime = lambda *_: "20260101-000000"
given = Path(sys.argv[1]) if len(sys.argv) > 1 else None
with RunLock() as lock:
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        print(NewFolder(given, "demo", lock).reserve(), flush=True)
    except OSError as error:
        print("refused:", error, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("given", [None, "run"])
def test_runs_that_begin_at_once(tmp_path, given):
    command = [sys.executable, "-c", _RACE, *([given] if given else [])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), **pipes) for _ in range(4)]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        found = [process.stdout.readline().strip() for process in processes]
    finally:
        for process in processes:
            process.communicate("\n")
    if given is None:
        assert len({*found}) == 4 and all(re.fullmatch(r"runs/demo-20260101-000000(-[234])?", name) for name in found)
    else:
        assert sorted(found)[-1] == "run" and sum("run is in use: " in line for line in found) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--trainer.max_epochs=-2"], r"trainer\.max_epochs must be -1 or at least 0, got -2"),
        (["--trainer.max_epochs=-1"], r"trainer\.max_steps must be given with trainer\.max_epochs=-1, .*, got -1"),
        (["--trainer.limit_train_batches=0"], r"limit_train_batches must be above 0, got 0"),
        (["--trainer.max_time=00:00:00:00"], r"trainer\.max_time must be above 0, got 00:00:00:00"),
        (["--trainer.limit_train_batches=0.01"], r"`limit_train_batches` argument"),
        (["--trainer.log_every_n_steps=0"], r"trainer\.log_every_n_steps must be at least 1, got 0"),
        (["--trainer.num_nodes=2"], r"trainer\.num_nodes must be 1 unless torchrun or srun starts .*--run_dir, got 2"),
        (["--trainer.max_time=soon"], r"trainer.max_time must be DD:HH:MM:SS or .*, got soon"),
        (
            ["--trainer.enable_checkpointing=false", "--trainer.callbacks=ModelCheckpoint"],
            r"enable_checkpointing must be true beside ModelCheckpoint in trainer\.callbacks, got false",
        ),
        (["--trainer.plugins=AsyncCheckpointIO"], r"trainer\.plugins must save at once, .*, got AsyncCheckpointIO"),
        (["--trainer.logger=false"], r"trainer\.logger must be loggers that join the run's own"),
        (
            ["--trainer.default_root_dir=elsewhere"],
            r"default_root_dir must be the folder of the run, given as --run_dir, got ",
        ),
        (
            ["--trainer.default_root_dir=runs/run"],
            r"default_root_dir must be the folder of the run, given as --run_dir, got ",
        ),
        (["--trainer.accumulate_grad_batches=0"], r"trainer\.accumulate_grad_batches must be at least 1, got 0"),
        (["--trainer.fast_dev_run=-2"], r"trainer\.fast_dev_run must be true, false or a number of batches, got -2"),
        (["--trainer.barebones=true"], r"trainer\.barebones must be false, .*, got true"),
        (["--trainer.overfit_batches=1.5"], r"trainer\.overfit_batches must be a number of batches, .*, got 1\.5"),
        (["--trainer.limit_val_batches=3"], r"limit_val_batches must be null, .* knn\.bank and knn\.queries .*, got 3"),
        (["--trainer.val_check_interval=0.5"], r"val_check_interval must be null, .*, got 0\.5"),
        (["--trainer.check_val_every_n_epoch=2"], r"check_val_every_n_epoch must be 1, .*, got 2"),
        (["--trainer.num_sanity_val_steps=2"], r"num_sanity_val_steps must be 0, .*trainer\.fast_dev_run .*, got 2"),
        (["--trainer.inference_mode=false"], r"trainer\.inference_mode must be true, .*, got false"),
        (["--trainer.use_distributed_sampler=false"], r"trainer\.use_distributed_sampler must be true: .*, got false"),
        (["--trainer.model_registry=mine"], r"trainer\.model_registry must be null, .*, got mine"),
        (["--trainer.gradient_clip_algorithm=value"], r"must be null without trainer\.gradient_clip_val, got value"),
        (["--trainer.gradient_clip_val=-1"], r"gradient_clip_val must be finite and at least 0, .*, got -1"),
        (["--trainer.min_epochs=3"], r"trainer\.min_epochs must be at most trainer\.max_epochs, 1, got 3"),
        (["--trainer.profiler=fast"], r"trainer\.profiler must be null, simple, advanced, pytorch or .*, got fast"),
        (["--trainer.devices=0"], r"trainer\.devices must be auto, -1, their number or a list .*, got 0"),
        (["--trainer.reload_dataloaders_every_n_epochs=1"], r"reload_dataloaders_every_n_epochs must be 0: .*, got 1"),
    ],
)
def test_settings_that_leave_nothing_to_do_are_refused(settings, message, home, capsys):
    assert main(["pretrain", "--config", str(home / "tiny.yaml"), "--data", str(home / "images"), *settings]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--model.schedule.warmup_epochs=5"], r"warmup_epochs"),
        (["--model.optimizer.momentum=-1"], r"model.optimizer.momentum must be at least 0 and below 1, got -1.0"),
        (["--trainer.callbacks=failing.Divides"], r"error: ZeroDivisionError: "),
        (["--trainer.callbacks=failing.Imports"], r"error: No module named 'nowhere'"),
    ],
)
def test_what_a_training_fails_of_before_it_begins_is_one_line(settings, message, home, monkeypatch, capsys):
    monkeypatch.syspath_prepend(failing(home))
    start = ["pretrain", "--config", str(home / "tiny.yaml"), "--data", str(home / "images"), "--run_dir", "run"]
    assert main([*start, *settings]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not list(Path.cwd().iterdir())
    monkeypatch.setenv("AMCL_FAST_TRACEBACK", "1")
    assert main([*start, *settings]) == 2
    traced = capsys.readouterr().err
    assert "Traceback" in traced and traced.splitlines()[-1] == line
    assert not list(Path.cwd().iterdir())


def test_a_fault_that_no_setting_explains_shows_its_traceback_and_leaves_no_folder(home, monkeypatch):
    monkeypatch.syspath_prepend(failing(home))
    start = ["pretrain", "--config", str(home / "tiny.yaml"), "--data", str(home / "images"), "--run_dir", "run"]
    with pytest.raises(AttributeError, match="of a fault"):
        main([*start, "--trainer.callbacks=failing.Faulty"])
    assert not list(Path.cwd().iterdir())


def test_what_another_process_fails_of_leaves_no_folder(home, monkeypatch, capsys):
    monkeypatch.syspath_prepend(failing(home))
    start = ["pretrain", "--config", str(home / "tiny.yaml"), "--data", str(home / "images"), "--run_dir", "run"]
    assert main([*start, "--trainer.callbacks=failing.Elsewhere"]) == 1
    assert capsys.readouterr().err == "" and not list(Path.cwd().iterdir())


def failing(folder):
    """Makes a module of callbacks that fail before the first step, in a folder; returns that."""
    (folder / "failing.py").write_text(
        "import lightning as L\n"
        "from amcl_fast.distributed import ElsewhereError\n"
        "class Divides(L.Callback):\n"
        "    def on_fit_start(self, *_): 1 // 0\n"
        "class Imports(L.Callback):\n"
        "    def on_fit_start(self, *_): import nowhere\n"
        "class Faulty(L.Callback):\n"
        "    def on_fit_start(self, *_): raise AttributeError('of a fault')\n"
        "class Elsewhere(L.Callback):\n"
        "    def on_fit_start(self, *_): raise ElsewhereError('of another process')\n"
    )
    return folder


def test_settings_of_the_trainer_have_their_effect(home, monkeypatch, capsys):
    files = ["--config", str(home / "tiny.yaml")]

    def built(*settings):
        return PretrainCLI([*files, *settings], Path("run")).trainer

    def shows_a_bar(trainer):
        return trainer.progress_bar_callback is not None

    assert not shows_a_bar(built()) and shows_a_bar(built("--trainer.enable_progress_bar=true"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert shows_a_bar(built()) and not shows_a_bar(built("--trainer.enable_progress_bar=false"))
    # A whole number is one of batches, another one a share of them.
    limits = [built(f"--trainer.limit_train_batches={value}").limit_train_batches for value in ("1", "3", "0.5", "1.0")]
    assert list(map(repr, limits)) == ["1", "3", "0.5", "1.0"]
    for name, setting in (
        ("callbacks.model_summary", "enable_model_summary=true"), ("profilers.profiler", "profiler=simple")
    ):  # fmt: skip
        log = logging.getLogger(f"lightning.pytorch.{name}")
        built("--trainer.accelerator=cpu")
        silent = log.level
        built(f"--trainer.{setting}")
        assert (silent, log.level) == (logging.NOTSET, logging.INFO)
    built()
    no_validation = built("--trainer.limit_val_batches=0", "--trainer.check_val_every_n_epoch=null")
    assert (no_validation.val_check_interval, no_validation.check_val_every_n_epoch) == (1.0, 1)
    assert built("--trainer.default_root_dir=run").default_root_dir.endswith("run")
    logger = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: theirs}}"
    names = [type(logger).__name__ for logger in built(f"--trainer.logger={logger}").loggers]
    assert names == ["MetricsFile", "EventsFile", "CSVLogger"]
