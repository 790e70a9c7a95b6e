"""Signals that ask a run to stop: save, then stop."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

import lightning as L
import torch
import torch.distributed as dist

from ..distributed import Pace
from ..methods.trainer import at_step_boundary
from .checkpoint import Checkpoint

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals after which a run saves and stops: Ctrl-C and Ctrl-\\, kill, a closed terminal, a batch system's warnings."""

_URGENT = {signal.SIGINT, signal.SIGTERM, signal.SIGQUIT}
"""Those whose second coming ends the process. A closing terminal sends SIGHUP more than once, and warnings repeat."""

_FORWARDED = 1.0
"""Seconds in which a launcher passes on what its processes were sent as well."""

_UNHEARD = 1.0
"""Seconds after which a signal that no handler has seen ends a process that has not begun to train."""

_NO_SIGNAL = b"\0"

_BATCHES = 16
"""Between two times that processes agree on signals, at the most."""

_waiting: set[int] = set()
"""Descriptors through which this process tells a thread of its own of signals."""


_before_copying = threading.local()


def _hold_signals() -> None:
    if _waiting:
        _before_copying.mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


def _let_signals() -> None:
    mask, _before_copying.mask = getattr(_before_copying, "mask", None), None
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _forget_to_tell() -> None:
    if _waiting:
        _waiting.clear()
        with suppress(ValueError):  # copied by another thread than the main one
            signal.set_wakeup_fd(-1)
            # What a handler raises here, where one that was held comes through, would be lost with its signal.
            for signum in HANDLED:
                if isinstance(getattr(signal.getsignal(signum), "__self__", None), StopSignals):
                    signal.signal(signum, signal.SIG_DFL)
    _let_signals()


# The signals of a copy of the process are not the original's, from its first moment on.
os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals, after_in_child=_forget_to_tell)


