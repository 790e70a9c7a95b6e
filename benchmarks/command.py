"""What `amcl-fast bench` does: measure sections, list cases, draw tables and plots, compare."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amcl_fast import ops
from amcl_fast.extras import require

from . import results
from .cases import Case, select

SECTIONS = ("operators", "pipeline", "training", "scaling", "scale")
Rows = Iterator[dict[str, Any]]

_SECONDS = 4.0


@dataclass(frozen=True)
class Asked:
    """What is to be measured, and how; see `measure`."""

    substring: str
    backend: str
    seconds: float | None
    data: Path | None
    images: int | None
    queries: int | None

    @property
    def of_rounds(self) -> float:
        """Seconds of the rounds of a case."""
        return _SECONDS if self.seconds is None else self.seconds


def device() -> str:
    """The kind of device that is measured: `cuda` where there is one, or else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def list_cases() -> None:
    """Print what each section measures on this machine."""
    from .measure.scale.rehearsal import CASES
    from .measure.scaling import AXES
    from .measure.training import recipes

    names = {
        "operators": [case.name for case in select(device())],
        "pipeline": list(_pipelines()),
        "training": recipes(),
        "scaling": list(AXES),
        "scale": list(CASES),
    }
    for section, cases in names.items():
        print(section, *(f"  {case}" for case in cases), sep="\n")


def draw(output: Path | None) -> None:
    """Draw the tables of README.md and docs/ and docs/benchmarks/*.png here; print what was written.

    Raises:
        ValueError, OSError: no results in the folder, or no pages with the markers.
        ImportError: no matplotlib.
    """
    require("bench --report", "matplotlib")
    from .show import pages, studies

    folder = output or results.default_folder()
    files = Path("README.md"), Path("docs/benchmarks.md"), Path("docs/benchmarks"), Path("docs/imagenet.md")
    for path in (
        *pages.write(folder, *files),
        *studies.write(folder, Path("docs/study-results.md"), Path("docs/studies")),
    ):
        print(path)


def compare(a: str, b: str, substring: str, backend: str, seconds: float | None, output: Path | None) -> None:
    """Print two result files, or two commits that are measured now, side by side; commits also into the JSON.

    Raises:
        ValueError: seconds is not above 0; see also `benchmarks.compare.compare`.
    """
    from .compare import compare as table

    _check_seconds(seconds)
    print(table(a, b, device(), substring, backend, _SECONDS if seconds is None else seconds, output))


def measure(
    sections: Sequence[str],
    substring: str,
    backend: str,
    seconds: float | None,
    data: Path | None,
    output: Path | None,
    images: int | None = None,
    queries: int | None = None,
) -> bool:
    """Measure some of `SECTIONS`, a line a case, and write each into the machine's JSON when it is complete.

    A section of which only a part was asked for, or in which a case failed, is printed and not written. Of `scale` and
    the pipeline's storages what failed is a row that says so, and the section is written.

    Args:
        sections: what to measure.
        substring: part of the names of the cases to measure.
        backend: of our implementation.
        seconds: time for the rounds of each case; None: 4, and for `scale` what its `measure` says.
        data: folder of classes of photographs, for the pipeline at 224 pixels; `scale` links to them.
        output: folder of the JSON; None: `results.default_folder()`.
        images: of `scale`; None: those of ImageNet.
        queries: of kNN in `scale`; None: as its `measure` says.

    Returns:
        Whether every case was within its tolerance.

    Raises:
        ValueError: no case has such a name, or a setting is out of range, or the backend cannot run here.
        ImportError: the packages of the only section are missing; of several, that one is left out.
    """
    _check_seconds(seconds)
    for name, value in (("--images", images), ("--queries", queries)):
        if value is not None and "scale" not in sections:
            raise ValueError(f"{name} must be left out without the section scale, got {value:,}")
    if data is not None and not data.is_dir():
        raise ValueError(f"data must be a folder of classes of images, got {str(data)!r}")
    asked = Asked(substring, backend, seconds, data, images, queries)
    path = results.path_of(output or results.default_folder(), device())
    failed = False
    for section in sections:
        try:
            with results.environment() as about:
                rows = list(_MEASURES[section](asked))
        except ImportError as error:
            if len(sections) == 1:
                raise
            print(f"{section}: not run: {error}", flush=True)
            continue
        wrong = [row["failed"] for row in rows if "failed" in row]
        for message in wrong:
            print(f"FAILED  {message}", file=sys.stderr, flush=True)
        failed = failed or bool(wrong)
        # Where a row says that it is missing, the others are worth keeping.
        lost = any("failed" in row and "missing" not in row for row in rows)
        if rows and not (lost or substring):
            results.save(path, device(), section, about, rows)
            print(f"written: {path}, {section}, after {about['seconds']:.0f} s", flush=True)
    return not failed


def _check_seconds(seconds: float | None) -> None:
    if seconds is not None and seconds <= 0:
        raise ValueError(f"seconds must be above 0, got {seconds:g}")


