"""The report of a run: one HTML page that needs nothing beside it, the figures as files, and a summary."""

import json
import warnings
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..runs.directory import CONFIG, PAGE, SKIPPED, SUMMARY, RunDirectory
from ..runs.files import write_file
from ..runs.in_place import make_within, refuse_links
from ..runs.read import Run, read_run
from ..runs.shapes import Facts
from .figures import draw_figures
from .html import document, figure, figures, table
from .words import PHOTOGRAPHS, agreements, caption, seen

_LISTED = 100
"""Skipped files that the page names; all of them are in the run's list."""

FINISHED = {True: "finished", False: "not finished", None: "not known to have finished"}

_SETTINGS = {
    "data": "data.root",
    "held out": "data.held_out",
    "measured on": "data.evaluation",
    "image size": "data.size",
    "batch size": "data.batch_size",
    "augmentations": "data.augmentation",
    "method": "model.class_path",
    "backbone": "model.init_args.backbone",
    "heads": "model.init_args.projector",
    "loss": "model.init_args.criterion",
    "optimiser": "model.init_args.optimizer",
    "schedule": "model.init_args.schedule",
    "epochs": "trainer.max_epochs",
    "precision": "trainer.precision",
    "gradient clip": "trainer.gradient_clip_val",
    "seed": "seed_everything",
}


def write_report(run_dir: Path) -> Path:
    """Write report/index.html, its figures and summary.json from what lies in a run directory.

    Whatever the run has not logged yet is left out, so this also works while it goes on; what is damaged, but for
    metrics.csv, is left out with a warning, and the page names it.

    Args:
        run_dir: folder of the run.

    Returns:
        The path of the page, which is complete in itself.

    Raises:
        FileNotFoundError: `run_dir` is not a run directory.
        ValueError: metrics.csv is damaged.
        OSError: the report cannot be written.
    """
    run = read_run(run_dir, partly=True)
    folder = RunDirectory(run.folder).report
    refuse_links(folder)
    tell_damaged([run])
    drawn = draw_figures(run)
    summary = summarise(run)
    make_within(run.folder, folder)
    for name, content in drawn.items():
        write_file(folder / name, content)
    write_file(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    page = folder / PAGE
    write_file(page, _page(run, summary, drawn))
    return page


def tell_damaged(runs: Iterable[Run]) -> None:
    """Warn of what reports of runs lack since a file is damaged."""
    for run in runs:
        for line in run.damaged.values():
            warnings.warn(f"{line}; the report goes without it", stacklevel=3)


def summarise(run: Run) -> dict[str, Any]:
    """The results of a run as plain numbers; None for what was not logged, or is not known."""
    loss, knn = run.series("loss"), run.series("knn")
    speed, waiting = run.series("images_per_second")[1], run.series("wait_share")[1]
    shot = run.after
    return {
        "run": run.folder.resolve().name,
        "finished": run.facts.get("finished"),
        "steps": int(loss[0][-1]) + 1 if len(loss[0]) else 0,  # that of a run which has ended is among its facts
        "loss": run.last("loss"),
        "knn": {
            "pixels": run.last("knn_pixels"),
            "untrained": run.last("knn_untrained"),
            "trained": run.last("knn"),
            "best": float(knn[1].max()) if len(knn[1]) else None,
        },
        "linear": {name: found["linear"]["top1"] for name, found in run.evaluations.items()},
        "images_per_second": float(np.median(speed)) if len(speed) else None,
        "wait_share": float(waiting.mean()) if len(waiting) else None,
        "temperature": {
            name: run.last(f"tau_{name}")
            for who in ("positive", "negative")
            for name in (f"{who}_mean", f"{who}_std", f"{who}_min", f"{who}_at_bound")
        },
        "perplexity": float(shot.perplexity.mean()) if shot is not None and shot.perplexity.size else None,
        "agreement": float(agreements(shot).mean()) if shot is not None and len(shot.positive_tau) > 1 else None,
        "skipped_files": None if SKIPPED in run.damaged else run.num_skipped,
        **{name: value for name, value in run.facts.items() if name in Facts.__annotations__},
        "damaged": list(run.damaged.values()),
    }


def _page(run: Run, summary: dict[str, Any], drawn: dict[str, bytes]) -> str:
    name = escape(str(summary["run"]))
    status = FINISHED[summary["finished"]]
    parts = [
        f"<h1>{name}</h1><p class=sub>{status} · {_length(run, summary)}</p>",
        damaged_files([run]),
        _results(summary),
        "<h2>Linear probe</h2>" + table(_probes(run)) if run.evaluations else "",
        figures(
            figure(content, caption(file, run), seen(file, run), photographs=file in PHOTOGRAPHS)
            for file, content in drawn.items()
        ),
        "<h2>Speed</h2>" + table(_speed(summary)),
        "<h2>Heads</h2>" + _heads(run) if run.after else "",
        "<h2>Settings</h2>" + table(_settings(run)),
        "<h2>Files left out</h2>" + _skipped(run),
        "<h2>Made with</h2>" + table({**run.facts.get("versions", {}), **run.facts.get("machine", {})}),
    ]
    if run.settings:
        text = yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True)
        parts.append(f"<h2>All settings</h2><details><summary>{CONFIG}</summary><pre>{escape(text)}</pre></details>")
    return document(name, parts)


