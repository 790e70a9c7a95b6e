import os
import signal
import sys
import time

import lightning as L
import pytest
import torch

from amcl_fast.callbacks import Checkpoint, Interrupted, OnlineKNN, SaveOnSignal, StopSignals
from amcl_fast.callbacks.signals import HANDLED
from tests.helpers import forks
from tests.helpers.command_line import environment, saved_step
from tests.helpers.fake_data import FakeDataModule
from tests.helpers.running import fit

pytestmark = pytest.mark.slow


class Kill(L.Callback):
    """Sends this process a signal within a step."""

    def __init__(self, signum, step):
        self.signum, self.step = signum, step

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)


@pytest.fixture(autouse=True)
def unchanged():
    """Of a process that ignores none of them, as one in a script's background would, and its handlers stay."""
    before = {signum: signal.getsignal(signum) for signum in HANDLED}
    handlers = {s: signal.default_int_handler if s == signal.SIGINT else signal.SIG_DFL for s in HANDLED}
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    yield
    found = {signum: signal.getsignal(signum) for signum in HANDLED}
    for signum, handler in before.items():
        signal.signal(signum, handler)
    assert found == handlers


@pytest.mark.parametrize(
    ("signum", "step"),
    # Step 4 is the last of its epoch: the epoch's closing work comes first.
    [*((signum, 2) for signum in HANDLED), (signal.SIGINT, 4), (signal.SIGHUP, 4)],
)
def test_saves_after_the_step_and_exits_as_shells_expect(tmp_path, signum, step, capfd):
    checkpoint = Checkpoint(every_n_epochs=9)
    with pytest.raises(Interrupted) as stopped:
        fit(tmp_path, checkpoint=checkpoint, extra=[SaveOnSignal(checkpoint), Kill(signum, step - 1)])
    assert stopped.value.code == 128 + signum
    assert saved_step(tmp_path) == step
    assert signal.Signals(signum).name in capfd.readouterr().err


def test_a_batch_systems_warning_saves_where_the_run_saves(tmp_path, monkeypatch):
    """Under SLURM Lightning would save to a file of its own, requeue the job and train on."""
    for name, value in {"JOB_ID": 1, "JOB_NAME": "job", "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    checkpoint = Checkpoint(every_n_epochs=9)
    with pytest.raises(Interrupted) as stopped:
        fit(tmp_path, checkpoint=checkpoint, extra=[SaveOnSignal(checkpoint), Kill(signal.SIGUSR1, 1)])
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert [path.name for path in tmp_path.rglob("*.ckpt")] == ["last.ckpt"]


def test_handlers_are_given_back_after_training(tmp_path):
    checkpoint = Checkpoint()
    fit(tmp_path, checkpoint=checkpoint, extra=[SaveOnSignal(checkpoint)], max_epochs=1)


def ends(send, *, ignored=(), environment=()):
    """How a process ends that takes signals and is sent some: its signal, or 0 if it goes on."""
    child = os.fork()
    if not child:
        try:
            for signum in HANDLED:
                signal.signal(signum, signal.SIG_IGN if signum in ignored else signal.SIG_DFL)
            os.environ.update(environment)
            with StopSignals() as signals:
                send()
                os._exit(0 if signals.received else 99)
        finally:
            os._exit(98)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return -code if code < 0 else code


def send(*signums, pause=0.0):
    def now():
        for signum in signums:
            time.sleep(pause)
            os.kill(os.getpid(), signum)

    return now


INT, TERM, HUP, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1


def test_the_second_request_ends_the_process():
    for signum in (INT, TERM, signal.SIGQUIT):
        assert ends(send(signum)) == 0
        assert ends(send(signum, signum)) == signum
    assert ends(send(INT, TERM)) == TERM


def test_warnings_and_a_closed_terminal_may_repeat():
    assert ends(send(HUP, HUP, USR1, USR1, TERM)) == 0
    assert ends(send(USR1, TERM, TERM)) == TERM


def test_what_a_launcher_passes_on_is_no_second_request():
    assert ends(send(TERM, TERM), environment={"LOCAL_RANK": "0"}) == 0
    assert ends(send(TERM, TERM, pause=1.05), environment={"LOCAL_RANK": "0"}) == TERM


def test_what_is_ignored_stays_ignored():
    assert ends(send(HUP), ignored={HUP}) == 99
    assert ends(send(HUP, TERM), ignored={HUP}) == 0


@pytest.mark.parametrize("signum", [TERM, USR1])
def test_before_the_first_step_there_is_nothing_to_wait_for(tmp_path, signum):
    class Early(L.Callback):
        def on_fit_start(self, *_):
            os.kill(os.getpid(), signum)
            pytest.fail("not stopped where the signal came")

    checkpoint = Checkpoint()
    with StopSignals() as signals:
        signals.at_once = True
        with pytest.raises(Interrupted) as stopped:
            fit(tmp_path, checkpoint=checkpoint, extra=[Early(), SaveOnSignal(checkpoint, signals)])
    assert stopped.value.code == 128 + signum and not (tmp_path / "checkpoints").exists()


class SignalInKNN(FakeDataModule):
    """Sends a signal while the encoder of an epoch is measured: both baselines, in one pass, come before."""

    def __init__(self, epoch):
        super().__init__()
        self.left = 1 + epoch

    def features_loaders(self, *args, **kwargs):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), TERM)
        return super().features_loaders(*args, **kwargs)


