"""DALI between two evaluations: a pipeline that has come to its end begins anew for the next one."""

import ctypes
import os
from dataclasses import replace
from typing import Any, Self

from amcl_fast.data.graph import Output, Source, evaluation_pipeline

# Of glibc: 0.1 ms, or 15 ms where there is much to give back.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


class Evaluation:
    """An evaluation's pipeline, over one source after the other."""

    def __init__(self, output: Output) -> None:
        """Make it; `begin` comes before `run`."""
        sources = self._sources = list[Source]()  # not itself, which would hold what holds it
        self._pipeline = evaluation_pipeline(lambda batch: sources[0](batch), output)

    def begin(self, source: Source) -> Self:
        """Go on with this source, where there was none or it has come to its end."""
        self._sources[:] = [source]
        return self

    def run(self) -> Any:
        """The next images, as DALI's tensors (n, size, size, 3).

        Raises:
            StopIteration: there are no more.
        """
        try:
            (images,) = self._pipeline.run()
        except StopIteration:
            self._sources.clear()
            self._pipeline.reset()
            raise
        return images


class Idle:
    """Keeps the pipeline of the last evaluation that came to its end, and gives it to the next one of that form.

    DALI 2.4 loses 3 kB with each pipeline that decodes, and each has threads of its own, for which the C library keeps
    apart what they have freed: the buffers of a decode, in up to eight places a core. One that is kept idles, and what
    it has freed goes back to the system. A copy is empty.
    """

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._kept: tuple[tuple[int, Output], Evaluation] | None = None

    def take(self, output: Output) -> Evaluation:
        """A pipeline for this output, which nobody else has."""
        kept, self._kept = self._kept, None
        return kept[1] if kept is not None and kept[0] == _key(output) else Evaluation(output)

    def keep(self, output: Output, evaluation: Evaluation) -> None:
        """Take one that has come to its end."""
        self._kept = _key(output), evaluation
        if _trim is not None:
            _trim(0)

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()


def _key(output: Output) -> tuple[int, Output]:
    # What reads is no part of the graph. A forked process has a copy of a pipeline without the threads.
    return os.getpid(), replace(output, reader=None)
