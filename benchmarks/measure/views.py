"""What more views cost: a training step on them, beside one of two views with as many pixels.

    python -m benchmarks.measure.views

times steps (loss, gradients, optimiser, momentum encoder) of a ResNet-18 under each framework, baseline and AMCL, on
images that are there already: two views of `BATCH` images, four of half as many, and two with six of half the side, of
4/7 as many. All three are the same number of pixels for the encoder that learns; MoCo's key encoder reads the large
views alone. The layouts are timed in turn, round by round. Writes benchmarks/results/views.json and prints its table.
The JSON holds "what", "machine", "environment" (as benchmarks.results has them), "settings", "predicted" (ratios
written down before the first measurement) and "rows": framework, kind, layout, images, median milliseconds of a step
and of the processor's time in it, and `ratio` and `processor_ratio`, the medians over the rounds of its time divided by
that of two views.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amcl_fast import BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss
from amcl_fast.methods import BarlowTwins, Method, MoCo, SimCLR, SimSiam
from amcl_fast.models import BackboneConfig, ProjectorConfig
from amcl_fast.optim import OptimizerConfig, build_optimizer
from amcl_fast.runs.files import write_file

from ..results import environment, machine, rounded

BATCH, SIZE = 112, 64
KINDS = ("baseline", "amcl")
# By name: views of the whole and of half the side, and images as a share of those of two views.
LAYOUTS = {"2": (2, 0, (1, 1)), "4": (4, 0, (1, 2)), "2 + 6": (2, 6, (4, 7))}
PREDICTED = {
    "what": "On paper: a second gradient of every weight and short rows of products for the small views, +3 %; the "
    "rest are the losses, of which there are more pairs, and MoCo's keys, 43 % fewer pixels",
    "SimCLR": {"baseline": {"4": 1.0, "2 + 6": 1.03}, "amcl": {"4": 1.0, "2 + 6": 1.03}},
    "MoCo": {"baseline": {"4": 1.01, "2 + 6": 0.93}, "amcl": {"4": 1.04, "2 + 6": 0.95}},
    "SimSiam": {"baseline": {"4": 1.0, "2 + 6": 1.03}, "amcl": {"4": 1.0, "2 + 6": 1.03}},
    "BarlowTwins": {"baseline": {"4": 1.01, "2 + 6": 1.03}, "amcl": {"4": 1.01, "2 + 6": 1.04}},
}

Step = Callable[[], None]


def method(framework: str, kind: str, batch: int, backbone: BackboneConfig) -> Method:
    """A framework with the heads of its recipes, an eighth as wide for SimSiam and Barlow Twins."""
    adaptive, narrow = kind == "amcl", framework in ("SimCLR", "MoCo")
    dim = 128 if narrow else 256
    projector = ProjectorConfig(3 if adaptive else 1, 512 if narrow else 256, dim, not narrow, 2 if narrow else 3)
    common: dict[str, Any] = {"backbone": backbone, "projector": projector, "optimizer": OptimizerConfig(lr=0.01)}
    infonce: dict[str, Any] = {"negatives": "softmax", "include_positive": True}
    if framework == "SimCLR":
        return SimCLR(SimCLRLoss.recommended(dim) if adaptive else SimCLRLoss(0.5, **infonce), **common)
    if framework == "MoCo":
        return MoCo(MoCoLoss.recommended(dim) if adaptive else MoCoLoss(0.1, **infonce), **common)
    if framework == "SimSiam":
        return SimSiam(SimSiamLoss.recommended(dim) if adaptive else SimSiamLoss(), **common)
    return BarlowTwins(BarlowTwinsLoss.recommended(batch) if adaptive else BarlowTwinsLoss(), **common)


def images_of(layout: str, batch: int) -> int:
    """Images of a layout with as many pixels as two views of `batch` have.

    Raises:
        ValueError: their number is not whole.
    """
    share, of = LAYOUTS[layout][2]
    if batch * share % of:
        raise ValueError(f"batch must be a multiple of 14, got {batch}")
    return batch * share // of


def views_of(layout: str, batch: int, size: int) -> list[Tensor]:
    """Random images of a layout, channels last."""
    large, small, _ = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(0)
    shapes = [(images_of(layout, batch), 3, side, side) for side in [size] * large + [size // 2] * small]
    return [torch.randn(s, generator=generator).to(memory_format=torch.channels_last) for s in shapes]


def step_of(framework: str, kind: str, layout: str, batch: int, size: int, backbone: BackboneConfig) -> Step:
    """A whole training step, without a trainer."""
    torch.manual_seed(0)
    module = method(framework, kind, images_of(layout, batch), backbone).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(module, module.optimizer_config)
    views = views_of(layout, batch, size)

    def step() -> None:
        optimizer.zero_grad()
        module.loss_of_views(views).backward()
        module.on_after_backward()
        optimizer.step()
        if isinstance(module, MoCo):
            module.key_encoder.update(module.backbone, module.projector)

    return step


def measure(steps: dict[str, Step], rounds: int) -> dict[str, dict[str, float]]:
    """Of each layout: medians of both clocks, and of their ratios to the first layout's in the same round."""
    for step in steps.values():
        step()
    times: dict[str, list[tuple[float, float]]] = {layout: [] for layout in steps}
    for _ in range(rounds):
        for layout, step in steps.items():
            wall, processor = time.perf_counter(), time.process_time()
            step()
            times[layout].append(((time.perf_counter() - wall) * 1e3, (time.process_time() - processor) * 1e3))
    first = next(iter(times.values()))
    found = {}
    for layout, of in times.items():
        ratios = [(a / c, b / d) for (a, b), (c, d) in zip(of, first, strict=True)]
        columns = [*zip(*of, strict=True), *zip(*ratios, strict=True)]
        names = ("median_ms", "processor_ms", "ratio", "processor_ratio")
        found[layout] = dict(zip(names, map(statistics.median, columns), strict=True))
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, a line for each framework and kind."""
    lines = ["| | two views, ms | " + " | ".join(f"{layout} views" for layout in LAYOUTS if layout != "2") + " |"]
    lines.append("|---|---|" + "---|" * (len(LAYOUTS) - 1))
    for framework, kind in dict.fromkeys((row["framework"], row["kind"]) for row in rows):
        two, *others = [row for row in rows if (row["framework"], row["kind"]) == (framework, kind)]
        cells = [f"{framework}, {kind}", f"{two['median_ms']:.0f}", *(f"{row['ratio']:.2f}" for row in others)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description="What more views cost.", allow_abbrev=False)
    parser.add_argument("--frameworks", nargs="+", default=list(PREDICTED)[1:])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=BATCH, help="images of two views, a multiple of 14")
    parser.add_argument("--size", type=int, default=SIZE, help="side of the large views")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results" / "views.json")
    arguments = parser.parse_args()
    rows = []
    with environment() as about:
        for framework in arguments.frameworks:
            for kind in KINDS:
                given = (arguments.batch, arguments.size, BackboneConfig("resnet18"))
                steps = {layout: step_of(framework, kind, layout, *given) for layout in LAYOUTS}
                # Rounded once: what is printed is what is written.
                for layout, found in rounded(measure(steps, arguments.rounds), 4).items():
                    images = images_of(layout, arguments.batch)
                    rows.append({"framework": framework, "kind": kind, "layout": layout, "images": images, **found})
                print(table(rows[-len(LAYOUTS) :]).splitlines()[-1], flush=True)
    document = {
        "what": "Time of a training step on more views and on two views with as many pixels, ResNet-18, float32",
        "machine": machine("cpu"),
        "environment": about,
        "settings": {name: getattr(arguments, name) for name in ("batch", "size", "rounds")},
        "predicted": PREDICTED,
        "rows": rows,
    }
    write_file(arguments.output, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