def damaged_files(runs: Iterable[Run]) -> str:
    """What pages of runs lack, and why."""
    lines = "".join(f"<li>{escape(line)}</li>" for run in runs for line in run.damaged.values())
    return f"<h2>Left out</h2><p>What these files hold is not shown.</p><ul>{lines}</ul>" if lines else ""


def _length(run: Run, summary: dict[str, Any]) -> str:
    steps = f"{summary['steps']:,} optimiser steps" + ("" if "steps" in run.facts else " logged")
    if summary["steps"] and (epochs := run.epochs(np.array([summary["steps"] - 1.0]))) is not None:
        total = summary.get("epochs")
        of = f" of {total:,}" if isinstance(total, int) and total > 0 else ""
        return f"{epochs[0]:.4g}{of} epochs, {steps}"
    return steps


def _probes(run: Run) -> dict[str, str]:
    return {
        name: f"{probe['top1']:.2f} % at rate {probe['rate']:g}, {probe['epochs']} epochs, {probe['training_images']}"
        for name, probe in ((name, found["linear"]) for name, found in run.evaluations.items())
    }


def _results(summary: dict[str, Any]) -> str:
    labels = {"pixels": "raw pixels", "untrained": "untrained encoder", "trained": "trained encoder"}
    boxes = [
        f"<div{' class=best' if key == 'trained' else ''}><b>{value:.1f} %</b>{label}</div>"
        for key, label in labels.items()
        if (value := summary["knn"][key]) is not None
    ]
    why = summary.get("unmeasurable")
    if boxes:
        parts = [f"<h2>kNN accuracy</h2><div class=results>{''.join(boxes)}</div>", _measured_on(summary)]
        if why:
            parts.append(f"<p>Not measured any more: {escape(str(why))}.{_last_measured(summary)}</p>")
        return "".join(parts)
    return f"<h2>kNN accuracy</h2><p>Not measured: {escape(str(why))}.</p>" if why else ""


def _last_measured(summary: dict[str, Any]) -> str:
    epoch = summary.get("measured_epoch")
    return f" The figure of the trained encoder is of epoch {epoch}." if isinstance(epoch, int) else ""


def _measured_on(summary: dict[str, Any]) -> str:
    """What the figures are of, those of before a resume that took another sample included."""
    counts = _images(summary.get("measured_images"))
    if counts is None:  # of earlier versions
        return ""
    told, since = [f"Of {counts}."], "Before training and up"
    before = summary.get("measured_before")
    for entry in before if isinstance(before, list) else ():
        others = _images(entry)
        if others is not None and others != counts:
            when = f"{since} to epoch {epoch}" if (epoch := entry.get("epoch")) else "Before training"
            told.append(f"{when}: of {others}.")
        since = "Up"
    return f"<p>{' '.join(told)}</p>"


def _images(counts: Any) -> str | None:
    if not isinstance(counts, dict) or not all(isinstance(counts.get(name), int) for name in ("bank", "queries")):
        return None
    return f"{counts['queries']:,} held-out images, by {counts['bank']:,} training images"


def _speed(summary: dict[str, Any]) -> dict[str, str]:
    rows = {}
    if (speed := summary["images_per_second"]) is not None:
        rows["images per second"] = f"{speed:,.0f} (median)"
    if (share := summary["wait_share"]) is not None:
        rows["waiting for data"] = f"{share:.1%} of the time"
    if (seconds := summary.get("seconds")) is not None:
        rows["training took"] = f"{seconds:,.0f} s"
    return rows


def _settings(run: Run) -> dict[str, str]:
    rows = {label: run.setting(path) for label, path in _SETTINGS.items()}
    return {label: _plain(value) for label, value in rows.items() if value is not None}


def _plain(value: Any) -> str:
    """A setting on one line: a class by its last name, then what it is made with."""
    if isinstance(value, dict):
        if "class_path" in value:
            name = str(value["class_path"]).rpartition(".")[2]
            return f"{name}({_plain(value.get('init_args') or {})})"
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item not in (None, {}, []))
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _heads(run: Run) -> str:
    """Means of every head after training."""
    shot = run.after
    assert shot is not None
    negatives = "hardest negatives" if shot.top_k else "negatives"
    columns = {
        "s of positives": shot.positive_similarity,
        f"s of {negatives}": shot.hardest_similarity,
    }
    if shot.per_anchor:
        columns["τ of anchors"] = shot.positive_tau
    else:
        columns |= {"τ of positives": shot.positive_tau, f"τ of {negatives}": shot.hardest_tau}
    if shot.perplexity.size:
        columns["perplexity"] = shot.perplexity
    head = "".join(f"<th class=number>{label}</th>" for label in columns)
    rows = [
        f"<tr><td>{number + 1}</td>"
        + "".join(f"<td class=number>{values[number].mean():.3f}</td>" for values in columns.values())
        + "</tr>"
        for number in range(len(shot.positive_tau))
    ]
    return f"<div class=wide><table class=grid><tr><th>head</th>{head}</tr>{''.join(rows)}</table></div>"


def _skipped(run: Run) -> str:
    if SKIPPED in run.damaged:
        return f"<p>Not known: {SKIPPED} is damaged.</p>"
    if not run.skipped:
        return "<p>Nothing: every file is an image that is used.</p>"
    listed = table(dict(run.skipped[:_LISTED]))
    rest = run.num_skipped - _LISTED
    more = f"<p>and {rest:,} more, in {SKIPPED}</p>" if rest > 0 else ""
    return f"<p>Files and folders that were not used: {run.num_skipped:,}.</p>{listed}{more}"
