"""amcl_fast.report.figures: which figures a run gets, and that they show what they say."""

import io

import numpy as np
import pytest
from PIL import Image

from amcl_fast.report import curves, pictures, read_run
from amcl_fast.report import style as module
from amcl_fast.report.figures import draw_figures
from amcl_fast.report.words import caption, seen
from tests.helpers.shots import neighbours, run_directory, snapshot

pytestmark = pytest.mark.slow

PAIRS = {"positive": 16, "hardest": 64, "random": 64}
"""Of a snapshot by hand."""


def picture(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def has_colour(png, colour, least=100):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (abs(picture(png).astype(int) - wanted).max(-1) < 12).sum() > least


def figures(folder, **parts):
    return draw_figures(read_run(run_directory(folder, **parts)))


def run(folder, **parts):
    return read_run(run_directory(folder, **parts))


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_finished_run_gets_all_figures(tmp_path):
    found = figures(tmp_path, before=snapshot(), after=snapshot(19))
    assert list(found) == [
        "knn.png",
        "embedding.png",
        "loss.png",
        "throughput.png",
        "temperature.png",
        "heads.png",
        "histograms.png",
        "agreement.png",
        "pairs.png",
    ]
    for png in found.values():
        assert picture(png).std() > 5
    for name in ("knn.png", "temperature.png", "histograms.png", "heads.png"):
        assert has_colour(found[name], module.BLUE) and has_colour(found[name], module.RED)


def test_a_run_that_just_began_gets_what_there_is(tmp_path):
    found = figures(tmp_path, metrics="step,loss,knn_pixels\n0,,11\n1,5.0,\n")
    assert list(found) == ["knn.png", "loss.png"]
    assert not has_colour(found["knn.png"], module.BLUE, least=1000)


def test_many_classes_have_the_best_and_the_worst_alone(tmp_path):
    few, many = (pictures.classes(run(tmp_path / f"{n}", found=neighbours(n))).axes[0] for n in (24, 1000))
    assert [text.get_text() for text in few.get_yticklabels()] == [f"class {number}" for number in range(24)]
    best_and_worst = [*range(12), *range(988, 1000)]
    assert [text.get_text() for text in many.get_yticklabels()] == [f"class {number}" for number in best_and_worst]
    assert [bar.get_width() for bar in many.patches][::23] == pytest.approx([99.9, 0.0])
    assert "best and worst of 1,000" in many.get_title()


def test_a_probe_is_drawn_beside_knn(tmp_path):
    metrics = "step,knn,knn_untrained,probe/accuracy,probe/untrained\n0,,20,,25\n4,40,,45,\n9,50,,60,\n"
    axes = curves.knn(run(tmp_path, metrics=metrics)).axes[0]
    assert {line.get_label() for line in axes.lines} == {
        "kNN, trained encoder",
        "untrained encoder, 20.0 %",
        "linear probe, 60.0 %",
        "probe, untrained encoder, 25.0 %",
    }
    assert axes.get_title() == "Accuracy on held-out images" and axes.get_xlabel() == "optimiser step"


def test_neighbours_of_another_class_are_told_by_marks_and_frames(tmp_path):
    figure = pictures.nearest(run(tmp_path, found=neighbours()))
    marks = [axes.get_xlabel()[0] for axes in figure.axes]
    assert marks == ["c", "✓", "✗", "✓", "✗"] * 2
    frames = [axes.spines["top"].get_linestyle() for axes in figure.axes[1:3]]
    assert frames[0] == "-" and frames[1] != "-"


def test_constant_temperature_has_no_histogram_of_tau(tmp_path):
    adaptive = run(tmp_path / "a", before=snapshot(), after=snapshot(19))
    constant = run(tmp_path / "c", before=snapshot(tau=(0.2, 0.2)), after=snapshot(19, tau=(0.2, 0.2)))
    labels = [[axes.get_xlabel() for axes in pictures.histograms(one).axes] for one in (adaptive, constant)]
    assert labels == [["", "", "cosine similarity", "temperature τ"], ["", "cosine similarity"]]
    assert len(curves.temperature(adaptive).axes[0].lines) == 5  # mean and minimum of two kinds, the lower bound
    assert len(curves.temperature(constant).axes[0].lines) == 1


def test_one_temperature_that_learns_is_one_line(tmp_path):
    def of(step, tau):
        one = {f"{kind}_tau": np.full((2, n), tau, np.float32) for kind, n in PAIRS.items()}
        return snapshot(step, tau=(0.01, 10.0), **one)

    learned = run(tmp_path, before=of(0, 0.07), after=of(19, 0.09))
    axes = curves.temperature(learned).axes[0]
    assert (
        "learned" in axes.get_title() and axes.lines[0].get_ydata().tolist() == [0.5, 0.4, 0.3] and len(axes.lines) == 1
    )
    assert [axes.get_xlabel() for axes in pictures.histograms(learned).axes] == ["", "cosine similarity"]
    assert seen("temperature.png", learned).startswith("Temperature of all pairs: from 0.5 ")


def test_a_loss_over_all_negatives_has_no_hardest_ones(tmp_path):
    some = pictures.histograms(run(tmp_path / "some", before=snapshot(), after=snapshot(19)))
    all_ = pictures.histograms(run(tmp_path / "all", before=snapshot(top_k=0), after=snapshot(19, top_k=0)))
    assert legend(some) == ["positives", "all negatives", "hardest negatives"]
    assert legend(all_) == ["positives", "all negatives"]


def test_one_value_everywhere_is_drawn_too(tmp_path):
    same = {f"{kind}_similarity": np.ones((1, n), np.float32) for kind, n in PAIRS.items()}
    png = module.png(pictures.histograms(run(tmp_path, before=snapshot(heads=1, **same))))
    assert has_colour(png, module.BLUE)


def test_channels_are_not_called_images(tmp_path):
    figure = pictures.histograms(run(tmp_path, before=snapshot(top_k=0, framework="BarlowTwins")))
    assert legend(figure) == ["a channel and itself", "two channels"]
    assert figure.axes[0].get_xlabel() == "correlation of channels"


def test_one_head_agrees_with_nobody(tmp_path):
    assert pictures.agreement(run(tmp_path, before=snapshot(heads=1))) is None


def anchored(step=0, tau=(0.05, 0.09), perplexity=(0.4, 0.6), **more):
    """A snapshot of anchors with one τ each."""
    spread = np.linspace(0, 1, 16, dtype=np.float32)
    given = {"positive_tau": tau, "perplexity": perplexity}
    arrays = {name: np.tile(low + (high - low) * spread, (2, 1)) for name, (low, high) in given.items()}
    return snapshot(step, tau=(0.06, 0.08), **arrays, **{"per_anchor": True, "pinned": True, **more})


def test_anchors_have_histograms_of_perplexity_and_where_they_have_one_of_tau(tmp_path):
    assert pictures.anchors(run(tmp_path / "old", before=snapshot(), after=snapshot(19))) is None
    perplexity = np.full((2, 16), 0.25, np.float32)
    constant = run(tmp_path / "c", after=snapshot(19, tau=(0.2, 0.2), perplexity=perplexity))
    assert [axes.get_xlabel() for axes in pictures.anchors(constant).axes] == ["perplexity, share of the negatives"]
    assert pictures.anchors(constant).axes[0].get_xlim() == (0, 1)  # it does not look as if it varied
    each = run(tmp_path / "a", before=anchored(), after=anchored(19))
    figure = pictures.anchors(each)
    assert [axes.get_xlabel() for axes in figure.axes[2:]] == [
        "temperature τ of an anchor",
        "perplexity, share of the negatives",
    ]
    assert legend(figure) == ["head 1", "head 2"]
    low, high = figure.axes[0].get_xlim()
    assert low == 0 and high > 0.09  # pinned values lie beyond tau_max
    for drawn in figure.axes[0].patches:
        assert drawn.get_data().values.sum() == pytest.approx(1)  # nothing is cut
    assert [axes.get_xlabel() for axes in pictures.histograms(each).axes] == ["", "cosine similarity"]
    module.png(figure)


def test_what_is_wide_has_a_logarithmic_axis_on_which_nothing_is_cut(tmp_path):
    wide = run(tmp_path, before=anchored(tau=(0.001, 0.9)), after=anchored(19, perplexity=(0.01, 0.9)))
    figure = pictures.anchors(wide)
    assert [axes.get_xscale() for axes in figure.axes] == ["log"] * 4
    for axes in figure.axes:
        assert all(drawn.get_data().values.sum() == pytest.approx(1) for drawn in axes.patches)
    module.png(figure)
    assert {"0.01", "0.1"} <= {text.get_text() for text in figure.axes[2].get_xticklabels()}


def test_one_temperature_per_anchor_is_drawn_once(tmp_path):
    pinned = curves.temperature(run(tmp_path / "p", before=anchored(), after=anchored(19)))
    learned = curves.temperature(run(tmp_path / "r", before=anchored(pinned=False), after=anchored(19, pinned=False)))
    assert legend(pinned) == legend(learned) == ["anchors, mean", "anchors, ± 1 std", "anchors, minimum"]
    assert [len(figure.axes[0].lines) for figure in (pinned, learned)] == [2, 3]  # a pinned τ has no lower bound
    one = run(tmp_path / "p")
    heads = curves.head_temperatures(one)
    assert legend(heads) == ["head 1", "head 2"] and heads.axes[0].get_ylim() == (0, pytest.approx(1.06 * 0.4))
    assert seen("temperature.png", one).startswith("Temperature of anchors, mean: from 0.5 ")
    assert "Of selected" not in seen("temperature.png", one)


def test_an_anchors_temperature_that_has_not_moved_yet_is_not_called_one_that_learns(tmp_path):
    same = {f"{kind}_tau": np.full((2, n), 0.3, np.float32) for kind, n in PAIRS.items()}
    assert run(tmp_path, before=snapshot(tau=(0.1, 1.0), per_anchor=True, **same)).tau_kind == "adaptive"


@pytest.mark.parametrize(
    ("mixed", "told"),
    [(0.1, "nothing makes them differ"), (0.7, "they differ in part"), (4.0, "each finds other images alike")],
)
def test_what_the_agreement_of_heads_comes_to(tmp_path, mixed, told):
    random = np.random.default_rng(0)
    both = random.standard_normal(4000) + mixed * random.standard_normal((2, 4000))
    shot = snapshot(19, random_similarity=both.astype(np.float32), random_tau=np.ones((2, 4000), np.float32))
    expected = np.corrcoef(both)[0, 1]
    words = caption("agreement.png", run(tmp_path, before=snapshot(), after=shot))
    assert words.endswith(f"After 19 steps heads agree to {expected:.2f} on average: {told}.")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.95, "95% of its negatives: nearly all weigh the same, none counts as hard."),
        (0.5, "50% of its negatives."),
        (0.05, "5% of its negatives: few of them decide."),
    ],
)
def test_what_the_perplexity_comes_to(tmp_path, value, told):
    found = run(tmp_path, after=anchored(19, tau=(0.07, 0.07), perplexity=(value, value)))
    words = caption("anchors.png", found)
    assert words.endswith(f"the softmax of the median anchor spreads over {told} Anchors do not differ in τ.")
    (tmp_path / "config.yaml").write_text("model: {init_args: {criterion: {init_args: {negatives: topk_mean}}}}\n")
    assert "the loss has no softmax, it takes their mean" in caption("anchors.png", read_run(tmp_path))
    assert "few of them" not in caption("anchors.png", read_run(tmp_path))


