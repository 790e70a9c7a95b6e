"""A rehearsal at the size of ImageNet: what a run costs before its first step, and what its evaluation costs.

A row: `case`, one of `CASES`; `what` was measured; `value` in `unit`; `basis`, `measured`, `extrapolated` or `at
least`; `target`, the most that `value` may be, or null; `met`, null without a target and below full size; `note`, for
people; and `details`, every figure that went into it. What was not run has `case`, `what` and `missing`, the reason;
where that is an error, `failed` too. docs/benchmarks.md says how each is taken.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...system import cores, memory_free
from . import children
from .answers import BATCH, IMAGES, SIZE
from .children import Failed
from .tree import FULL, LEAST, Tree, tree

ROWS = 1_281_167
"""Images of ImageNet-1k's training part, as a bank and for a linear probe."""
QUERIES = 50_000
"""Images of its validation part."""

SECONDS = 30.0
"""Of a measurement of kNN, the bare product included; half of it in half precision, and of a linear probe."""

CASES = (
    "start",
    "pretrain",
    *(f"kNN, width {width}" for width in (512, 2048)),
    *(f"linear probe, width {width}" for width in (512, 2048)),
)

# Seconds that a run may take until its first step, kNN before training included.
_FIRST_STEP_SECONDS = 240
_EPOCHS = 100
_WITH_TARGET = ("512", "float32")
# Of what a start costs beyond 1,000 images, what nobody notices: it counts as this.
_NOTICED_SECONDS, _NOTICED_BYTES, _NOTICED_STATE = 0.1, float(8 << 20), 1024.0
# Linear growth has exponent 1; sorting's is 1.08 at this size.
_LINEAR = 1.15
_OF_THE_SLOWEST = ("product", "product_processor", "knn", "knn_processor", "beyond")
_SETTINGS = {
    "data.size": 64, "data.batch_size": 128, "data.num_threads": cores(),
    "model.backbone.name": "resnet18", "model.backbone.width": 16, "model.compile": "false",
    "trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.precision": "32-true",
    "trainer.sync_batchnorm": "false",
}  # fmt: skip

Row = dict[str, Any]


def measure(
    cases: Sequence[str], images: int, queries: int | None, seconds: float | None, data: Path | None, device: str
) -> Iterator[Row]:
    """Measure some of `CASES`; rows as they are found, also of a part whose processes fail.

    Args:
        cases: which.
        images: of the folder; targets hold from `FULL` on. The bank and the features of a probe are as many.
        queries: of kNN with the whole bank; None: those of a pass, with the part of it that fits into `seconds`. The
            rest is extrapolated.
        seconds: of each measurement of kNN; None: `SECONDS`, and all `QUERIES` in one process where there is a target.
        data: folder of classes of photographs to link to; None: they are drawn.
        device: of kNN and the linear probe.

    Raises:
        ValueError: there is no room or no hard link in TMPDIR, or a number is out of range.
    """
    if queries is not None and not 1 <= queries <= QUERIES:
        raise ValueError(f"--queries must be 1 to {QUERIES:,}, got {queries:,}")
    from amcl_fast.evaluate.linear import RATES

    in_whole, seconds = seconds is None, SECONDS if seconds is None else seconds
    if "start" in cases or "pretrain" in cases:
        with tree(images, data) as made:
            if "start" in cases:
                yield from _told("start", "the start of a run", _start(made))
            if "pretrain" in cases:
                yield from _told("pretrain", "pretrain to its first step", _pretrain(made))
    rows = ROWS if images >= FULL else images
    for case in cases:
        kind, _, width = case.partition(", width ")
        if kind == "kNN":
            # Two processes are measured where each has cores of its own.
            for dtype, processes in (("float32", 1), ("float32", 2), ("float16", 1)):
                if processes == 1 or device == "cpu":
                    some = seconds if dtype == "float32" else seconds / 2
                    what = f"kNN, {QUERIES:,} × {rows:,} × {width}, {dtype}{_in(processes)}"
                    request = {"rows": rows, "width": int(width), "dtype": dtype, "device": device, "seconds": some}
                    has_target = (width, dtype) == _WITH_TARGET and processes == 1 and rows == ROWS
                    count = QUERIES if queries is None and in_whole and has_target else queries
                    request |= {"queries": count, "most": QUERIES}
                    yield from _told(case, what, _knn(case, what, request, processes))
        elif kind == "linear probe":
            for processes in (1, 2) if device == "cpu" else (1,):
                what = f"linear probe, {rows:,} × {width}, {len(RATES)} rates{_in(processes)}"
                request = {"rows": rows, "width": int(width), "dtype": "float32", "device": device}
                request |= {"seconds": seconds / 4}
                yield from _told(case, what, _probe(case, what, request, processes))


