"""A long training, seen from outside: what its processes hold must not grow with the steps.

    python -m tests.helpers.soak --steps 5000 --every 50 --output soak.json

`amcl-fast pretrain` trains a small encoder on 16 pixels, measures kNN and saves every so many steps, and meets files
that go bad on the way. Memory (of the trainer alone, and of it with its helpers), file descriptors, threads, regions of
memory and processes are read from /proc every two seconds. Each tenth of the steps counts by its median of memory and
its least of the others: what leaks raises that, what is at work for a while does not. The trainer's own memory,
anonymous, is what must be flat: how much of a library's file is in memory is up to the system.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from amcl_fast.runs.directory import RunDirectory
from benchmarks import results
from tests.helpers.command_line import PRETRAIN, environment

_BATCH, _SIDE, _BAD = 16, 16, 5
_WHAT = "What a training of a small encoder and its helpers hold, by tenths of its steps: KiB, and numbers"
_WINDOWS, _SECONDS = 10, 2
_FLAT = 1.0
"""MiB that the trainer may grow by in 1,000 steps, over the last 80 % of them."""

_SETTINGS = """
data: {{root: {root}, size: {side}, batch_size: {batch}, num_threads: 1, device: cpu}}
model:
  class_path: amcl_fast.methods.SimCLR
  init_args:
    backbone: {{name: resnet18, stem: small, width: 8}}
    projector: {{heads: 2, hidden_dim: 16, dim: 8}}
    criterion:
      class_path: amcl_fast.SimCLRLoss
      init_args:
        temperature:
          class_path: amcl_fast.AdaptiveTemperature
          init_args: {{dim: 8, tau_min: 0.1, tau_max: 1.0, score: cosine}}
        negatives: topk_softmax
        top_k: 4
