"""A run of a loader through everything that can become of an image file (`damaged_files`).

    python -m tests.helpers.damage walk LOADER FOLDER      all kinds and places, three at once, in one process
    python -m tests.helpers.damage each LOADER FOLDER      every kind and place in a process of its own

print a JSON line for each: kind, place, outcome. LOADER is training, evaluation or probe. A kind ends the process if
its outcome is missing (walk) or names a signal (each). `python -m tests.helpers.damage decoder` tells whether the
installed DALI still needs the guard (docs/damage.md).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.damaged_files import JPEG, PNG, kinds

LOADERS = ("training", "evaluation", "probe")
# Decoders parse small batches in one thread, which hides what several of them do.
BATCH, THREADS = 64, 4
PLACES = {"first": 0, "middle": 0.5, "last": 1}  # shares of a batch
# Between the damage and the batch that meets it: nothing has read so far ahead.
AHEAD = 5
HANGS = 60


def cases() -> list[tuple[str, str]]:
    """(kind, place) of all."""
    return [(kind, place) for kind in kinds() for place in PLACES]


class Stage:
    """A loader of images whose label is their number, and what is known of the batches to come."""

    def __init__(self, loader: str, folder: Path, batches: int, batch: int = BATCH) -> None:
        from amcl_fast.data.loader.order import Order
        from amcl_fast.data.scan.images import Images

        self.name, self.batch, count = loader, batch, batches * batch
        folder.mkdir(parents=True)
        good = folder / "good.jpg", folder / "good.png"
        for path, content in zip(good, (JPEG, PNG), strict=True):
            path.write_bytes(content)
        self.files = [folder / f"{number:05}" for number in range(count)]
        self.bad: dict[str, str] = {}
        labels = list(range(count))
        # What comes: seen to be right where a damaged file is met.
        self._order = Order(count, batch)
        for number, path in enumerate(self.files):
            os.link(good[number % 2], path)
        self._batches = iter(self._make(Images([str(path) for path in self.files], labels, [])))
        self._number = -1
        self._last = -1

    def _make(self, images: object) -> object:
        from amcl_fast.data import Augmentation, ContrastiveLoader, EvaluationLoader
        from amcl_fast.data.graph import Output
        from amcl_fast.data.loader.contrastive import SingleViewLoader

        output = Output(size=8, batch_size=self.batch, num_threads=THREADS)
        if self.name == "evaluation":
            return EvaluationLoader(images, output, on_bad_file=self.bad.__setitem__)
        views = [Augmentation.from_letters("ae")] * (2 if self.name == "training" else 1)
        loader = ContrastiveLoader(images, views, output, on_bad_file=self.bad.__setitem__)
        return loader if self.name == "training" else SingleViewLoader(loader)

    def next(self) -> list[int]:
        """The numbers of the images of the next batch; the images are looked at."""
        images, labels = next(self._batches)
        views = images if isinstance(images, tuple) else (images,)
        assert all(view.isfinite().all() and view.shape[0] == len(labels) for view in views)
        self._number += 1
        self._last = int(labels[-1])
        return labels.tolist()

    def victim(self, share: float) -> int:
        """The number of the image that lies so far within a batch that nobody has begun to read."""
        place = round(share * (self.batch - 1))
        if self.name == "evaluation":
            return self._last + 1 + self.batch * (AHEAD - 1) + place
        return int(self._order.places(self._number + AHEAD)[place])

    def meet(self, cases: dict[str, str]) -> dict[str, str]:
        """Damage the files at places of a batch, go on until it has been met and say what happened to each.

        Args:
            cases: place to the kind of damage.
        """
        numbers = {place: self.victim(PLACES[place]) for place in cases}
        for place, kind in cases.items():
            _KINDS[kind](self.files[numbers[place]])
        seen = {label for _ in range(AHEAD + 1) for label in self.next()}
        outcomes = {}
        for place, number in numbers.items():
            reason = self.bad.get(str(self.files[number]))
            assert (number in seen) == (reason is None)
            outcomes[place] = "decoded" if reason is None else f"listed: {reason}"
        return outcomes


_KINDS = kinds()


def walk(
    loader: str, folder: Path, chosen: list[tuple[str, str]], batch: int = BATCH
) -> Iterator[tuple[str, str, str]]:
    """All kinds and places, in one process: those one after the other that are at several places are so at once."""
    together: list[dict[str, str]] = [{}]
    for kind, place in chosen:
        if place in together[-1]:
            together.append({})
        together[-1][place] = kind
    # What an evaluation leaves out moves all that follows.
    stage = Stage(loader, folder, len(together) * (AHEAD + 1) + len(chosen) // batch + AHEAD + 2, batch)
    stage.next()
    for cases in together:
        outcomes = stage.meet(cases)
        yield from ((kind, place, outcomes[place]) for place, kind in cases.items())


def each(
    loader: str, folder: Path, chosen: list[tuple[str, str]], batch: int = BATCH
) -> Iterator[tuple[str, str, str]]:
    """Every kind and place in a process of its own."""
    import torch  # noqa: F401, once for all

    import amcl_fast.data.loader.contrastive  # noqa: F401

    for number, (kind, place) in enumerate(chosen):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            outcome = "?"
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                signal.alarm(HANGS)
                (outcome,) = (found for _, _, found in walk(loader, folder / str(number), [(kind, place)], batch))
            except BaseException as error:
                outcome = f"raised: {type(error).__name__}: {error}".splitlines()[0]
            os.write(writing, outcome.encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            outcome = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == -signal.SIGALRM:
            outcome = "hangs"
        elif code:
            outcome = f"ends with {signal.Signals(-code).name if code < 0 else code}"
        yield kind, place, outcome


def decoder_needs_guard(bad: bytes = bytes(5000), attempts: int = 5) -> bool:
    """Whether `bad` bytes, which DALI cannot parse, still end a process whose decoder meets them in a batch.

    Raises:
        RuntimeError: it cannot be tried out.
    """
    script = """
