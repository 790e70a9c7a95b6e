"""What a run logs, in files that go on after a resume and wait while a disk is full: metrics.csv, TensorBoard's."""

import csv
import io
import itertools
import json
import os
import socket
import stat
import struct
import time
import warnings
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ..runs.directory import RunDirectory
from ..runs.files import Unwritten, flush_to_disk, move_into_place, write_file
from ..runs.in_place import append_whole, make_within
from ..runs.reading import DamagedError
from ..runs.settings import flattened
from ..runs.table import number, read_table, step_of
from .throughput import Throughput

Row = dict[str, Any]

_numbers = itertools.count()
_VERSION = "brain.Event:2"


class _RunLogger(Logger):
    """A logger with one file in the run directory. Metrics that cannot be written are kept and tried again.

    Lightning logs the metrics of a step or an epoch after its hooks; `log_before_save` hands them over earlier. The
    second time is left out.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self._unwritten = Unwritten()
        self._last: tuple[int | None, dict[str, float]] | None = None

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        entry = step, {name: float(value) for name, value in metrics.items()}
        if repr(entry) != repr(self._last):  # NaN differs from itself
            self._last = entry
            self._add(*entry)
            self.write()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._unwritten.retry()

    def write(self) -> None:
        """Write what waits, if that is possible now."""
        self._unwritten.write(str(self._target()), self._write)

    def flush_to_disk(self) -> None:
        """Have the system write the file to the disk."""
        with suppress(OSError):  # a file that could not be made has been told of
            flush_to_disk(self._target())

    def _target(self) -> Path:
        raise NotImplementedError

    def _add(self, step: int | None, metrics: dict[str, float]) -> None:
        raise NotImplementedError

    def _write(self) -> None:
        """Write what waits, all of it or, with an OSError, nothing."""
        raise NotImplementedError


class MetricsFile(_RunLogger):
    """Keeps one row per logged step in `metrics.csv`; columns are `step` and every metric seen so far.

    What is logged of a step is in the file at once: more of the step that was logged last is written over its row.
    Lightning's CSVLogger deletes what an earlier run wrote, and holds rows back.

    Of a file that is damaged when a run goes on what comes before that is kept, and all of it under another name. One
    that somebody deletes or changes in mid-run goes on with what is left of it; either is a warning.

    Args:
        folder: run directory.
        resume_step: keep the rows before this step, as those after it are written again; None: no rows yet. The file
            stays as it is until the first row is logged or `write` is called.

    Raises:
        FileExistsError: `metrics.csv` is there although nothing is resumed.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        super().__init__(folder)
        self.path = RunDirectory(self.folder).metrics
        self._resume_step = resume_step
        self._columns: list[str] | None = None  # of the file; None: not known yet
        self._waiting: list[Row] = []
        self._row: Row = {}  # the last one of the file
        self._length, self._end = 0, 0  # its bytes, and those of the whole file
        self._refuse_an_old_file()

    @rank_zero_only
    def _refuse_an_old_file(self) -> None:
        if self._resume_step is None and self.path.exists():
            raise FileExistsError(
                f"{self.path} exists, and two runs never share a folder; give another --run_dir, or go on with that "
                f"run: --resume {self.path.parent}"
            )

    def _target(self) -> Path:
        return self.path

    def _add(self, step: int | None, metrics: dict[str, float]) -> None:
        self._waiting.append({"step": step, **metrics})

    def _write(self) -> None:
        names = dict.fromkeys(name for row in self._waiting for name in row)
        if self._columns is not None and names.keys() <= set(self._columns) and self._is_as_it_was():
            rows = _merged([self._row, *self._waiting])
            *before, last = (_csv(self._columns, [row]) for row in rows)
            content = b"".join([*before, last])
            append_whole(self.path, content, instead_of=self._length)
            self._end += len(content) - self._length
        else:
            lost = ""
            if self._columns is not None and not self._is_as_it_was():
                lost = "is not as it was written" if os.path.lexists(self.path) else "was deleted"
            columns, rows = self._read()
            columns += [name for name in names if name not in columns]
            rows = _merged([*rows, *self._waiting])
            content = _csv(columns, [dict(zip(columns, columns, strict=True)), *rows])
            write_file(self.path, content)
            if lost:
                warnings.warn(f"{self.path} {lost}; training goes on, and so does the file", stacklevel=2)
            self._columns, self._resume_step, self._end = columns, None, len(content)
            last = _csv(columns, rows[-1:])
        self._row, self._length = rows[-1] if rows else {}, len(last)
        self._waiting = []

    def _is_as_it_was(self) -> bool:
        """Whether nobody but this logger has written the file."""
        with suppress(OSError):
            status = self.path.lstat()
            return stat.S_ISREG(status.st_mode) and status.st_size == self._end
        return False

    def _read(self) -> tuple[list[str], list[Row]]:
        """Columns and rows of the file so far, without those that are written again after a resume."""
        columns, rows = ["step"], list[Row]()
        if not os.path.lexists(self.path):
            return columns, rows
        try:
            with read_table(self.path) as table:
                columns = table.columns
                for row in table:
                    for value in filter(None, row):
                        number(value, self.path)
                    found: Row = dict(zip(columns, row, strict=True))
                    rows += [found] if self._is_kept(found) else []
        except DamagedError as error:
            kept = self.path.with_name(f"{self.path.stem}-damaged{self.path.suffix}")
            move_into_place(self.path, kept)
            warnings.warn(f"{error}; it is kept as {kept}, and what comes before that goes on", stacklevel=2)
        return columns, rows

    def _is_kept(self, row: Row) -> bool:
        if self._resume_step is None:
            return True
        # Of a row without a step, of a callback of one's own, nobody knows whether it is written again.
        return row["step"] != "" and step_of(row["step"], self.path) < self._resume_step