class Interrupted(SystemExit):
    """Training was stopped by a signal, after a save; the exit code is 128 + signal number, as in shells."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class StopSignals:
    """Takes the signals in `HANDLED` while the block lasts. What the process ignores, as under nohup, it still does.

    Args:
        of_command: whether the process is the command's own. Others, a notebook's, do not end by a Ctrl-C.

    Attributes:
        received: the first signal that came, 0 if none has.
        at_once: whether a signal raises `Interrupted` where it comes, since there is nothing to save.
    """

    def __init__(self, *, of_command: bool = True) -> None:
        self._of_command = of_command
        self.received = 0
        self.at_once = False
        self._heard = threading.Event()
        self._urgent_since: float | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()

    def take(self) -> None:
        """Set the handlers, again if something has set others since."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows it there alone
        for signum in HANDLED:
            handler = signal.getsignal(signum)
            if handler == self._note:
                continue
            if signum in self._previous:
                signal.signal(signum, self._note)
            elif handler not in (signal.SIG_IGN, None):
                self._previous[signum] = signal.signal(signum, self._note)

    def give_back(self) -> None:
        """Set the handlers that were there before."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    @contextmanager
    def heard_while_waiting(self, last_words: Callable[[int], None]) -> Iterator[None]:
        """Within the block, as long as `at_once` holds, a signal ends the process even if no handler can run.

        Python runs handlers between its own instructions, and a process that waits in a library for others that never
        come (to join a group, in a barrier) executes none. A thread sees the signal all the same.

        Args:
            last_words: called with the signal's number before the end, in that thread.
        """
        if threading.current_thread() is not threading.main_thread() or not self._of_command:
            yield
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        previous = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        _waiting.add(writing)

        def watch() -> None:
            # Its own end is a byte: copies of the process may hold the pipe open for longer.
            while (came := os.read(reading, 1)) != _NO_SIGNAL:
                if came[0] not in self._previous or self._heard.wait(_UNHEARD) or not self.at_once:
                    continue
                try:
                    last_words(came[0])
                finally:
                    os._exit(128 + came[0])

        watcher = threading.Thread(target=watch, name="signals", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)
            _waiting.discard(writing)
            os.set_blocking(writing, True)
            os.write(writing, _NO_SIGNAL)
            watcher.join()
            os.close(writing)
            os.close(reading)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._heard.set()
        if signum in _URGENT:
            now = time.monotonic()
            launched = "LOCAL_RANK" in os.environ  # by torchrun or Lightning
            if self._urgent_since is None:
                self._urgent_since = now
            elif signum == signal.SIGINT and not self._of_command:
                raise KeyboardInterrupt
            elif not launched or now - self._urgent_since > _FORWARDED:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
        first, self.received = not self.received, self.received or signum
        if self.at_once:
            raise Interrupted(signum)
        if first:
            name = signal.Signals(signum).name
            again = "once more" if signum in _URGENT else "SIGTERM"
            with suppress(OSError):  # a terminal that was closed; not print, which may be what was interrupted
                os.write(2, f"\n{name}: saving after this step; {again} to stop at once\n".encode())


class SaveOnSignal(L.Callback):
    """On a signal in `HANDLED`: finish the step, save the checkpoint, raise `Interrupted`.

    In the closing work of an epoch the save comes at its end, or when `poll` is called. A second SIGINT, SIGTERM or
    SIGQUIT has its usual effect at once. Before the first step there is nothing to save.

    Several processes stop after the same step, within a second or a batch of a signal to any of them, and the rest of
    that step.

    Args:
        checkpoint: what saves.
        signals: whose handlers are set already; None: they are set while training lasts.
    """

    def __init__(self, checkpoint: Checkpoint, signals: StopSignals | None = None) -> None:
        self.checkpoint = checkpoint
        self._own = signals is None
        self.signals = signals or StopSignals()
        self._saved_last = False
        self._agreed = 0  # a signal that several processes know of
        self._pace = Pace(_BATCHES)
        self._group: Any = None  # None: the default one

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_last = False
        if trainer.world_size > 1 and "gloo" not in dist.get_backend():
            # While a signal still ends who waits here for a process that a signal has ended.
            self._group = dist.new_group(backend="gloo")
        if self.signals.received:
            raise Interrupted(self.signals.received)
        self.signals.at_once = False
        # Lightning has set handlers of its own by now: for SIGTERM, which would stop without a save, and under SLURM
        # for the warning, which would save to another file and requeue the job.
        self.signals.take()
        self._agreed, self._pace = 0, Pace(_BATCHES)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Within an accumulated step too, which then ends it.
        if (received := self._received(trainer)) and at_step_boundary(trainer):
            self._stop(trainer, received, outputs)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Nor at the very end, or no resume would do the closing work, which saves.
        if not _ends(trainer) and (received := self._received(trainer, now=True)):
            self._stop(trainer, received, ends_epoch=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end()
        self._leave_group()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._leave_group()  # not before: another callback may poll at the end of the training

    def poll(self, trainer: L.Trainer) -> None:
        """Save and raise `Interrupted` if a signal has come; for long work between steps.

        Several processes call this at the same time, and agree. A run whose last epoch this is stops at the work's end,
        once it has saved: no resume would do the rest of the work.
        """
        received = self._received(trainer, now=True)
        if not received:
            return
        if not _ends(trainer):
            self.checkpoint.save(trainer)
            raise Interrupted(received)
        if not self._saved_last:
            self.checkpoint.save(trainer)
            self._saved_last = True

    def _end(self) -> None:
        if self._own:
            self.signals.give_back()
            self.signals = StopSignals()  # what has stopped this training does not stop the next one

    def _leave_group(self) -> None:
        if self._group is not None:
            with suppress(RuntimeError):  # what has ended the training is what to tell
                dist.destroy_process_group(self._group)
            self._group = None

    def _stop(self, trainer: L.Trainer, received: int, outputs: Any = None, *, ends_epoch: bool = False) -> None:
        self.checkpoint.save(trainer, outputs)
        if ends_epoch:
            self.checkpoint.keep_if_due(trainer)
        raise Interrupted(received)

    def _received(self, trainer: L.Trainer, *, now: bool = False) -> int:
        """The signal that has come, to any of the processes: schedulers signal all, but not between the same steps.

        Processes agree at their pace: one sum of two numbers on the CPU a second. That waits for no GPU, which may be
        some steps behind, and for no other host longer than the next step does; so it is not begun early and waited for
        later, by which it would be late by one step more.

        Args:
            trainer: calls this in all processes equally often.
            now: agree whatever the pace.
        """
        if trainer.world_size == 1:
            return self.signals.received
        if not self._agreed and (self._pace.done() or now):
            met = torch.tensor([self.signals.received, self._pace.longest], dtype=torch.float64)
            dist.all_reduce(met, dist.ReduceOp.MAX, group=self._group)
            self._agreed = int(met[0])
            self._pace.met(met[1].item())
        return self._agreed


def _ends(trainer: L.Trainer) -> bool:
    """Whether nothing is left to train after this epoch."""
    stops = trainer.should_stop and trainer.fit_loop._can_stop_early
    last = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs  # type: ignore[operator]
    return stops or last or trainer.global_step == trainer.max_steps