import sys
import numpy as np
from nvidia.dali import fn, pipeline_def
sys.path.insert(0, {here!r})
from tests.helpers.damaged_files import JPEG
good, bad = (np.frombuffer(content, np.uint8) for content in (JPEG, {bad!r}))
batches = iter([[good] * 64] * 3 + [[good] * place + [bad] + [good] * (63 - place) for place in range(0, 64, 3)])

@pipeline_def(batch_size=64, num_threads=4, device_id=None)
def graph():
    encoded = fn.external_source(source=lambda _: next(batches), batch=True)
    return fn.decoders.image(encoded).shape()

while True:
    pipeline = graph()
    try:
        while True:
            pipeline.run()
    except RuntimeError:
        pass
    except StopIteration:
        break
"""
    for _ in range(attempts):
        command = [sys.executable, "-c", script.format(here=str(Path(__file__).resolve().parents[2]), bad=bad)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode > 0:
            raise RuntimeError(done.stderr)
        if done.returncode < 0:
            return True
    return False


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.damage", description=__doc__.splitlines()[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    for mode, told in (("walk", "three at once, in one process"), ("each", "each in a process of its own")):
        run = modes.add_parser(mode, help=f"all kinds and places, {told}")
        run.add_argument("loader", choices=LOADERS)
        run.add_argument("folder", type=Path, help="where images are written")
        run.add_argument("--batch", type=int, default=BATCH, help="images of a batch")
        run.add_argument("cases", nargs="*", metavar="KIND@PLACE", help="these alone")
    modes.add_parser("decoder", help="whether the installed DALI still needs the guard (docs/damage.md)")
    given = parser.parse_args()
    if given.mode == "decoder":
        print("the guard is needed" if decoder_needs_guard() else "no crash: the guard may go")
        return
    known = cases()
    chosen = [(kind, place) for kind, _, place in (case.rpartition("@") for case in given.cases)] or known
    for case in chosen:
        if case not in known:
            parser.error(f"KIND@PLACE must be one of the {len(known)} cases, got {'@'.join(case)!r}")
    found = {"walk": walk, "each": each}[given.mode](given.loader, given.folder, chosen, given.batch)
    for kind, place, outcome in found:
        print(json.dumps({"kind": kind, "place": place, "outcome": outcome}), flush=True)


if __name__ == "__main__":
    main()
