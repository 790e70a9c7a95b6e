"""Output that cannot end a run: a terminal that was closed, a pipe that nobody reads, a full disk; short warnings."""

import errno
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN}
"""Of a disk that may have room later, and of a pipe that is full and does not wait."""


class _Lasting:
    """A text stream that falls silent where the wrapped one fails.

    Attributes:
        error: the first failure.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lost = False
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        if not self._lost:
            try:
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:
                    coding = self._stream.encoding
                    self._stream.write(text.encode(coding, "backslashreplace").decode(coding))
            except (OSError, ValueError) as error:  # ValueError: closed
                self._note(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self._lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._note(error)

    def isatty(self) -> bool:
        try:
            return not self._lost and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def end(self) -> None:
        """Write what is left, or give it up: it would fail again when the interpreter ends."""
        self.flush()
        if self.error is not None and not self._lost:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def _note(self, error: Exception) -> None:
        self.error = self.error or error
        if not isinstance(error, OSError) or error.errno not in _PASSING:
            self._give_up()

    def _give_up(self) -> None:
        self._lost = True
        # What is still in the stream's buffer would fail again when the interpreter ends.
        with suppress(OSError, ValueError, io.UnsupportedOperation):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            finally:
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within the block, writing to stdout and stderr never fails, even if they were closed before it."""
    streams = sys.stdout, sys.stderr
    if all(isinstance(stream, _Lasting) for stream in streams):
        yield
        return
    _fill_descriptors()
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout, sys.stderr = (cast(TextIO, _Lasting(stream or nowhere)) for stream in streams)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, _Lasting):
                    stream.end()
            sys.stdout, sys.stderr = streams


def output_error() -> OSError | None:
    """Why something that was written to stdout in a `lasting_output` is lost; None: it is not, or its reader left."""
    sys.stdout.flush()
    error = sys.stdout.error if isinstance(sys.stdout, _Lasting) else None
    return error if isinstance(error, OSError) and error.errno != errno.EPIPE else None


def _fill_descriptors() -> None:
    """Open what of stdin, stdout and stderr is closed: the next file, a checkpoint, would become the screen."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
            os.set_inheritable(descriptor, True)


@contextmanager
def short_warnings(command: str) -> Iterator[None]:
    """Within the block a warning is one line of `amcl-fast COMMAND`, without the code that it came from."""
    usual = warnings.formatwarning

    def short(message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
        if category is UserWarning:
            return f"amcl-fast {command}: warning: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = short
    try:
        yield
    finally:
        warnings.formatwarning = usual