def train(folder, knn, data=None, **settings):
    checkpoint = Checkpoint(every_n_epochs=9)
    saver = SaveOnSignal(checkpoint)
    knn.between_batches = saver.poll
    return fit(folder, data=data, checkpoint=checkpoint, extra=[knn, saver], max_epochs=3, **settings)


def test_a_signal_during_knn_saves_at_once_and_the_measuring_is_made_up_for(tmp_path):
    whole, stopped, resumed = OnlineKNN(), OnlineKNN(), OnlineKNN()
    expected = train(tmp_path / "whole", whole).lightning_module.state_dict()
    with pytest.raises(Interrupted):
        train(tmp_path, stopped, SignalInKNN(epoch=2))
    assert saved_step(tmp_path) == 8 and len(stopped.history) == 1
    trainer = train(tmp_path, resumed, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert resumed.history == whole.history
    for name, value in trainer.lightning_module.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_signal_during_the_last_knn_lets_it_finish(tmp_path):
    knn = OnlineKNN()
    train(tmp_path, knn, SignalInKNN(epoch=3))
    assert saved_step(tmp_path) == 12 and [epoch for epoch, _ in knn.history] == [1, 2, 3]


def test_a_signal_during_the_closing_knn_saves_before_it(tmp_path, monkeypatch):
    knn, save, closed = OnlineKNN(every_n_epochs=2), Checkpoint.save, []
    monkeypatch.setattr(Checkpoint, "save", lambda *of: (closed.append(knn.closed), save(*of))[1])
    train(tmp_path, knn, SignalInKNN(epoch=2))
    assert closed == [False, True] and saved_step(tmp_path) == 12


def test_a_run_that_is_asked_to_stop_at_its_end_ends(tmp_path):
    """No resume would do the closing work of a run without a step left."""
    checkpoint = Checkpoint()
    trainer = fit(tmp_path, checkpoint=checkpoint, extra=[SaveOnSignal(checkpoint), Kill(signal.SIGTERM, 7)])
    assert trainer.global_step == saved_step(tmp_path) == 8


def test_a_run_that_stops_at_an_epochs_end_keeps_its_checkpoint(tmp_path):
    checkpoint = Checkpoint(keep_every_n_epochs=1)
    with pytest.raises(Interrupted):
        fit(tmp_path, checkpoint=checkpoint, extra=[SaveOnSignal(checkpoint), Kill(signal.SIGTERM, 3)])
    kept = torch.load(tmp_path / "checkpoints" / "epoch-0001.ckpt", weights_only=True)
    assert kept["global_step"] == saved_step(tmp_path) == 4


_WAITING = """
import multiprocessing, os, signal, sys, time
from amcl_fast.callbacks import StopSignals

said = []
context = multiprocessing.get_context("fork")
child = context.Process(target=time.sleep, args=(60,))
with StopSignals() as signals:
    signals.at_once = True
    with signals.heard_while_waiting(said.append):
        child.start()
        os.kill(child.pid, signal.SIGTERM)
        time.sleep(2)
        if sys.argv[1] == "lives":
            other = context.Process(target=time.sleep, args=(60,))
            other.start()
            began = time.monotonic()
    if sys.argv[1] == "lives":
        assert time.monotonic() - began < 30
        other.kill()
child.join(30)
print("went on", said, child.exitcode, flush=True)
child.kill()
os._exit(0)
"""


@pytest.mark.parametrize("other", ["dies", "lives"])
def test_a_copy_of_the_process_neither_ends_it_by_its_signals_nor_holds_it_up(other, tmp_path):
    done = forks.run([sys.executable, "-c", _WAITING, other], env=environment(tmp_path), timeout=100)
    assert (done.returncode, done.stdout) == (0, f"went on [] {-signal.SIGTERM}\n"), done.stderr