@pytest.mark.parametrize("classes", [2, 10])
def test_every_class_of_the_embedding_has_its_colour(tmp_path, classes):
    labels = np.repeat(np.arange(classes), 200)
    places = np.random.default_rng(0).normal(labels[:, None] * 5, 0.3, (len(labels), 2)).astype(np.float32)
    shot = snapshot(embedding=places, labels=labels, classes=np.array([f"class {n}" for n in range(classes)]))
    png = module.png(pictures.embedding(run(tmp_path, after=shot)))
    assert all(has_colour(png, colour, least=20) == (n < classes) for n, colour in enumerate(module.CYCLE[:3]))


def test_classes_may_be_called_anything(tmp_path):
    names = ["_hidden", "$5 or \\frac$", "<b>x</b>"]
    found = figures(tmp_path / "names", after=snapshot(classes=np.array(names)))
    assert "embedding.png" in found
    assert legend(pictures.embedding(run(tmp_path / "names"))) == [" _hidden", *names[1:]]


@pytest.mark.parametrize("pairs", [1, 10])
def test_pairs_show_the_pixels_of_both_views(tmp_path, pairs):
    views = np.zeros((2, pairs, 8, 8, 3), np.uint8)
    views[0], views[1] = (200, 30, 40), (20, 60, 210)
    png = module.png(pictures.pairs(run(tmp_path, before=snapshot(views=views))))
    assert has_colour(png, "#c81e28", least=2000)
    assert has_colour(png, "#143cd2", least=2000)