def _told(case: str, what: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows, and one that says so if a process fails; the cases after it are measured all the same."""
    try:
        yield from rows
    except Failed as error:
        yield {"case": case, "what": what, "missing": f"failed: {error}", "failed": f"{what}: {error}"}


def _in(processes: int) -> str:
    return f", {processes} processes" if processes > 1 else ""


def _start(made: Tree) -> Iterator[Row]:
    """A folder's first scan, later starts, memory, loaders: at full size, at a tenth of it, and of 1,000 images."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for size in ("small", "tenth", "full"):
        found[size] = {}
        for process, processes, loads in (
            ("first scan", 1, False),
            ("later start", 1, True),
            ("another process", 2, False),
        ):
            if size == "full":
                print(f"    {process}, {made.images:,} images", flush=True)
            request = {"root": str(getattr(made, size)), "loads": loads}
            # Of two processes the second is the other one.
            found[size][process] = children.measure("start", request, _environment(made, size), processes)[-1]
    full, tenth, small = found["full"], found["tenth"], found["small"]

    def row(what: str, value: float, unit: str, target: float | None, note: str = "", **details: Any) -> Row:
        return _row("start", what, value, unit, target, enough=made.images >= FULL, note=note, details=details)

    where = {"file_system": made.file_system, "sources": made.sources}
    note = f"{made.file_system}; links to {made.sources} files"
    yield row(f"making the folder of {made.images:,} images", made.seconds, "s", None, note, **where)
    for process, target in (("first scan", 60.0), ("later start", 15.0), ("another process", 15.0)):
        answer = full[process]
        who = f"later start in {process} of the machine" if process == "another process" else process
        first = "waiting for the first" if process == "another process" else "prepare_data"
        parts = f"{first} {answer['prepare'] + answer['waiting']:.1f} s, setup {answer['setup']:.1f} s"
        yield row(f"{who}, {made.images:,} images", _seconds(answer), "s", target, parts, answer=answer)
    for process, who in (
        ("first scan", "in the process of the first scan"),
        ("later start", "after a later start"),
        ("another process", "in another process of the machine"),
    ):
        of, at_1000 = full[process]["after"], small[process]["after"]
        beyond = {key: (of[key] - at_1000[key]) / 2**20 for key in of}
        note = f"own {beyond['own']:,.0f}, mapped {beyond['mapped']:,.0f}, peak {beyond['peak']:,.0f} MiB more; "
        note += f"{of['resident'] / 2**20:,.0f} MiB in all"
        what = f"resident memory of the list {who}, beyond 1,000 images"
        yield row(what, beyond["resident"], "MiB", 300.0, note, beyond_mib=beyond, full=of, small=at_1000)
    loading, of_small = full["later start"], small["later start"]
    yield row("a loader's state in a checkpoint", loading["state_bytes"] / 2**10, "KiB", 64.0)
    again = f"then {loading['state_again'] * 1e3:.1f} ms"
    yield row("its time, the first time", loading["state"], "s", 0.05, again, again=loading["state_again"])
    batch, batch_of_small = (of["loader"] + of["first_batch"] for of in (loading, of_small))
    what = f"from the list to the first batch, {IMAGES} images of {SIZE} pixels"
    yield row(what, batch, "s", None, f"of 1,000 images {batch_of_small:.1f} s", full=loading, small=of_small)
    what = "the most that anything grows by, as a power of the number of images"
    if made.images // 10 < 2 * LEAST:
        yield {"case": "start", "what": what, "missing": f"it wants {20 * LEAST:,} images at the least"}
        return
    figures = [_figures(of) for of in (small, tenth, full)]
    exponents = {}
    for name, (_, noticed) in figures[0].items():
        at_1000, of_tenth, of_all = (of[name][0] for of in figures)
        exponents[name] = _exponent(at_1000, of_tenth, of_all, noticed, made.images)
    worst = max(exponents, key=exponents.__getitem__)
    listed = ", ".join(f"{name} {value:.2f}" for name, value in exponents.items())
    yield row(what, exponents[worst], "", _LINEAR, listed, exponents=exponents, figures=figures)


def _figures(found: dict[str, dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """What a start costs by name, for its growth: seconds or bytes, and how many of them nobody notices."""
    loading = found["later start"]
    seconds = {f"{process}'s time": _seconds(answer) for process, answer in found.items()}
    seconds |= {"the loader's": loading["loader"], "the first batch's": loading["first_batch"]}
    seconds |= {"the state's": loading["state"]}
    figures = {name: (value, _NOTICED_SECONDS) for name, value in seconds.items()}
    for process, answer in found.items():
        figures[f"{process}'s memory"] = float(answer["after"]["resident"]), _NOTICED_BYTES
    return figures | {"the state's bytes": (float(loading["state_bytes"]), _NOTICED_STATE)}


def _exponent(small: float, tenth: float, full: float, noticed: float, images: int) -> float:
    """By which power of the images something grows, from a tenth of them to all, beyond what it is of 1,000."""
    growth = max(full - small, noticed) / max(tenth - small, noticed)
    return math.log(growth) / math.log((images - LEAST) / (images // 10 - LEAST))


def _seconds(answer: dict[str, Any]) -> float:
    return answer["prepare"] + answer["waiting"] + answer["setup"]


def _pretrain(made: Tree) -> Iterator[Row]:
    """The real command, from its start to its first optimiser step."""
    for size, images in (("small", 1_000), ("full", made.images)):
        # Its list is kept from here on, as in every run but the first.
        children.measure("start", {"root": str(getattr(made, size)), "loads": False}, _environment(made, size))
        for knn in (False, True) if size == "full" else (False,):
            what = f"pretrain to its first step, {images:,} images, kNN {'as by default' if knn else 'off'}"
            print(f"    {what}", flush=True)
            try:
                found = _first_step(made, size, knn)
            except subprocess.TimeoutExpired:
                note = "it was ended then"
                yield _row("pretrain", what, _FIRST_STEP_SECONDS, "s", None, basis="at least", note=note, details={})
                continue
            memory = found["memory"]
            note = f"{memory['resident'] / 2**20:,.0f} MiB resident, peak {memory['peak'] / 2**20:,.0f}, its processes "
            note += f"{found['children'] / 2**20:,.0f} more"
            yield _row("pretrain", what, found["seconds"], "s", None, note=note, details=found)


def _first_step(made: Tree, size: str, knn: bool) -> dict[str, Any]:
    """Seconds to the first optimiser step, and what `FirstStep` has written.

    Raises:
        Failed: the command ended without one.
        TimeoutExpired: it takes longer than `_FIRST_STEP_SECONDS`.
    """
    name = f"{size}-{'knn' if knn else 'plain'}"
    told = made.folder / f"{name}.json"
    settings = [f"--{setting}={value}" for setting, value in _SETTINGS.items()]
    if not knn:
        settings.append("--knn.every_n_epochs=0")
    settings += [
        f"--trainer.callbacks+={__package__}.first_step.FirstStep", f"--trainer.callbacks.path={told}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "amcl_fast.cli", "pretrain", "--recipe", "simclr-imagenet1k-baseline"]
    command += ["--data", str(getattr(made, size)), "--run_dir", str(made.folder / name), *settings]
    output = made.folder / f"{name}.log"
    with output.open("wb") as log:
        started = time.monotonic()
        process = children.Process(command, _environment(made, size), stdout=log, stderr=log)
        try:
            code = process.wait(_FIRST_STEP_SECONDS)
        finally:
            process.end()
    if code or not told.exists():
        print(output.read_text(errors="replace")[-2000:], file=sys.stderr, flush=True)
        raise Failed(f"pretrain: the command ended with code {code} before its first step; its output is above")
    found: dict[str, Any] = json.loads(told.read_text())
    return {"seconds": found.pop("at") - started, **found}


def _environment(made: Tree, size: str) -> dict[str, str]:
    """The caches of a folder are its own and not the user's: its first scan is the first."""
    return {"AMCL_FAST_CACHE": str(made.folder / f"cache-{size}")}


def _knn(case: str, what: str, request: dict[str, Any], processes: int) -> Iterator[Row]:
    rows, width, dtype = request["rows"], request["width"], request["dtype"]
    if missing := _no_room(rows * width * (4 if dtype == "float32" else 2), processes, request["device"]):
        yield {"case": case, "what": what, "missing": missing}
        return
    whole = ": all of it, some ten minutes on two cores at width 512" if request["queries"] == QUERIES else ""
    print(f"    {what}{whole}", flush=True)
    answers = children.measure("knn", request, {}, processes)
    if any(answer["error"] * answer["checked"] > 100.5 for answer in answers):  # more than one vote
        raise Failed(f"{answers[0]['error']:.1f} % off the accuracy in float64")
    # The slowest process is what all wait for.
    timed = [
        {name: of[0][name] for name in ("queries", "rows", "accuracy")}
        | {name: max(one[name] for one in of) for name in _OF_THE_SLOWEST}
        for of in zip(*(answer["timed"] for answer in answers), strict=True)
    ]
    last, own = timed[-1], answers[0]["rows"]
    of_pass = answers[0]["whole_pass"] | {"beyond": max(answer["whole_pass"]["beyond"] for answer in answers)}
    basis = "measured" if (last["queries"], last["rows"]) == (QUERIES, own) else "extrapolated"
    times, per_pass = QUERIES / last["queries"], of_pass["queries"]
    if last["rows"] == own and last["queries"] < per_pass:
        # The part that is no product counts once a pass, though some of it grows with the queries: no target is judged.
        whole = -(-QUERIES // per_pass) * max(0.0, last["knn"] - last["product"]) + times * last["product"]
        each = 0.0
    else:
        # Of a row its product at the least. What a pass costs whatever the queries is little beside.
        each = (last["knn"] - timed[0]["knn"]) / max(1, last["rows"] - timed[0]["rows"])
        each = max(each, last["product"] / last["rows"])
        whole = times * (last["knn"] + (own - last["rows"]) * each)
    product = times * last["product"] * own / last["rows"]
    details = {"timed": timed, "whole_pass": of_pass, "processes": processes, "rows": own, "each": each}

    def of(one: dict[str, Any]) -> str:
        queries = f"{one['queries']:,} queries"
        return queries if one["rows"] == own else f"{queries} and {one['rows']:,} rows of the bank"

    def row(told: str, value: float, unit: str, target: float | None, note: str, basis: str = "measured") -> Row:
        enough = rows == ROWS and last["queries"] >= per_pass
        about: Row = {"basis": basis, "note": note, "details": details}
        return _row(case, f"{what}: {told}", value, unit, target, enough=enough, **about)

    target = 1.5 if (str(width), dtype) == _WITH_TARGET else None
    ratios = [f"{one['knn'] / one['product']:.2f} × with {of(one)}" for one in timed]
    note = f"{last['accuracy']:.1f} % right" if basis == "measured" else " and ".join(ratios)
    yield row("time as a multiple of the bare product", whole / product, "×", target, note, basis)
    seconds = [f"{one['knn']:.1f} s with {of(one)}" for one in timed]
    note = "" if basis == "measured" else " and ".join(seconds)
    yield row("time", whole / 60, "min", None, note, basis)
    peaks = [*timed, of_pass]
    note = f"bank {answers[0]['bank_bytes'] / 2**20:,.0f} MiB; "
    note += ", ".join(f"{of(one)} {one['beyond'] / 2**20:,.0f} MiB" for one in peaks)
    target = 1024.0 if dtype == "float32" else None
    of_one = " of a process" * (processes > 1)
    yield row(f"memory{of_one} beyond the bank", max(one["beyond"] for one in peaks) / 2**20, "MiB", target, note)


def _probe(case: str, what: str, request: dict[str, Any], processes: int) -> Iterator[Row]:
    if missing := _no_room(request["rows"] * request["width"] * 4, processes, request["device"]):
        yield {"case": case, "what": what, "missing": missing}
        return
    print(f"    {what}", flush=True)
    answers = children.measure("probe", request, {}, processes)
    about, details = answers[0], {"answers": answers, "processes": processes}
    step = max(answer["step"] for answer in answers)
    note = f"median of {about['steps']} steps, {about['steps_of_a_block']} at a time"
    yield _row(case, f"{what}: a step of {BATCH}", step * 1e3, "ms", None, note=note, details=details)
    epoch = step * about["batches"]
    note = f"{about['batches']:,} steps an epoch, {epoch / 60:.1f} min"
    what_all, hours = f"{what}: {_EPOCHS} epochs", _EPOCHS * epoch / 3600
    yield _row(case, what_all, hours, "h", None, basis="extrapolated", note=note, details=details)
    beyond = max(answer["beyond"] for answer in answers) / 2**20
    of_one = " of a process" * (processes > 1)
    yield _row(case, f"{what}: memory{of_one} beyond the features", beyond, "MiB", None, details=details)


def _no_room(features: int, processes: int, device: str) -> str | None:
    """Why so many bytes of features cannot be had, with what is needed beside them; None if they can."""
    needed, free = features * 1.1 + (processes << 30), memory_free(device)
    if needed <= free:
        return None
    return f"{needed / 2**30:.1f} GiB of memory must be free, got {free / 2**30:.1f}"


def _row(
    case: str,
    what: str,
    value: float,
    unit: str,
    target: float | None,
    *,
    details: dict[str, Any],
    enough: bool = True,
    basis: str = "measured",
    note: str = "",
) -> Row:
    met = None if target is None or not enough else value <= target
    return {
        "case": case, "what": what, "value": value, "unit": unit, "basis": basis, "target": target, "met": met,
        "note": note, "details": details,
    }  # fmt: skip