class EventsFile(_RunLogger):
    """TensorBoard's events of a run, one file a process in `tensorboard/`: metrics, settings, pictures.

    Written without the thread of TensorBoard's own writer, which dies of a full disk and takes the run along.

    Args:
        folder: run directory.
        resume_step: TensorBoard hides what earlier files say of this step and later ones; None: nothing.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        super().__init__(folder)
        self._path: Path | None = None
        self._waiting = bytearray()
        self._written = False
        self._append(file_version=_VERSION)
        if resume_step is not None:
            self._append(step=resume_step, session_log=SessionLog(status=SessionLog.START))

    def _target(self) -> Path:
        if self._path is None:
            now, host = int(time.time()), socket.gethostname()
            # TensorBoard reads files in the order of their names.
            name = f"events.out.tfevents.{now:010d}.{host}.{os.getpid()}.{next(_numbers):06d}"
            self._path = RunDirectory(self.folder).events / name
        return self._path

    def _add(self, step: int | None, metrics: dict[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._append(step=step, summary=Summary(value=values))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings as TensorBoard compares them between runs, by dotted names, and as text.

        Args:
            params: nested; what is no plain value, of a user's own module, as text.
            args, kwargs: of Lightning's interface, without a use here.
        """
        from torch.utils.tensorboard.summary import hparams, text

        settings = params if isinstance(params, dict) else vars(params)
        flat = {
            name: value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
            for name, value in flattened(settings)
            if value is not None
        }
        experiment, session, _ = hparams(flat, dict.fromkeys(("knn", "probe/accuracy", "loss"), 0.0))
        lines = "\n".join(f"    {name}: {value}" for name, value in flat.items())
        for summary in (experiment, session, text("settings", lines)):
            self._append(step=0, summary=summary)
        self.write()

    @rank_zero_only
    def log_pictures(self, pictures: dict[str, bytes], step: int) -> None:
        """PNG files by name."""
        values = []
        for name, png in pictures.items():
            width, height = struct.unpack(">II", png[16:24])
            picture = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
            values.append(Summary.Value(tag=name, image=picture))
        self._append(step=step, summary=Summary(value=values))
        self.write()

    def _append(self, **content: Any) -> None:
        self._waiting += _record(**content)

    def _write(self) -> None:
        path = self._target()
        make_within(self.folder, path.parent)
        lost = self._written and not path.exists()
        append_whole(path, (_record(file_version=_VERSION) if lost else b"") + bytes(self._waiting))
        if lost:
            warnings.warn(f"{path} was deleted; training goes on, and so does the file", stacklevel=2)
        self._written = True
        self._waiting.clear()


def _record(**content: Any) -> bytes:
    record = io.BytesIO()
    RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
    return record.getvalue()


def log_before_save(trainer: L.Trainer, outputs: Any = None) -> None:
    """Log the metrics of this step, or of this epoch in its closing hooks, before a checkpoint of it is written.

    Lightning logs them after the hooks in which checkpoints are saved: a process that ends in between would have
    saved a step whose row no resume writes again. Every process must call it.

    Args:
        trainer: in a hook of the end of a step or of an epoch; anywhere else nothing happens.
        outputs: as `on_train_batch_end` got them; without them nothing is logged of a step.
    """
    if not trainer.loggers or trainer._results is None:
        return
    connector, steps = trainer._logger_connector, trainer.fit_loop.epoch_loop
    if connector._first_loop_iter is None:
        steps._batches_that_stepped -= 1  # as Lightning does: an epoch's metrics belong to its last step
        try:
            connector.log_metrics(connector.metrics["log"])
        finally:
            steps._batches_that_stepped += 1
    elif outputs is not None:
        # The module's own hook comes after those of callbacks.
        trainer.lightning_module.log_step()  # type: ignore[operator]
        connector.update_train_step_metrics()
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            if isinstance(logger, _RunLogger):
                logger.flush_to_disk()


class LastStep(L.Callback):
    """Logs the last step of a training, where it is none that is logged anyway, with the number of all steps.

    A run of fewer steps than `log_every_n_steps` has its metrics, too. As what is measured because training ends, the
    row is of the step after the last, and leaves no trace where the training goes on.

    It must come before `Report`, which draws what is logged.
    """

    def __init__(self) -> None:
        self._first = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        if step == self._first or step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            return
        found = (callback.recent for callback in trainer.callbacks if isinstance(callback, Throughput))  # type: ignore[attr-defined]
        metrics = {**pl_module.step_metrics(), **next(found, {})}  # type: ignore[operator]
        for logger in trainer.loggers:
            logger.log_metrics({name: float(value) for name, value in metrics.items()}, step=step)


def _merged(rows: Sequence[Row]) -> list[Row]:
    """Rows that follow each other and are of the same step as one, with what was logged of it last."""
    merged: list[Row] = []
    for row in rows:
        if not row:
            continue
        if merged and row["step"] not in (None, "") and str(row["step"]) == str(merged[-1]["step"]):
            merged[-1] = {**merged[-1], **{name: value for name, value in row.items() if value != ""}}
        else:
            merged.append(row)
    return merged


def _csv(columns: list[str], rows: Sequence[Row]) -> bytes:
    file = io.StringIO(newline="")
    csv.DictWriter(file, columns, restval="", extrasaction="ignore").writerows(rows)
    return file.getvalue().encode()