trainer: {{max_epochs: {epochs}, log_every_n_steps: 10, enable_progress_bar: false}}
knn: {{every_n_epochs: 1, k: 5, bank: 256, queries: 128}}
checkpoint: {{every_n_epochs: 1}}
"""


def _links(process: int | str) -> list[str]:
    """What the descriptors of a process are."""
    found, folder = [], f"/proc/{process}/fd"
    for descriptor in os.listdir(folder):
        with suppress(OSError):  # that of the listing itself
            found.append(os.readlink(f"{folder}/{descriptor}"))
    return [target for target in found if target != f"{os.path.realpath(f'/proc/{process}')}/fd"]


def held(process: int | str = "self") -> dict[str, int]:
    """What a process holds beside memory: descriptors, threads, mapped pieces of shared memory, child processes."""
    tasks = os.listdir(f"/proc/{process}/task")
    children = 0
    for task in tasks:
        with suppress(OSError):  # it has ended
            children += len(Path(f"/proc/{process}/task/{task}/children").read_text().split())
    return {
        "descriptors": len(_links(process)),
        "threads": len(tasks),
        "shared": sum("memfd:" in line for line in Path(f"/proc/{process}/maps").read_text().splitlines()),
        "children": children,
    }


def memory(process: int | str = "self") -> dict[str, int]:
    """KiB of a process: resident, its share of what others have too, and what is its alone and of no file."""
    lines = (line.split() for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:])
    found = {name: int(size) for name, size, _ in lines}
    return {"rss": found["Rss:"], "pss": found["Pss:"], "own": found["Anonymous:"]}


def _descendants(process: int) -> list[int]:
    found = [process]
    for parent in found:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                found += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
    return found


def sample(process: int) -> dict[str, float]:
    """The trainer, and `all_pss` and `all_descriptors` of it and all that it has started.

    Raises:
        OSError: it has ended.
    """
    maps = Path(f"/proc/{process}/maps").read_text().count("\n")
    mine = {**held(process), **memory(process), "maps": maps}
    every = {"all_pss": 0, "all_descriptors": 0, "processes": 0}
    for one in _descendants(process):
        with suppress(OSError, KeyError):  # it has ended
            every["all_pss"] += memory(one)["pss"]
            every["all_descriptors"] += len(_links(one))
            every["processes"] += 1
    return {**mine, **every}


def images(root: Path, count: int) -> list[Path]:
    """So many noisy PNGs in each of two classes to train on, a quarter of them held out; those to train on."""
    noise, files = np.random.default_rng(0), []
    for part, number in (("train", count), ("test", count // 4)):
        for label in "ab":
            (root / part / label).mkdir(parents=True)
            for place in range(number):
                files.append(root / part / label / f"{place:05}.png")
                Image.fromarray(noise.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)).save(files[-1])
    return files[: 2 * count]


def damage(path: Path) -> None:
    """Pixels that no look at the header finds."""
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") + 6
    content[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def _step(run: Path) -> int:
    """The one that was logged last."""
    with suppress(OSError), open(run / "metrics.csv", newline="") as file:
        steps = [row["step"] for row in csv.DictReader(file) if row.get("step", "").isdigit()]
        return int(steps[-1]) if steps else 0
    return 0


def windows(samples: list[dict[str, float]], steps: int) -> list[dict[str, float]]:
    """One for each tenth of the steps that has samples."""
    found = []
    for number in range(_WINDOWS):
        first, end = number * steps // _WINDOWS, (number + 1) * steps // _WINDOWS
        inside = [one for one in samples if first <= one["step"] < end]
        if inside:
            names = [name for name in inside[0] if name not in ("step", "seconds")]
            sizes = {"rss", "pss", "own", "all_pss"}
            found.append(
                {"until": end}
                | {n: float(np.median([one[n] for one in inside])) for n in names if n in sizes}
                | {n: min(one[n] for one in inside) for n in names if n not in sizes}
            )
    return found


def verdict(samples: list[dict[str, float]], steps: int) -> dict[str, float | bool]:
    """How the last 80 % of the steps went: growth in MiB for each 1,000 steps, and what else there is more of."""
    late = [one for one in samples if one["step"] >= steps / 5]
    found: dict[str, float | bool] = {}
    for name in ("rss", "own", "all_pss"):
        slope = np.polyfit([one["step"] for one in late], [one[name] for one in late], 1)[0]
        found[f"{name}_mib_per_1000_steps"] = round(1000 * float(slope) / 1024, 3)
    parts = windows(late, steps)
    for name in ("descriptors", "threads", "shared", "children", "maps", "all_descriptors", "processes"):
        found[f"more_{name}"] = parts[-1][name] - parts[0][name]
    counts = ("descriptors", "threads", "shared", "children", "all_descriptors", "processes")
    found["flat"] = bool(found["own_mib_per_1000_steps"] < _FLAT and not any(found[f"more_{n}"] > 0 for n in counts))
    return found


def soak(folder: Path, steps: int, every: int) -> dict:
    """Train in `folder`; what was seen."""
    files = images(folder / "images", every * _BATCH // 2 + _BAD)
    settings = folder / "soak.yaml"
    settings.write_text(_SETTINGS.format(root=folder / "images", side=_SIDE, batch=_BATCH, epochs=-(-steps // every)))
    run, samples, shown, bad = folder / "run", [], 0, 0
    command = [*PRETRAIN, "--config", str(settings), "--run_dir", str(run)]
    with open(folder / "output.txt", "wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=output, stderr=output)
        started = time.monotonic()
        while process.poll() is None:
            step = _step(run)
            with suppress(OSError):
                samples.append({"step": step, "seconds": round(time.monotonic() - started, 1), **sample(process.pid)})
            if bad < _BAD and step >= (bad + 1) * steps // (_BAD + 1):
                damage(files[bad * 97 % len(files)])
                bad += 1
            if samples and step // max(steps // _WINDOWS, 1) > shown:
                shown = step // max(steps // _WINDOWS, 1)
                print(_line(samples[-1]), flush=True)
            time.sleep(_SECONDS)
    if process.returncode:
        raise SystemExit(f"the training ended with {process.returncode}: {(folder / 'output.txt').read_text()[-2000:]}")
    # At the end a page is drawn, for which much is imported.
    samples = [one for one in samples if 0 < one["step"] < steps - every]
    skipped = RunDirectory(run).skipped
    return {
        "steps": steps,
        "evaluation_every": every,
        "batch": _BATCH,
        "size": _SIDE,
        "left_out": skipped.read_text().count("\n") if skipped.exists() else 0,
        "seconds": round(time.monotonic() - started, 1),
        "verdict": verdict(samples, steps),
        "windows": windows(samples, steps),
    }


def _line(found: dict[str, float]) -> str:
    sizes = f"RSS {found['rss'] / 1024:.1f} MiB, with helpers PSS {found['all_pss'] / 1024:.1f} MiB"
    counts = f"{found['descriptors']} descriptors, {found['threads']} threads, {found['processes']} processes"
    return f"step {found['step']:,}, {found['seconds']:.0f} s: {sizes}, {counts}, {found['maps']} regions"


def main(arguments: list[str] | None = None) -> int:
    """Its exit code: 1 where something grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--every", type=int, default=50, help="steps of an epoch, kNN after each")
    parser.add_argument("--output", type=Path, help="JSON of what was seen")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, results.environment() as about:
        found = soak(Path(folder), given.steps, given.every)
    found = {"what": _WHAT, "machine": results.machine("cpu"), "environment": about} | found
    if given.output:
        given.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["verdict"], indent=1))
    return 0 if found["verdict"]["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