def _operators(asked: Asked) -> Rows:
    from .check import WrongResult
    from .measure.operators import copy_bandwidth, measure
    from .show.tables import operator_line

    cases = select(device(), asked.substring)
    bandwidth = copy_bandwidth() if device() == "cuda" else None
    for number, case in enumerate(cases, 1):
        print(f"[{number}/{len(cases)}] {case.name}", flush=True)
        if problem := _unfit(case, asked.backend):
            print(f"    not run: {problem}", flush=True)
            continue
        try:
            row = measure(case, device(), asked.backend, asked.of_rounds, bandwidth)
        except WrongResult as wrong:
            yield {"failed": str(wrong)}
            continue
        print(f"    {operator_line(row)}", flush=True)
        yield row


def _unfit(case: Case, backend: str) -> str | None:
    """Why the backend does not take this case, None if it does; ValueError if it takes none here."""
    operand = torch.empty(0, device=device(), dtype=case.dtype_on(device()))
    try:
        ops.resolve(backend, operand)
    except (ValueError, TypeError) as error:
        return str(error)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return None


def _pipeline(asked: Asked) -> Rows:
    require("bench pipeline", "nvidia.dali", "PIL")
    from .measure.pipeline import images, measure, measure_storages

    for name, (size, letters, storages) in _matching(_pipelines(), asked.substring):
        if size == 224 and asked.data is None:
            print(f"{name}: not run, for want of photographs: --data PATH", flush=True)
            continue
        if storages:
            assert asked.data is not None
            try:
                rows = measure_storages(size, letters, asked.data, asked.of_rounds)
            except (ValueError, OSError) as error:
                about = {"size": size, "letters": letters, "library": "dali", "storage": "files and shards"}
                rows = [about | {"missing": f"failed: {error}", "failed": f"{name}: {error}"}]
        else:
            rows = measure(size, letters, images(size, asked.data), asked.of_rounds)
        for row in rows:
            of = row.get("storage", row["library"])
            if "missing" in row:
                print(f"{name}, {of}: {row['missing']}", flush=True)
            else:
                rate, cost = row["images_per_second"][1], row["processor_ms"][1]
                print(f"{name}, {of}: {rate:.0f} images/s, {cost:.2f} ms of processor time", flush=True)
            yield row


def _training(asked: Asked) -> Rows:
    require("bench training", "lightning", "jsonargparse", "yaml", "torchvision", "tensorboard", "nvidia.dali")
    from .measure.training import measure, recipes

    for recipe, _ in _matching(dict.fromkeys(recipes()), asked.substring):
        row = measure(recipe)
        shares = ", ".join(f"{phase} {value:.0f} ms" for phase, value in row["milliseconds"].items())
        print(f"{recipe}: {row['images_per_second']:.0f} images/s; {shares}", flush=True)
        yield row


def _scaling(asked: Asked) -> Rows:
    from .check import WrongResult
    from .measure.scaling import AXES, measure

    for axis, _ in _matching(AXES, asked.substring):
        try:
            row = measure(axis, device(), asked.backend, asked.of_rounds)
        except WrongResult as wrong:
            yield {"failed": str(wrong)}
            continue
        found = ", ".join(
            f"{name} {row[name]['exponent']:.2f}" for name in ("ours", "dense", "products") if row[name]["exponent"]
        )
        print(f"exponents of time in {axis}: {found}", flush=True)
        yield row


def _scale(asked: Asked) -> Rows:
    require(
        "bench scale", "lightning", "jsonargparse", "yaml", "torchvision", "tensorboard", "nvidia.dali", "PIL", "tqdm"
    )
    from .measure.scale.rehearsal import CASES, measure
    from .measure.scale.tree import FULL
    from .show.tables import scale_line

    cases = [case for case, _ in _matching(dict.fromkeys(CASES), asked.substring)]
    images = FULL if asked.images is None else asked.images
    for row in measure(cases, images, asked.queries, asked.seconds, asked.data, device()):
        print(scale_line(row), flush=True)
        yield row


def _matching(names: dict[str, Any], substring: str) -> list[tuple[str, Any]]:
    chosen = [(name, value) for name, value in names.items() if substring.lower() in name.lower()]
    if not chosen:
        raise ValueError(f"case must be part of one of these names: {', '.join(names)}; got {substring!r}")
    return chosen


def _pipelines() -> dict[str, tuple[int, str, bool]]:
    """By the name of a case its pixels and letters, and whether it compares where the images are kept."""
    from .measure.pipeline import BATCH, LETTERS

    names = {f"{size} px, {letters or 'resize only'}": (size, letters, False) for size in BATCH for letters in LETTERS}
    return names | {f"224 px, {LETTERS[-1]}, from files and from shards": (224, LETTERS[-1], True)}


_MEASURES: dict[str, Callable[[Asked], Rows]] = {
    "operators": _operators,
    "pipeline": _pipeline,
    "training": _training,
    "scaling": _scaling,
    "scale": _scale,
}
