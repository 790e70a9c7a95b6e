"""Results of studies of similarities, made by hand: two normal distributions of similarities, temperatures beside."""

import numpy as np

from amcl_fast.study.overlap import look, summary
from tests.helpers.shots import snapshot

ABOUT = {
    "what": "overlap",
    "command": "amcl-fast study <b>",
    "machine": {"name": "Some Processor 1", "cores": 2},
    "environment": {"torch": "2.11.0", "date": "2026-01-02", "commit": "0123456789", "dirty": False},
}


def shot(positive, *, heads=1, adaptive=False, seed=0):
    """Positives of a mean similarity beside negatives around 0; the hardest, and τ rising with similarity: adaptive."""
    random = np.random.default_rng(seed)

    def normal(mean, size):
        return random.normal(mean, 0.15, (heads, size)).clip(-1, 1).astype(np.float32)

    similarity = {"positive": normal(positive, 256), "random": normal(0, 1024), "hardest": normal(0.4, 1024)}
    tau = {kind: (0.5 + 0.25 * of if adaptive else np.full_like(of, 0.5)) for kind, of in similarity.items()}
    arrays = {f"{kind}_similarity": of for kind, of in similarity.items()}
    arrays |= {f"{kind}_tau": of for kind, of in tau.items()}
    return snapshot(seed, tau=(0.1, 1.0) if adaptive else (0.5, 0.5), top_k=100 * adaptive, heads=heads, **arrays)


def row(cell, seed, positive, *, heads=1, adaptive=False, **given):
    """Of a training after which positives have this mean similarity, and 0.2 before it."""
    return {
        **cell,
        "seed": seed,
        "run": f"{'-'.join(map(str, cell.values()))}-{seed}",
        "knn": 40.0 + seed,
        "seconds": 60.0,
        "training_images": 100,
        "machine": {"device": "cpu"},
        "tau_kind": "adaptive" if adaptive else "constant",
        "before": look(shot(0.2, heads=heads, adaptive=adaptive, seed=seed), adaptive=adaptive),
        "after": look(shot(positive, heads=heads, adaptive=adaptive, seed=seed), adaptive=adaptive),
        **given,
    }


def results(rows, cells, reference, left=0, **options):
    """What study.json holds of them."""
    return {**ABOUT, **options, "left": left, **summary(rows, cells, reference), "trainings": rows}