def test_what_a_framework_makes_of_images_is_shown_with_its_names(tmp_path):
    rows = np.zeros((2, 3, 8, 8, 3), np.uint8)
    rows[0], rows[1] = (200, 30, 40), (20, 60, 210)
    made = {"pictures": rows, "picture_names": np.array(["seen", "reconstruction"])}
    found = run(tmp_path, before=snapshot(), after=snapshot(19, **made))
    figure = pictures.made(found)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["seen", "reconstruction"]
    png = module.png(figure)
    assert has_colour(png, "#c81e28", least=2000) and has_colour(png, "#143cd2", least=2000)
    assert pictures.made(run(tmp_path / "other", before=snapshot(), after=snapshot(19))) is None


def test_the_terms_of_a_loss_are_drawn_each_with_its_scale(tmp_path):
    header = "step,loss,loss_contrast,loss_noise\n"
    terms = run(tmp_path / "terms", metrics=header + "0,3,5,0.4\n1,2,4,0.04\n2,2,4,0.004\n")
    figure = curves.parts(terms)
    assert [axes.get_title() for axes in figure.axes] == ["contrast", "noise"]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [5, 4, 4]
    module.png(figure)
    assert {"0.01", "0.1"} <= {text.get_text() for text in figure.axes[1].get_yticklabels()}
    assert curves.parts(run(tmp_path / "one")) is None
    assert list(draw_figures(terms)) == ["loss.png", "losses.png"]
