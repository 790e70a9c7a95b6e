"""Snapshots and run directories made by hand."""

import json

import numpy as np

from amcl_fast.report import Snapshot
from amcl_fast.runs.directory import RunDirectory, write_facts, write_skipped
from amcl_fast.runs.neighbours import Neighbours


def snapshot(step=0, tau=(0.1, 1.0), top_k=4, heads=2, framework="SimCLR", **arrays):
    """A snapshot of random numbers; tau=(t, t) is a constant temperature."""
    random = np.random.default_rng(step)

    def similarity(size):
        return random.uniform(-1, 1, (heads, size)).astype(np.float32)

    def temperature(size):
        return random.uniform(*tau, (heads, size)).astype(np.float32)

    return Snapshot(
        framework=framework,
        step=step,
        tau_min=tau[0],
        tau_max=tau[1],
        top_k=top_k,
        **{
            "positive_similarity": similarity(16),
            "positive_tau": temperature(16),
            "hardest_similarity": similarity(64),
            "hardest_tau": temperature(64),
            "random_similarity": similarity(64),
            "random_tau": temperature(64),
            "views": random.integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8),
            "embedding": random.standard_normal((12, 2)).astype(np.float32),
            "embedding_variance": np.array([0.5, 0.25], np.float32),
            "labels": np.arange(12) % 3,
            "classes": np.array(["ant", "bee", "cow"]),
            **arrays,
        },
    )


METRICS = """\
step,epoch,loss,images_per_second,wait_share,tau_positive_mean,tau_positive_std,tau_positive_min,\
tau_negative_mean,tau_negative_std,tau_negative_min,knn_pixels,knn_untrained,knn,\
tau_positive_head_0,tau_positive_head_1,tau_negative_head_0,tau_negative_head_1
0,,,,,,,,,,,11.5,17.25,,,,,
4,0,6.5,900,0.1,0.5,0.1,0.2,0.6,0.1,0.25,,,,,,,
9,0,,,,,,,,,,,,41.5,0.4,0.3,0.5,0.6
9,0,5.25,1100,0.3,0.4,0.1,0.15,0.5,0.1,0.2,,,,,,,
14,1,4.75,1000,0.2,0.3,0.1,0.1,0.45,0.1,0.2,,,,,,,
19,1,,,,,,,,,,,,62.75,0.2,0.25,0.5,0.7
"""


def neighbours(classes=3, queries=2):
    """What kNN found of so many classes, the first of which it knows best; every second neighbour is of another."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(queries)[:, None] % classes, 5, 1)
    labels[:, 2::2] = (labels[:, 2::2] + 1) % classes
    return Neighbours(
        step=20,
        classes=np.array([f"class {number}" for number in range(classes)]),
        right=np.arange(classes)[::-1],
        asked=np.full(classes, classes),
        images=random.integers(0, 256, (queries, 5, 8, 8, 3), dtype=np.uint8),
        labels=labels,
        similarity=np.full((queries, 4), 0.5, np.float32),
    )


def run_directory(folder, *, before=None, after=None, metrics=METRICS, found=None):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.csv").write_text(metrics)
    if found is not None:
        found.save(RunDirectory(folder).neighbours)
    for moment, shot in (("before", before), ("after", after)):
        if shot is not None:
            shot.save(RunDirectory(folder).snapshot(moment))
    return folder


def whole_run(folder):
    """A run directory with all that a run and `amcl-fast evaluate` leave but for checkpoints, of a study's training."""
    run_directory(folder, before=snapshot(), after=snapshot(19), found=neighbours(), metrics="")
    files = RunDirectory(folder)
    files.metrics.write_bytes(METRICS.replace("\n", "\r\n").encode())
    files.config.write_text(
        "data: {root: /data, size: 32}\n"
        "model: {class_path: amcl_fast.methods.SimCLR, init_args: {backbone: {name: resnet18}}}\n"
        "trainer: {max_epochs: 2}\nknn: {every_n_epochs: 1}\n"
    )
    facts = {
        "finished": True,
        "data": "/data",
        "training_images": 16,
        "classes": 3,
        "epochs": 2,
        "steps": 20,
        "measured_images": {"bank": 16, "queries": 20},
        "measured_before": [{"epoch": 1, "bank": 8, "queries": 20}],
        "measured_epoch": 2,
        "unmeasurable": None,
        "steps_per_epoch": 10,
        "seconds": 12.5,
        "versions": {"torch": "2.11"},
        "machine": {"device": "cpu", "processes": 1},
    }
    write_facts(folder, facts)
    write_skipped(folder, [("/a/b.jpg", "empty file")])
    probe = {"top1": 60.0, "rate": 0.1, "epochs": 1, "training_images": "features computed once"}
    files.evaluation("images").write_text(json.dumps({"queries": 20, "linear": probe}))
    four = dict.fromkeys(("knn", "ridge", "knn_recalibrated", "ridge_recalibrated"), 50.0)
    files.measures.write_text(json.dumps({**four, "penalty": {"ridge": 1.0}, "images": {"bank": 16}, "step": 20}))
    return folder
