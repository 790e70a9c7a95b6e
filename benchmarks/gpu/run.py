"""A run of the parts of `benchmarks.gpu`: their time, their processes, their rows in the JSON."""

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from amcl_fast.kernels import tuning

from .. import results
from ..show import tables
from . import device
from .parts import PARTS, WORK, Place
from .workers import Event, Row, Workers

# More than any measurement has.
_DIGITS = 6


@dataclass
class _Done:
    """What became of a part: a row of the section `parts`, by its fields."""

    part: str
    seconds: float = 0.0
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def line(self) -> str:
        """In a few words."""
        notes = []
        if self.failed:
            notes.append(f"{len(self.failed)} failed")
        if self.left_out:
            notes.append(f"{len(self.left_out)} left out")
        return f"{self.part} {self.seconds:.0f} s" + (f" ({', '.join(notes)})" if notes else "")


class _Section:
    """Rows of a part on their way into the JSON.

    What the file has of the same sources, by commit and whether it was changed, stays, item by item, until the item has
    a row again. A section of others, or with rows that are of no item, as `amcl-fast bench` writes them, is kept under
    a name with its commit, once there is a row.
    """

    def __init__(self, path: Path, name: str, about: dict[str, Any]) -> None:
        self._path, self._name, self._about = path, name, about
        self.rows: list[Row] = []
        self._kept: list[Row] = []
        old = results.load(path)["sections"].get(name) if path.exists() else None
        self._aside: dict[str, Any] | None = None
        if old is not None and _sources(old) == _sources_of(about) and all("item" in row for row in old["rows"]):
            self._kept = old["rows"]
        else:
            self._aside = old

    def add(self, item: str, row: Row) -> None:
        """Put a row of an item into the file."""
        self._kept = [kept for kept in self._kept if kept["item"] != item]
        self.rows.append({"item": item, **results.rounded(row, _DIGITS)})
        self.save()

    def save(self) -> None:
        """Write what there is, if there is something."""
        if not self.rows:
            return
        if self._aside is not None:
            results.save(self._path, device.KIND, self._name_aside(), self._aside["environment"], self._aside["rows"])
            self._aside = None
        results.save(self._path, device.KIND, self._name, self._about, self._kept + self.rows)

    def _name_aside(self) -> str:
        """For what is put aside; not that of an earlier one."""
        assert self._aside is not None
        commit, dirty = _sources(self._aside)
        name = f"{self._name}-{commit[:7]}" + ("-dirty" if dirty else "")
        taken = results.load(self._path)["sections"]
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return next(free for free in names if free not in taken)


def _going_on(section: _Section, event: Event) -> list[tuple[str, str, Place]]:
    """The task that goes on where one has lost its process; none if that had got no further than the one before."""
    if not event.lost:
        return []
    name, item, place = event.task
    rows = tuple({key: of for key, of in row.items() if key != "item"} for row in section.rows if row["item"] == item)
    if not PARTS[name].goes_on or len(rows) <= len(place.before):
        return []
    return [(name, item, replace(place, before=rows, lost=event.content))]


def _sources(section: dict[str, Any]) -> tuple[str, bool]:
    """What a section was measured of: a commit, and whether it was changed."""
    return _sources_of(section["environment"])


def _sources_of(about: dict[str, Any]) -> tuple[str, bool]:
    return about["commit"], about["dirty"]


