"""Output that nobody can be given: readers that leave, closed descriptors, full disks; Ctrl-C at every stage."""

import errno
import gc
import io
import os
import signal
import subprocess
import sys
import time

import pytest

from amcl_fast.cli import main
from amcl_fast.terminal import lasting_output
from tests.helpers.command_line import NT_XENT, environment, image_folder, saved_step

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

_SETTINGS = NT_XENT + "trainer: {max_epochs: 2, accelerator: cpu, log_every_n_steps: 1}"
_COMMAND = f"{sys.executable} -m amcl_fast.cli"
_PRETRAIN = f"{_COMMAND} pretrain --config settings.yaml --data images --run_dir run"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "settings.yaml").write_text(_SETTINGS)
    image_folder(tmp_path / "images", 8, 2)
    return tmp_path


def shell(folder, command):
    """What bash prints of a command, which sees no terminal."""
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment(folder), capture_output=True, text=True)
    return done.stdout + done.stderr


def test_a_run_whose_reader_leaves_goes_on_to_its_end(folder):
    """Without stdin and stderr, too."""
    command = f"{_PRETRAIN} --trainer.enable_progress_bar true --guard.window 1 <&- 2>&-"
    assert shell(folder, f"{command} | head -n 1; echo ${{PIPESTATUS[0]}}") == "run directory: run\n0\n"
    assert saved_step(folder / "run") == 4 and (folder / "run" / "report" / "index.html").is_file()


def test_a_run_with_a_full_disk_behind_its_screen(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, open("/dev/full", "w"))  # noqa: SIM115
    assert main([*_PRETRAIN.split()[3:], "--trainer.enable_progress_bar=true"]) == 0
    assert saved_step(folder / "run") == 4
    for stream in (sys.stdout, sys.stderr):
        stream.close()  # there is nothing left that could fail at the interpreter's end


def test_no_file_takes_the_place_of_a_closed_screen(folder):
    """What C libraries say on stderr would be in the checkpoint."""
    code = (
        "from amcl_fast.terminal import lasting_output\n"
        "with lasting_output(), open('file', 'w') as file:\n"
        "    print('lost')\n"
        "    file.write(str(file.fileno()))\n"
    )
    assert shell(folder, f'{sys.executable} -c "{code}" <&- >&- 2>&-') == ""
    assert int((folder / "file").read_text()) > 2


