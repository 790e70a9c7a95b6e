"""All that needs a GPU, in one command: `python -m benchmarks.gpu quick` in five minutes, `full` without haste.

What is done, in this order; all of it, or the parts that are named:

- `compile`: the kernels of `smoke`, `breakdown`, `sweep` and `losses`, in processes side by side, before any of these;
- `smoke`: some twenty checks against float64, with what has gone wrong before among them;
- `ceilings`: what the device reaches on a product, a copy, a gather and an elementwise sum;
- `breakdown`: kernels, idle time and graph replay of the operators, ours and dense;
- `sweep`: the kernels with other launch parameters; what wins becomes kernels/tuned/<device>.json;
- `losses`: whole losses, in eager mode, as CUDA graphs and compiled;
- `resnet50`: the share of a loss in a ResNet-50's step;
- `ncu`: NVIDIA's profiler on the two slowest kernels;
- `checks`: every operator at ragged and unusual inputs, in every dtype;
- `timings`: the cases with a GPU's name on them beside their peers, each checked before it is timed;
- `memcheck`: some checks under compute-sanitizer, where it is installed.

`quick` is the parts up to `ncu` and ends after `--minutes`: each part has its share of what is left, and what does not
fit is left out and told. Every part runs in a process of its own that is replaced when it dies, so that what fails,
crashes or hangs takes nothing else with it. Results go to the machine's JSON row by row; rows of an earlier run at the
same commit stay until they are measured again, other sections under a name with their commit. The last line says
where they are, how long each part took and what failed; the exit code is 1 if something did.

Needs the installed package, or a folder amcl_fast with links to kernels and benchmarks in it; torch, triton and numpy,
and torchvision for the ResNet-50.
"""

import argparse
import contextlib
import importlib.util
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import results
from . import device

_MINUTES = 5.0
# Seconds kept back of the time that is given: to end what hangs, and to have started.
_RESERVE = 6.0
# An item of a part that has no end to its time.
_ITEM_SECONDS = 600.0


def main(arguments: list[str] | None = None) -> None:
    """Measure, or print a table of what was measured."""
    started = time.monotonic()
    if importlib.util.find_spec("amcl_fast.kernels") is None:
        raise SystemExit("amcl_fast is not installed: pip install --no-build-isolation --no-deps -e .")
    from .parts import COMPILED, FULL, QUICK

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"quick, full (default) or some of {', '.join(FULL)}")
    parser.add_argument("--minutes", type=float, help=f"end after this long ({_MINUTES:g} for quick, else no end)")
    parser.add_argument("--only", default="", metavar="TEXT", help="of each part the items with TEXT in their name")
    parser.add_argument("--resume", action="store_true", help="leave out what the JSON has of this commit")
    cores = os.cpu_count() or 1
    parser.add_argument(
        "--jobs", type=int, default=max(1, 3 * cores // 4), help="processes side by side (¾ of the cores)"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="time for the rounds of each case of timings")
    parser.add_argument("--output", type=Path, default=results.default_folder(), help="folder of the JSON")
    parser.add_argument(
        "--tuned", type=Path, help="folder of the tuned tables (that of the package, where launchers look)"
    )
    parser.add_argument("--list", action="store_true", help="print the items of the parts and end")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print what FILE has beside what was predicted")
    parser.add_argument("--ragged", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--step", metavar="CASE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.table:
        from .predictions import table

        try:
            print(table(results.load(options.table)))
        except (ValueError, OSError) as error:
            parser.error(f"--table must be the JSON of a machine with predictions, got {str(options.table)!r}: {error}")
        return
    known = {"quick": QUICK, "full": FULL} | {name: (name,) for name in FULL}
    if unknown := set(options.parts) - set(known):
        parser.error(f"PART must be one of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    if options.minutes is not None and not options.minutes > 0:
        parser.error(f"--minutes must be above 0, got {options.minutes:g}")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    chosen = {part for name in options.parts or ["full"] for part in known[name]}
    if chosen & set(COMPILED):
        chosen.add("compile")
    minutes = options.minutes or (_MINUTES if "quick" in options.parts else math.inf)
    if not options.list and (problem := device.problem()):
        raise SystemExit(problem)
    if options.ragged or options.step:
        raise SystemExit(_for_a_tool(options.step))
    from .run import Run

    run = Run(
        [name for name in FULL if name in chosen],
        options.output,
        options.tuned,
        only=options.only,
        jobs=options.jobs,
        seconds=options.seconds,
        resume=options.resume,
        end=started + 60 * minutes - _RESERVE,
        longest=_ITEM_SECONDS,
    )
    if options.list:
        print(run.listed())
        return
    with _interruptible():
        code = run.all()
    raise SystemExit(code)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM is a KeyboardInterrupt, as Ctrl-C is."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _for_a_tool(case: str | None) -> int:
    """What compute-sanitizer and ncu watch: some checks, or a case's step, twice. The exit code."""
    from . import breakdown, checks
    from .workers import told

    if case is not None:
        make = breakdown.steps().get((case, "ours"))
        if make is None:
            raise SystemExit(f"--step must be a case of ours that breakdown has (--list), got {case!r}")
        step = make()
        for _ in range(2):
            step()
        device.settle()
        return 0
    code = 0
    for one in checks.small_cases()[::4] + checks.unusual_cases():
        try:
            for _ in checks.check(device.sized(one), checks.DTYPES[0]):
                pass
        except Exception as problem:
            print(f"FAILED  {one.name}: {told(problem)}", file=sys.stderr, flush=True)
            code = 1
    return code
