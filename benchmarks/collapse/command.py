"""`python -m benchmarks.collapse`: train the grid, write its JSON, print its table."""

import argparse
import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from amcl_fast.runs.files import write_file

from ..results import environment, machine, rounded
from .grid import HEADS, LOSSES, OPTIMIZERS, Run, grid
from .pool import make_pool
from .training import Study, train

_WHAT = (
    "Short trainings from scratch: mean cosine of all pairs of projections, mean squared distances of positives and "
    "negatives, and kNN (k = 200, weights exp(s/0.1)) of the encoder before and after"
)


def _work(run: Run, study: Study, deadline: float) -> dict[str, Any] | None:
    """One run of a worker process, None if it is too late; a run that fails says why."""
    if time.monotonic() > deadline:
        return None
    try:
        try:
            return train(run, study)
        except RuntimeError as error:
            if not study.graph:
                raise
            print(f"{run}: without a graph, because of {error}", file=sys.stderr)
            return train(run, replace(study, graph=False))
    except Exception as error:
        return {**asdict(run), "error": f"{type(error).__name__}: {error}"}


def table(runs: Iterable[dict[str, Any]]) -> str:
    """The runs as a table in Markdown, in the order of the grid's axes."""
    lines = [
        "| loss | head | batch | optimiser | seed | κ/negatives | D_p | D_T | cosine: start | end | τ of positives "
        "| kNN: untrained | end |",
        "|---" * 13 + "|",
    ]
    names = list(LOSSES)
    places = [*HEADS]
    for run in sorted(
        runs, key=lambda r: (places.index(r["head"]), r["batch"], r["optimizer"], names.index(r["loss"]), r["seed"])
    ):
        cells = [run["loss"], run["head"], str(run["batch"]), run["optimizer"], str(run["seed"])]
        if "error" in run:
            lines.append("| " + " | ".join([*cells, run["error"]]) + " |")
            continue
        first, last = run["looks"][0], run["looks"][-1]
        cells += [f"{run['kappa']}/{run['negatives_per_anchor']}"]
        cells += [f"{first[name]:.3g}" for name in ("d_positive", "d_selected", "cosine")]
        cells += [f"{last['cosine']:.3f}", f"{last['tau_positive_mean']:.2g}"]
        cells += [f"{run['knn_untrained']:.1f}", f"{run['knn']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _write(path: Path, document: dict[str, Any]) -> None:
    # Five digits are more than a run repeats.
    write_file(path, json.dumps(rounded(document, 5, finite=True), ensure_ascii=False) + "\n")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.collapse", description="Which settings of the contrast collapse.", allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS/* and test/CLASS/*")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--test", type=int, default=2_000, help="test images")
    parser.add_argument("--views", type=int, default=6, help="views of each image in the pool")
    parser.add_argument("--augmentation", default="acde", metavar="LETTERS")
    parser.add_argument("--pool", type=Path, metavar="FILE", help="keep the views here; read them if it is there")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the device")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", default="", metavar="REGEX", help="losses whose name has a match")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 64, 1024])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--deviations", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run after so many")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "results" / "collapse.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, write, print."""
    started = time.monotonic()
    arguments = _arguments(argv)
    losses = [name for name in LOSSES if re.search(arguments.only, name)]
    axes = (losses, arguments.heads, arguments.batches, arguments.optimizers, arguments.seeds)
    runs = grid(*axes, arguments.deviations)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    context = multiprocessing.get_context("spawn")
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // arguments.jobs)))
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(
            arguments.jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
        ) as executor,
        environment() as about,
    ):
        document: dict[str, Any] = {
            "what": _WHAT,
            "machine": machine(torch.device(arguments.device).type),
            "environment": about,
            "command": "python -m benchmarks.collapse " + " ".join(sys.argv[1:]),
            "settings": settings,
            "runs": [],
        }
        pool = arguments.pool or Path(folder, "pool.pt")
        if not pool.is_file():
            make_pool(
                executor,
                arguments.data,
                pool,
                train=arguments.train,
                test=arguments.test,
                views=arguments.views,
                letters=arguments.augmentation,
                chunks=4 * arguments.jobs,
            )
        print(f"images after {time.monotonic() - started:.0f} s; {len(runs)} runs", flush=True)
        graph = arguments.device != "cpu" and not arguments.eager
        study = Study(str(pool), arguments.device, arguments.backend, arguments.steps, graph)
        futures = [executor.submit(_work, run, study, started + arguments.seconds) for run in runs]
        for future in as_completed(futures):
            if (row := future.result()) is not None:
                document["runs"].append(row)
                _write(arguments.output, document)
                seconds = time.monotonic() - started
                print(f"{seconds:.0f} s  {len(document['runs'])}", table([row]).splitlines()[2], flush=True)
    _write(arguments.output, document)
    print(table(document["runs"]))
