"""What figures are, and what there is to see in each with its numbers: for who cannot see it."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..runs.read import Run
from ..runs.snapshot import Snapshot
from .pictures import ranked_classes

CAPTIONS = {
    "knn.png": "A held-out image takes the class for which its nearest training images vote, by the encoder's "
    "features. Raw pixels and the untrained encoder show how much of it is learned. Probes, where drawn, are trained "
    "on the same features.",
    "classes.png": "Held-out images of each class for which kNN votes right, when it was measured last.",
    "nearest.png": "Held-out images, the first of their classes, and the training images whose features are nearest "
    "to theirs by the cosine. ✓ and a solid frame: of the same class; ✗ and a dashed one: of another.",
    "embedding.png": "Held-out images on the first two principal axes of the encoder's L2-normalised features, by "
    "class; ten classes at most.",
    "neighbourhoods.png": "The same images, placed such that near neighbours by the same features stay near; "
    "distances between groups mean little.",
    "loss.png": "The loss of one batch, as logged.",
    "losses.png": "The terms of the loss, as logged: each is multiplied by its weight and all are summed.",
    "learning_rate.png": "Of the first group of parameters, as logged.",
    "gradient_norm.png": "Of all gradients together, as logged.",
    "throughput.png": "Source images of all processes between two logged steps, and the share of that time in which "
    "training waited for them.",
    "temperature.png": "The temperature of the pairs that enter the loss.",
    "heads.png": "At the end of every epoch, in the last batch: positives and the negatives that the loss selects.",
    "histograms.png": "All heads together. Positives are two views of an image (in Barlow Twins, a channel in both "
    "views); hardest negatives, where drawn, are those the loss selects. Areas are equal, scales of rows are not.",
    "anchors.png": "Perplexity of the softmax of s/τ over the negatives that the loss takes of an anchor, as a share "
    "of their number: 1 where all weigh the same, small where a few decide. Beside it the τ of anchors, where each has "
    "one of its own.",
    "agreement.png": "Correlation between two heads of their similarities of the same negatives: heads that agree in "
    "everything (1) are one head.",
    "pairs.png": "What the encoder sees, without the normalisation of its inputs.",
    "made.png": "Grey patches are masked. The reconstruction keeps what was visible; where patches are predicted with "
    "their own mean and standard deviation taken out, these are those of the true patch. Noise is drawn enlarged: its "
    "largest standard deviation becomes that of the images' pixels.",
}

_ONE_HEAD, _OWN = 0.95, 0.5
"""Mean correlation of heads above which they count as one, and below which each is said to be of its own kind."""

_ALL, _FEW = 0.9, 0.1
"""Share of the negatives above which the softmax tells nothing apart, and below which a few decide."""

PHOTOGRAPHS = {"nearest.png", "pairs.png", "made.png"}


def caption(name: str, run: Run) -> str:
    """What a figure of a run is, and of some what it comes to."""
    return " ".join(filter(None, [CAPTIONS[name], _COMES_TO[name](run) if name in _COMES_TO else ""]))


def seen(name: str, run: Run) -> str:
    """What there is to see in a figure of a run, in a sentence or two with its numbers."""
    return _SEEN[name](run)


def _at(run: Run, step: float) -> str:
    epochs = run.epochs(np.array([step]))
    return f"step {step:,.0f}" if epochs is None else f"epoch {epochs[0]:.3g}"


def _course(run: Run, name: str, what: str, digits: str = ".4g", unit: str = "") -> str:
    """Where a metric begins and ends, and its least and greatest values."""
    steps, values = run.series(name)

    def told(value: float) -> str:
        return f"{value:{digits}}{unit}"

    if len(values) == 1:
        return f"{what}: {told(values[0])} at {_at(run, steps[0])}."
    return (
        f"{what}: from {told(values[0])} at {_at(run, steps[0])} to {told(values[-1])} at {_at(run, steps[-1])}, "
        f"between {told(values.min())} and {told(values.max())}."
    )


def _knn(run: Run) -> str:
    parts = [_course(run, "knn", "kNN accuracy", ".1f", " %")] if len(run.series("knn")[0]) else []
    baselines = {
        "knn_untrained": "Untrained encoder",
        "knn_pixels": "Raw pixels",
        "probe/untrained": "Probe of the untrained encoder",
    }
    for name, what in baselines.items():
        if (value := run.last(name)) is not None:
            parts.append(f"{what}: {value:.1f} %.")
    probes = (name for name in run.metrics if name.startswith("probe/") and name not in baselines)
    parts += [_course(run, name, f"Probe, {name.removeprefix('probe/')}", ".1f", " %") for name in probes]
    return " ".join(parts)


def _classes(run: Run) -> str:
    assert run.neighbours is not None
    ranked = ranked_classes(run.neighbours)
    best = ", ".join(f"{name} {accuracy:.0f} %" for name, accuracy in ranked[:3])
    worst = ", ".join(f"{name} {accuracy:.0f} %" for name, accuracy in ranked[-3:])
    return f"Bars of kNN accuracy by class. Best of {len(ranked):,}: {best}. Worst: {worst}."


def _nearest(run: Run) -> str:
    kept = run.neighbours
    assert kept is not None
    same = kept.labels[:, 1:] == kept.labels[:, :1]
    rows = [
        f"{kept.classes[labels[0]]}: {right.sum()} of {len(right)}"
        for labels, right in zip(kept.labels, same, strict=True)
    ]
    return (
        f"{len(kept.images)} held-out images, each with its {same.shape[1]} nearest training images; "
        f"{same.sum()} of {same.size} are of the same class. By class: {'; '.join(rows)}."
    )


def _embedding(run: Run) -> str:
    parts = [
        f"{_moment(run, shot).capitalize()}, {len(shot.embedding):,} dots of {len(shot.classes)} classes; the two axes "
        f"show {shot.embedding_variance.sum():.0%} of the variance."
        for shot in _shots(run)
        if len(shot.embedding)
    ]
    return "Scatter plots of features. " + " ".join(parts)


def _neighbourhoods(run: Run) -> str:
    shot = [shot for shot in _shots(run) if len(shot.map)][-1]
    return f"Scatter plot by {shot.map_name} of {len(shot.map):,} held-out images of {len(shot.classes)} classes."


def _parts(run: Run) -> str:
    names = [name for name in run.metrics if name.startswith("loss_")]
    return " ".join(_course(run, name, f"Term {name.removeprefix('loss_')}") for name in names)


def _throughput(run: Run) -> str:
    speed = run.series("images_per_second")[1]
    median = f"Images per second: median {np.median(speed):,.0f}, from {speed.min():,.0f} to {speed.max():,.0f}."
    waiting = run.series("wait_share")[1]
    return f"{median} Waiting for data: {waiting.mean():.1%} of the time on average." if len(waiting) else median


def _temperature(run: Run) -> str:
    if run.tau_kind == "learned":
        return _course(run, "tau_positive_mean", "Temperature of all pairs")
    if run.tau_per_anchor:
        return _course(run, "tau_positive_mean", "Temperature of anchors, mean")
    kinds = (("positive", "Temperature of positives, mean"), ("negative", "Of selected negatives, mean"))
    told = (_course(run, f"tau_{kind}_mean", what) for kind, what in kinds if len(run.series(f"tau_{kind}_mean")[0]))
    return " ".join(told)


def _heads(run: Run) -> str:
    last = ", ".join(f"head {head + 1}: {values[-1]:.3g}" for head, (_, values) in enumerate(run.heads("positive")))
    return f"Mean temperature of {'anchors' if run.tau_per_anchor else 'positives'} of each head at the end: {last}."


def _histograms(run: Run) -> str:
    parts = [
        f"{_moment(run, shot).capitalize()}: similarity of positives {shot.positive_similarity.mean():.2f} on average, "
        f"of all negatives {shot.random_similarity.mean():.2f}; temperature of positives "
        f"{shot.positive_tau.mean():.3g}, of all negatives {shot.random_tau.mean():.3g}."
        for shot in _shots(run)
    ]
    return "Histograms of pairs. " + " ".join(parts)


def _agreement(run: Run) -> str:
    parts = []
    for shot in _shots(run):
        if (heads := len(shot.random_similarity)) > 1:
            others = agreements(shot)
            of = f"{others.min():.2f} to {others.max():.2f}"
            parts.append(f"{_moment(run, shot).capitalize()} {heads} heads correlate by {of}.")
    return " ".join(parts)


def _agree(run: Run) -> str:
    shot = _shots(run)[-1]
    mean = agreements(shot).mean()
    if mean > _ONE_HEAD:
        what = "nothing makes them differ"
    else:
        what = "they differ in part" if mean > _OWN else "each finds other images alike"
    return f"{_moment(run, shot).capitalize()} heads agree to {mean:.2f} on average: {what}."


def _anchors(run: Run) -> str:
    parts = []
    for shot in _shots(run):
        if shot.perplexity.size:
            taus = f"; their τ {_middle(shot.positive_tau)}" if run.tau_per_anchor else ""
            told = f"the softmax of anchors has a perplexity of {_middle(shot.perplexity)} of its negatives{taus}"
            parts.append(f"{_moment(run, shot).capitalize()} {told}.")
    return "Histograms of anchors, by head. " + " ".join(parts)


def _middle(values: NDArray[np.float32]) -> str:
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95))
    return f"{median:.2g} in the median, {low:.2g} to {high:.2g} in nine of ten"


def _spread(run: Run) -> str:
    shot = [shot for shot in _shots(run) if shot.perplexity.size][-1]
    median = float(np.median(shot.perplexity))
    if median > _ALL:
        what = ": nearly all weigh the same, none counts as hard"
    else:
        what = ": few of them decide" if median < _FEW else ""
    if run.setting("model.init_args.criterion.init_args.negatives") == "topk_mean":
        what = "; the loss has no softmax, it takes their mean"
    when = _moment(run, shot).capitalize()
    told = [f"{when} the softmax of the median anchor spreads over {median:.0%} of its negatives{what}."]
    if shot.per_anchor:
        low, high = np.quantile(shot.positive_tau, (0.05, 0.95), axis=1)
        same = (high < 1.01 * low).all()
        told.append(
            "Anchors do not differ in τ." if same else f"τ differs between anchors by {(high / low).max():.2g}×."
        )
    return " ".join(told)


def _pairs(run: Run) -> str:
    shot = run.before or run.after
    assert shot is not None
    return f"{shot.views.shape[1]} images, each augmented in two ways."


def _made(run: Run) -> str:
    shot = run.after or run.before
    assert shot is not None
    return f"{shot.pictures.shape[1]} images, each as: {', '.join(shot.picture_names.tolist())}."


def agreements(shot: Snapshot) -> NDArray[np.float64]:
    """The heads' agreement, pair by pair of different ones, (C·(C − 1)/2,)."""
    return shot.agreement[np.triu_indices(len(shot.random_similarity), 1)]


def _shots(run: Run) -> list[Snapshot]:
    return [shot for shot in (run.before, run.after) if shot is not None]


def _moment(run: Run, shot: Snapshot) -> str:
    return "before training" if shot is run.before else f"after {shot.step:,} steps"


_SEEN: dict[str, Callable[[Run], str]] = {
    "knn.png": _knn,
    "classes.png": _classes,
    "nearest.png": _nearest,
    "embedding.png": _embedding,
    "neighbourhoods.png": _neighbourhoods,
    "loss.png": lambda run: _course(run, "loss", "Training loss"),
    "losses.png": _parts,
    "learning_rate.png": lambda run: _course(run, "lr", "Learning rate"),
    "gradient_norm.png": lambda run: _course(run, "gradient_norm", "Gradient norm"),
    "throughput.png": _throughput,
    "temperature.png": _temperature,
    "heads.png": _heads,
    "histograms.png": _histograms,
    "anchors.png": _anchors,
    "agreement.png": _agreement,
    "pairs.png": _pairs,
    "made.png": _made,
}

_COMES_TO: dict[str, Callable[[Run], str]] = {"anchors.png": _spread, "agreement.png": _agree}