class Run:
    """The parts of one call of the command.

    Args:
        parts: names of `PARTS`, in their order.
        output: folder of the JSON.
        tuned: folder of the tuned tables; None: that of the package.
        only: of each part the items with this in their name, case ignored.
        jobs: processes side by side, where a part's items may run so.
        seconds: for the rounds of each timed case.
        resume: leave out the items that are done in the JSON at this commit.
        end: when all must have ended, as time.monotonic() counts; ∞: never.
        longest: seconds for an item.
    """

    def __init__(
        self,
        parts: Sequence[str],
        output: Path,
        tuned: Path | None,
        *,
        only: str,
        jobs: int,
        seconds: float,
        resume: bool,
        end: float,
        longest: float,
    ) -> None:
        self._jobs, self._resume, self._end, self._longest = jobs, resume, end, longest
        # Without a device there is nothing but names to look at.
        path = output / "none.json" if device.problem() else results.path_of(output, device.KIND)
        self._place = Place(path, tuned or tuning.FOLDER, seconds, tuple(parts))
        self._items = {
            part: [item for item in PARTS[part].items(self._place) if only.lower() in item.lower()] for part in parts
        }
        if not any(self._items.values()):
            raise SystemExit(f"--only must be part of an item's name (--list has them), got {only!r}")
        self._versions = results.versions()
        self._told: list[_Done] = []

    def listed(self) -> str:
        """Parts and items, as text."""
        return "\n".join(line for part, items in self._items.items() for line in (part, *(f"  {i}" for i in items)))

    def all(self) -> int:
        """Do everything; the exit code.

        Raises:
            SystemExit: results cannot go where they are to go, which is told before any work.
        """
        self._check_output()
        interrupted = False
        parts = [part for part, items in self._items.items() if items]
        try:
            with Workers(WORK) as workers:
                for number, part in enumerate(parts):
                    self._part(workers, part, parts[number:])
        except KeyboardInterrupt:
            interrupted = True
        if "timings" in parts:
            self._tables()
        failed = [
            f"{done.part}, {item}: {message}"
            for done in self._told
            if PARTS[done.part].matters
            for item, message in done.failed.items()
        ]
        if failed:
            print("\n".join([f"{len(failed)} failed:", *failed]), file=sys.stderr, flush=True)
        print(self._last(interrupted, failed), flush=True)
        return 130 if interrupted else 1 if failed else 0

    def _check_output(self) -> None:
        path = self._place.path
        for name, folder in (("--output", path.parent), ("--tuned", self._place.tuned)):
            if folder.exists() and not folder.is_dir():
                raise SystemExit(f"{name} must be a folder, got {str(folder)!r}, which is none")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                results.load(path)
        except (OSError, ValueError) as problem:
            raise SystemExit(f"--output must be a folder for results, got {str(path.parent)!r}: {problem}") from None

    def _part(self, workers: Workers, name: str, left: list[str]) -> None:
        """Do one part with its share of the time that is left to it and those after it."""
        part, now = PARTS[name], time.monotonic()
        weights = [PARTS[one].weight or 60 for one in left]
        budget = max(0.0, self._end - now) * weights[0] / sum(weights)
        until, latest = now + budget, min(self._end, now + 1.25 * budget + 5)
        finished = self._finished(name) if self._resume else set()
        tasks = [(name, item, self._place) for item in self._items[name] if item not in finished]
        outcome = _Done(name, done=sorted(finished & set(self._items[name])))
        self._told.append(outcome)
        limit = "" if math.isinf(budget) else f", {budget:.0f} s"
        print(f"{name}: {len(tasks)} items{limit}", flush=True)
        if not part.together:
            workers.keep(1)
        measured = contextlib.ExitStack()
        about = measured.enter_context(results.environment(self._versions, quiet=len(self._told) > 1))
        section = _Section(self._place.path, part.section, about)
        try:
            jobs = self._jobs if part.together else 1
            while tasks:
                again = []
                for event in workers.run(tasks, jobs, until, latest, self._longest):
                    self._heard(section, outcome, event)
                    again += _going_on(section, event)
                tasks = again
        finally:
            measured.close()
            outcome.seconds = round(time.monotonic() - now, 1)
            mentioned = {*outcome.done, *outcome.failed, *outcome.left_out}
            outcome.left_out += [item for item in self._items[name] if item not in mentioned]
            section.save()
            self._save(about, outcome)
        if outcome.left_out:
            print(f"{name}: left out, the time was up: {'; '.join(outcome.left_out)}", flush=True)

    def _heard(self, section: _Section, outcome: _Done, event: Event) -> None:
        name, item, _ = event.task
        if event.kind == "row":
            section.add(item, event.content)
            if text := PARTS[name].line(event.content):
                print(text, flush=True)
        elif event.kind == "done":
            outcome.done.append(item)
            outcome.failed.pop(item, None)  # it has gone on
        elif event.kind == "failed":
            outcome.failed[item] = event.content
            word = "FAILED" if PARTS[name].matters else "not done"
            word = "going on after" if _going_on(section, event) else word
            print(f"{word}  {name}, {item}: {event.content}", file=sys.stderr, flush=True)
        elif item not in outcome.failed:
            outcome.left_out.append(item)

    def _save(self, about: dict[str, Any], outcome: _Done) -> None:
        """Put what became of the part into the section `parts`, beside what that has of other items."""
        row, others = vars(outcome).copy(), []
        mentioned = {*outcome.done, *outcome.failed, *outcome.left_out}
        for old in self._rows_of_parts():
            if old["part"] != outcome.part:
                others.append(old)
                continue
            row["done"] = [item for item in old["done"] if item not in mentioned] + outcome.done
            row["failed"] = {item: why for item, why in old["failed"].items() if item not in mentioned} | outcome.failed
            row["left_out"] = [item for item in old["left_out"] if item not in mentioned] + outcome.left_out
        results.save(self._place.path, device.KIND, "parts", about, [*others, row])

    def _finished(self, part: str) -> set[str]:
        """Items that the file has of this part of these sources."""
        return {item for row in self._rows_of_parts() if row["part"] == part for item in row["done"]}

    def _rows_of_parts(self) -> list[Row]:
        path = self._place.path
        section = results.load(path)["sections"].get("parts") if path.exists() else None
        if section is None or _sources(section) != _sources_of(self._versions):
            return []
        return list(section["rows"])

    def _tables(self) -> None:
        """The table of the timings, and plots where matplotlib is installed."""
        path = self._place.path
        section = results.load(path)["sections"].get("operators") if path.exists() else None
        if section is None:
            return
        print(tables.operators(section["rows"]))
        try:
            from ..show import plots

            for picture in plots.draw(results.load(path), path.parent):
                print(f"written: {picture}")
        except ImportError:
            print("no plots: matplotlib is not installed")

    def _last(self, interrupted: bool, failed: list[str]) -> str:
        parts = ", ".join(done.line() for done in self._told)
        verdict = f"{len(failed)} failed" if failed else "nothing failed"
        return f"written: {self._place.path}; {parts}; {verdict}" + ("; interrupted" if interrupted else "")
