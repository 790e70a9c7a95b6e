"""The parts of `benchmarks.gpu`: what each does, by items that can be done one without the other."""

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from amcl_fast.kernels import tuning

from ..cases import CASES, named
from ..check import WrongResult
from ..measure import operators
from ..show import tables
from . import breakdown, checks, device, sweep, tools, whole
from .workers import Row, Work

Item = Callable[..., Iterator[Row]]


@dataclass(frozen=True)
class Place:
    """Where results go: the JSON, the folder of the tuned tables; the rounds of a timed case in seconds; all parts.

    An item whose process ended and that goes on has the rows `before` and why it ended, `lost`.
    """

    path: Path
    tuned: Path
    seconds: float
    parts: tuple[str, ...]
    before: tuple[Row, ...] = ()
    lost: str = ""


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        section: of the JSON.
        weight: share of the time of `quick`; 0: it is no part of it.
        items: by name, what yields rows. An item with a parameter `until` is told when its time is up.
        line: a row as text.
        together: whether the items run side by side, for what waits for the host's compiler more than for the GPU.
        matters: whether an item that fails is a failure of the command.
        goes_on: whether an item whose process ended goes on after the rows that it has, by a new one.
    """

    section: str
    weight: float
    items: Callable[[Place], dict[str, Item]]
    line: Callable[[Row], str]
    together: bool = False
    matters: bool = True
    goes_on: bool = False


def perform(part: str, item: str, place: Place, until: float) -> Iterator[Row]:
    """The rows of one item, in this process."""
    if part != "compile":
        # What a sweep in another process has found meanwhile.
        tuning.winners.cache_clear()
    action = PARTS[part].items(place)[item]
    yield from action(until=until) if "until" in inspect.signature(action).parameters else action()
    device.settle()
    device.release()


def unusable() -> bool:
    """Whether the device refuses this process every further call."""
    try:
        device.settle()
        device.release()
    except Exception:
        return True
    return False


WORK = Work(perform, unusable)


def _compile(place: Place) -> dict[str, Item]:
    """Everything that the parts will launch, so that it lies in Triton's cache."""
    actions: dict[str, dict[str, Callable[[], object]]] = {
        "sweep": sweep.compilations(),
        "smoke": checks.compilations(),
        "breakdown": {case: partial(_step, make) for (case, run), make in breakdown.steps().items() if run == "ours"},
        "losses": {
            name: partial(_step, partial(breakdown.step_of_case, case, "ours")) for name, case in whole.cases().items()
        },
    }
    return {
        f"{part}: {name}": partial(_timed, f"{part}: {name}", action)
        for part in COMPILED
        if part in place.parts
        for name, action in actions[part].items()
    }


def _step(make: Callable[[], device.Step]) -> None:
    make()()


def _timed(name: str, action: Callable[[], object]) -> Iterator[Row]:
    started = time.monotonic()
    action()
    device.settle()
    yield {"what": name, "seconds": round(time.monotonic() - started, 2)}


def _one(make: Callable[[], Row]) -> Iterator[Row]:
    yield (row := make())
    if not row.get("same_bits", True):
        raise WrongResult(f"a graph's bits are not eager's: relative difference {row['difference']:.1e}")


def _breakdown(place: Place) -> dict[str, Item]:
    return {", ".join(key): partial(_one, partial(breakdown.row, *key)) for key in breakdown.steps()}


def _ceilings(place: Place) -> dict[str, Item]:
    return {name: partial(_one, make) for name, make in breakdown.ceilings().items()}


def _sweep(place: Place) -> dict[str, Item]:
    return {
        one.name: partial(sweep.rows, one, place.tuned, before=place.before, lost=place.lost) for one in sweep.SWEEPS
    }


def _losses(place: Place) -> dict[str, Item]:
    return {", ".join(key): partial(_one, make) for key, make in whole.steps().items()}


def _resnet50(place: Place) -> dict[str, Item]:
    return {", ".join(key): partial(_one, make) for key, make in whole.trainings().items()}


def _timings(place: Place) -> dict[str, Item]:
    return {case.name: partial(_timing, case.name, place.seconds) for case in CASES if "cuda" in case.targets}


def _timing(name: str, seconds: float) -> Iterator[Row]:
    case = device.sized(named(name))
    yield operators.measure(case, device.KIND, device.BACKEND, seconds, device.copy_bandwidth())


def _of_check(row: Row) -> str:
    if "found" in row:
        return f"{row['case']}: {row['found']}"
    same = "" if row["same_twice"] else ", two runs differ"
    return f"{row['case']}: error {row['error']:.1e} of {row['tolerance']:.1e}{same}"


def _of_ceiling(row: Row) -> str:
    return f"{row['task']}: {row['value']:.3g} {row['unit']}"


def _of_ncu(row: Row) -> str:
    return f"{row['kernel']}: {row['refused'] if 'refused' in row else str(len(row['text'])) + ' lines'}"


# Parts whose kernels `compile` compiles.
COMPILED = ("smoke", "breakdown", "losses", "sweep")

# In the order in which they are done.
PARTS: dict[str, Part] = {
    "compile": Part("compile", 50, _compile, lambda row: "", True, False),
    "smoke": Part("smoke", 25, lambda place: dict(checks.smoke()), _of_check),
    "ceilings": Part("ceilings", 8, _ceilings, _of_ceiling),
    "breakdown": Part("breakdown", 40, _breakdown, breakdown.line),
    "sweep": Part("sweep", 80, _sweep, sweep.line, goes_on=True),
    "losses": Part("losses", 50, _losses, whole.line),
    "resnet50": Part("resnet50", 30, _resnet50, whole.line),
    "ncu": Part("ncu", 25, lambda place: {"the slowest kernels": partial(tools.ncu, place.path)}, _of_ncu),
    "checks": Part("checks", 0, lambda place: dict(checks.all_checks()), _of_check, True),
    "timings": Part("operators", 0, _timings, lambda row: f"{row['case']}: {tables.operator_line(row)}"),
    "memcheck": Part("memcheck", 0, lambda place: {"memcheck": tools.memcheck}, lambda row: row["summary"]),
}
QUICK = tuple(name for name, part in PARTS.items() if part.weight)
# All checks hold those of `smoke`, but for a few at full size.
FULL = tuple(PARTS)
