"""The frameworks on the built-in images: baseline, AMCL as released, AMCL as the recipes here have it.

    OMP_NUM_THREADS=1 python -m benchmarks.frameworks --frameworks can

trains `<framework>-builtin-<variant>` once a seed, some 30 s of one core each (CAN: three minutes), writes
benchmarks/results/frameworks-builtin.json and prints its table. A training that has finished is read from its folder
and not repeated, and one that was stopped goes on. The JSON holds "what", "command", and "blocks", each of what was
measured at once: "machine", "environment" (as benchmarks.results has them) and "runs": recipe, seed, kNN in percent
(also `untrained` and `pixels`), seconds of an epoch, and the last logged loss, temperatures and similarities. A recipe
that is measured again leaves its earlier block; the others stay.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from amcl_fast.recipes import FRAMEWORKS, VARIANTS, recipe_names
from amcl_fast.runs.files import write_file
from amcl_fast.runs.read import Run
from amcl_fast.study.training import StopError, Training, train_all

from ..results import environment, machine

_WHAT = (
    "kNN (k = 200, weights exp(s/0.1)) of encoders trained by the recipes <framework>-builtin-<variant>; seconds of an "
    "epoch from the median of the logged throughput; the rest as logged last, for that batch"
)
_SETTINGS = ("--data.num_threads", "1")
_LOGGED = (
    "loss",
    "loss_contrast",
    "loss_reconstruction",
    "loss_noise",
    "gradient_norm",
    "similarity_positive",
    "similarity_negative",
    *(f"tau_{sign}_{kind}" for sign in ("positive", "negative") for kind in ("mean", "std", "min", "at_bound")),
)


def row(training: Training, run: Run) -> dict[str, Any]:
    """What the JSON says of a training that has finished."""
    throughput = statistics.median(run.series("images_per_second")[1].tolist())
    return {
        "recipe": training.recipe,
        "seed": training.seed,
        "knn": run.last("knn"),
        "knn_untrained": run.last("knn_untrained"),
        "knn_pixels": run.last("knn_pixels"),
        "seconds_per_epoch": round(run.facts["training_images"] / throughput, 2),
        **{name: run.last(name) for name in _LOGGED if run.last(name) is not None},
    }


def table(runs: list[dict[str, Any]]) -> str:
    """The runs as a table in Markdown, a row for each recipe."""
    lines = [
        "| recipe | kNN, % | mean | τ of positives | τ of negatives | s an epoch |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in dict.fromkeys(run["recipe"] for run in runs):
        of_recipe = [run for run in runs if run["recipe"] == recipe]

        def mean(name: str, runs: list[dict[str, Any]] = of_recipe) -> float:
            return statistics.mean(run[name] for run in runs)

        def spread(sign: str, runs: list[dict[str, Any]] = of_recipe) -> str:
            if f"tau_{sign}_mean" not in runs[0]:
                return "—"
            if max(run[f"tau_{sign}_at_bound"] for run in runs) > 0.99:
                return f"{mean(f'tau_{sign}_mean', runs):.2g}, at its bound"
            std = mean(f"tau_{sign}_std", runs)
            return f"{mean(f'tau_{sign}_mean', runs):.2g}" + (f" ± {std:.1g}" if std > 0 else "")

        values = ", ".join(f"{run['knn']:.1f}" for run in of_recipe)
        cells = [f"`{recipe}`", values, f"{mean('knn'):.1f}", spread("positive"), spread("negative")]
        lines.append("| " + " | ".join([*cells, f"{mean('seconds_per_epoch'):.1f}"]) + " |")
    return "\n".join(lines)


def _others(path: Path, recipes: list[str]) -> list[dict[str, Any]]:
    """Blocks of the file as it is, without the runs of `recipes`."""
    blocks = json.loads(path.read_text())["blocks"] if path.is_file() else []
    kept = [{**block, "runs": [run for run in block["runs"] if run["recipe"] not in recipes]} for block in blocks]
    return [block for block in kept if block["runs"]]


def main() -> None:
    """Train, write, print."""
    parser = argparse.ArgumentParser(description="The frameworks on the built-in images.", allow_abbrev=False)
    parser.add_argument("--frameworks", choices=FRAMEWORKS, nargs="+", default=FRAMEWORKS, help="all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/frameworks"), help="where the runs go")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parents[1] / "results" / "frameworks-builtin.json"
    )
    arguments = parser.parse_args()
    known = [f"{framework}-builtin-{variant}" for framework in FRAMEWORKS for variant in VARIANTS]
    known = [recipe for recipe in known if recipe in recipe_names()]
    recipes = [recipe for recipe in known if recipe.partition("-")[0] in arguments.frameworks]
    # Seed by seed, so that a study cut short has every recipe.
    trainings = [Training(recipe, seed, arguments.folder, _SETTINGS) for seed in arguments.seeds for recipe in recipes]
    with environment() as about:
        try:
            failed = train_all(trainings, lambda done: None)
        except StopError as stop:
            sys.exit(f"{stop}; go on with the same command")
        if failed:
            sys.exit(f"{len(failed)} of {len(trainings)} trainings failed; try again with the same command")
    runs = [row(training, run) for training in trainings if (run := training.result())]
    runs.sort(key=lambda run: known.index(run["recipe"]))
    document = {
        "what": _WHAT,
        "command": " ".join(["amcl-fast", "pretrain", "--recipe", "RECIPE", "--seed_everything", "SEED", *_SETTINGS]),
        "blocks": [
            *_others(arguments.output, recipes),
            {"machine": machine("cpu"), "environment": about, "runs": runs},
        ],
    }
    write_file(arguments.output, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    every = [run for block in document["blocks"] for run in block["runs"]]  # type: ignore[index]
    print(table(sorted(every, key=lambda run: known.index(run["recipe"]))))