def test_a_run_and_its_reader_are_interrupted_at_once(folder):
    command = f"({_PRETRAIN} --trainer.max_epochs 500 2>&1; echo $? > code) | tee log"
    # As bash on a terminal: SIGINT goes to the group, and tee, without a handler, is dead before the run says anything.
    process = subprocess.Popen(
        ["bash", "-c", f"trap : INT; {command}"], cwd=folder, env=environment(folder), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait(lambda: "epoch 1/500" in read(folder / "log"))
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert read(folder / "code") == "130\n" and errors == ""
    assert saved_step(folder / "run") > 0


def read(path):
    return path.read_text() if path.exists() else ""


def wait(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("arguments", ["--help", "pretrain --help"])
def test_short_commands_end_as_their_output_does(arguments, folder):
    """Quietly if the reader has seen enough or there is none; with an error if the disk has no room for it."""
    command = f"{_COMMAND} {arguments}"
    assert shell(folder, f"{command} | head -c 0; echo ${{PIPESTATUS[0]}}") == "0\n"
    assert shell(folder, f"{command} >&-; echo $?") == "0\n"
    assert shell(folder, f"({command} >&- 2>&-); echo $?") == "0\n"
    told = "amcl-fast: error: the output cannot be written: No space left on device\n"
    assert shell(folder, f"{command} >/dev/full; echo $?") == f"1\n{told}"
    assert shell(folder, f"({command} >/dev/full 2>&1); echo $?") == "1\n"


def test_errors_keep_their_exit_code(folder):
    assert shell(folder, f"({_COMMAND} nothing >/dev/full 2>&1); echo $?") == "2\n"
    assert shell(folder, f"({_COMMAND} report nowhere >&- 2>&-); echo $?") == "2\n"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("pretrain --recipe demo", "pretrain: stopped before the first step: nothing was saved; begin again with the"),
        ("pretrain --resume run", "pretrain: stopped before the first step: the run is as it was; go on with the same"),
        ("evaluate run", "evaluate: stopped before its end: no result was written"),
        ("export run", "export: stopped before its end: no file was written"),
        ("bench", "bench: stopped before its end: of the results, the sections that are said to be written are kept"),
        ("report run", "report: stopped before its end: draw it again"),
    ],
)
def test_an_interrupt_during_the_imports(command, told, tmp_path):
    """A line and 130, before torch or numpy is there; an import that swallows the exception cannot keep the process."""
    code = (
        "import os, signal, sys, importlib.abc\n"
        "from amcl_fast.cli import main\n"
        "class Interrupt(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name in ('torch', 'numpy'):\n"
        "            sys.meta_path.remove(self)\n"
        "            try:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "            except KeyboardInterrupt:\n"
        "                pass\n"
        "assert 'torch' not in sys.modules\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, *command.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.startswith(f"amcl-fast {told}") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_of_a_process_that_has_done_its_work_tells_nothing(tmp_path):
    code = (
        "import atexit, gc, os, signal, sys\n"
        "import amcl_fast.cli\n"
        "sys.argv = ['amcl-fast', 'bench', '--list']\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0, flush=True))\n"
        "sys.exit(amcl_fast.cli.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    assert done.stdout.endswith("True\n")  # what it has imported is never looked through for garbage


def interrupting(monkeypatch, target):
    """Ctrl-C where a function is called."""

    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("not stopped where the signal came")

    monkeypatch.setattr(target, interrupt)


@pytest.mark.parametrize(
    "where",
    [
        "data.ContrastiveDataModule.setup",
        "pretraining.lightning_cli.PretrainCLI.open_run",
        "pretraining.lightning_cli.PretrainCLI._plain",
    ],
)
def test_an_interrupt_before_the_first_step_leaves_nothing(where, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    if "_plain" in where:
        assert main(_PRETRAIN.split()[3:]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patched:
        interrupting(patched, f"amcl_fast.{where}")
        start = "pretrain --resume run" if "_plain" in where else " ".join(_PRETRAIN.split()[3:])
        assert main(start.split()) == 130
    told = "the run is as it was; go on" if "_plain" in where else "nothing was saved; begin again"
    assert capsys.readouterr().out == f"stopped before the first step: {told} with the same command\n"
    if "_plain" not in where:
        assert sorted(folder.iterdir()) == before


def test_an_interrupt_of_the_first_measuring_says_how_to_go_on(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with monkeypatch.context() as patched:
        interrupting(patched, "amcl_fast.callbacks.OnlineKNN.on_train_start")
        assert main(_PRETRAIN.split()[3:]) == 130
    go_on = "stopped before anything was saved; go on with: amcl-fast pretrain --resume run\n"
    assert capsys.readouterr().out.endswith(go_on)
    assert main(["pretrain", "--resume", "run"]) == 0 and saved_step(folder / "run") == 4


def test_an_interrupt_of_a_scan_in_a_group_says_how_to_go_on(folder, monkeypatch, capsys):
    """Processes that a launcher has started look for images when they have met: the run's folder is there by then."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("amcl_fast.pretraining.command.by_others", lambda: True)
    with monkeypatch.context() as patched:
        interrupting(patched, "amcl_fast.data.module.find_images")
        assert main(_PRETRAIN.split()[3:]) == 130
    go_on = "stopped before anything was saved; go on with: amcl-fast pretrain --resume run\n"
    assert capsys.readouterr().out == f"run directory: run\n{go_on}"
    assert main(["pretrain", "--resume", "run"]) == 0 and saved_step(folder / "run") == 4
    capsys.readouterr()
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        interrupting(patched, "amcl_fast.data.module.find_images")
        assert main(["pretrain", "--resume", "run", "--trainer.max_epochs", "9"]) == 130
    told = "the run is as it was; go on with the same command"
    assert capsys.readouterr().out == f"run directory: run\nstopped before the first step: {told}\n"
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("command", "where"),
    [("report run", "report.write_report"), ("bench --list", "benchmarks.command.list_cases")],
)
def test_an_interrupt_of_a_command_that_has_begun(command, where, monkeypatch, capsys):
    interrupting(monkeypatch, f"amcl_fast.{where}")
    assert main(command.split()) == 130
    assert capsys.readouterr().err.startswith(f"amcl-fast {command.split()[0]}: stopped before its end: ")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("where", ["_train", "print_results"])
def test_an_interrupt_after_the_training_does_not_say_that_nothing_was_done(where, folder, monkeypatch, capsys):
    """When the handlers of the training are gone."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(folder)
    monkeypatch.setattr(f"amcl_fast.pretraining.command.{where}", interrupt)
    assert main(_PRETRAIN.split()[3:]) == 130
    assert capsys.readouterr().err == "amcl-fast pretrain: stopped; go on with: amcl-fast pretrain --resume run\n"


class Full(io.RawIOBase):
    """A disk that is full for a while."""

    def __init__(self):
        self.room, self.content = True, b""

    def writable(self):
        return True

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.content += bytes(data)
        return len(data)


def test_a_disk_that_has_room_again_gets_what_comes_then(monkeypatch):
    disk = Full()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(disk, 8), line_buffering=True))
    with lasting_output():
        print("one")
        disk.room = False
        print("lost " * 9)
        print("lost")
        disk.room = True
        print("two")
    assert disk.content.startswith(b"one\n") and disk.content.endswith(b"two\n")


def test_what_cannot_be_encoded_does_not_end_a_run_either(monkeypatch):
    class Lost(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(Lost(), encoding="ascii", write_through=True))
    with lasting_output():
        print("τ")
        assert not sys.stdout.isatty()


@pytest.mark.parametrize("command", ["report nowhere", "bench --list"])
def test_nothing_is_collected_while_a_command_is_imported(command, monkeypatch, capsys):
    """And everything is once it begins, and after it."""
    seen = []
    monkeypatch.setattr("amcl_fast.cli.require", lambda *_: seen.append(("imports", gc.isenabled())))
    for target in ("report.write_report", "benchmarks.command.list_cases"):
        monkeypatch.setattr(f"amcl_fast.{target}", lambda *_: seen.append(("runs", gc.isenabled())))
    assert main(command.split()) == 0
    imports = [("imports", False)] if command.startswith("report") else []
    assert seen == [*imports, ("runs", True)] and gc.isenabled()
    gc.disable()
    try:
        assert main(command.split()) == 0 and not gc.isenabled()  # as the caller has it
    finally:
        gc.enable()
