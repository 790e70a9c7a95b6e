"""Figures, tables and pages of studies of similarities, of results made by hand."""

import json

import numpy as np
import pytest

from amcl_fast.study import augmentations_page, similarities_page
from amcl_fast.study.overlap import EDGES, VALUES
from tests.helpers.similar import results, row

POSITIVE = {"a": 0.8, "ab": 0.3}


def by_augmentation(seeds=(0, 1), left=0):
    cells = [{"augmentation": letters, "heads": heads} for letters in POSITIVE for heads in (1, 3)]
    rows = [
        row(cell, seed, POSITIVE[cell["augmentation"]], heads=cell["heads"])
        for cell in cells[: len(cells) - left]
        for seed in seeds
    ]
    found = results(rows, cells, lambda cell: {**cell, "heads": 1}, left * len(seeds), recipe="some <recipe>")
    return {**found, "augmentations": list(POSITIVE), "heads": [1, 3]}


def by_recipe():
    cells = [{"recipe": f"simclr-builtin-{variant}"} for variant in ("baseline", "amcl")]
    rows = [row(cells[0], seed, 0.5) for seed in (0, 1)] + [row(cells[1], 1, 0.6, heads=2, adaptive=True)]
    recipes = [cell["recipe"] for cell in cells]
    return results(rows, cells, lambda cell: cells[0], 1, recipes=recipes)


@pytest.fixture
def drawn(monkeypatch):
    """Figures in place of their PNG."""
    for module in (augmentations_page, similarities_page):
        monkeypatch.setattr(module, "png", lambda figure: figure)


def outline(axes, name):
    return next(patch for patch in axes.patches if patch.get_label() == name).get_data()


def test_histograms_by_augmentations_and_heads(drawn):
    found = by_augmentation()
    figure = augmentations_page.draw(found)["histograms.png"]
    assert len(figure.axes) == 4
    titles = [axes.get_title("left") for axes in figure.axes]
    assert [title.partition("\n")[0] for title in titles[:2]] == ["a", "ab"]
    overlaps = [of["overlap"] for of in found["overlaps"]]
    for title, place in zip(titles, (0, 2, 1, 3), strict=True):  # figure: by heads; results: by augmentations
        mean, error = overlaps[place]["mean"], overlaps[place]["standard_error"]
        assert title.endswith(f"overlap {mean:.2f} ± {error:.2f}")
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["1 head", "3 heads"]
    several = figure.axes[2]
    expected = sum(np.array(of["after"]["mean_counts"]["positive"]) for of in found["trainings"][2:4])
    assert outline(several, "positives").values == pytest.approx(expected / expected.sum())
    assert outline(several, "negatives").edges.tolist() == EDGES.tolist()
    # The heads are independent here: their mean has less spread.
    assert overlaps[3]["mean"] < overlaps[2]["mean"] - 0.1


def test_overlaps_over_augmentations(drawn):
    found = by_augmentation()
    figure = augmentations_page.draw(found)["overlap.png"]
    for axes, name in zip(figure.axes, ("overlap", "auc"), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        means = {(of["augmentation"], of["heads"]): of for of in found["overlaps"]}
        for heads, label in ((1, "1 head"), (3, "3 heads")):
            expected = [means[letters, heads][name]["mean"] for letters in POSITIVE]
            assert lines[label].get_ydata() == pytest.approx(expected, abs=1e-4)
        own = [means[letters, 3][f"head_{name}"]["mean"] for letters in POSITIVE]
        assert lines["one of 3 by itself"].get_ydata() == pytest.approx(own, abs=1e-4)
        dots = [line.get_ydata() for line in axes.get_lines() if line.get_linestyle() == "None"]
        assert [len(of) for of in dots] == [2] * 4
        assert dots[0] == pytest.approx([VALUES[name](of) for of in found["trainings"][:2]])


def test_the_table_by_augmentations_compares_with_the_first_number_of_heads():
    found = by_augmentation()
    lines = augmentations_page.cells(found)
    assert [(line["augmentations"], line["heads"]) for line in lines] == [
        *(("a", "1"), ("a", "3")),
        *(("ab", "1"), ("ab", "3")),
    ]
    assert [bool(line["mean difference"]) for line in lines] == [False, True, False, True]
    one, three = ([VALUES["overlap"](of) for of in found["trainings"][start : start + 2]] for start in (4, 6))
    differences = [after - before for before, after in zip(one, three, strict=True)]
    assert lines[3]["above the first, by seed"] == ", ".join(f"{value:+.2f}" for value in differences)
    assert lines[3]["overlap of each seed"] == ", ".join(f"{value:.2f}" for value in three)
    assert lines[2]["each head by itself"] == lines[2]["mean"] and lines[3]["kNN, %"] == "40.5"
    assert found["differences"][1]["minus"] == {"augmentation": "ab", "heads": 1}


@pytest.mark.slow
def test_a_study_by_augmentations_that_is_cut_shows_what_it_has():
    found = by_augmentation(seeds=(0,), left=1)
    json.dumps(found)
    text = augmentations_page.page(found, augmentations_page.draw(found))
    assert "3 of 4 trainings have finished; go on with <code>amcl-fast study &lt;b&gt;</code>" in text
    assert text.count("<img") == 2 and "some &lt;recipe&gt;" in text and "<recipe>" not in text
    assert "Of a single seed no difference is known from chance" in text
    assert '<a href="ab-1-0/report/index.html">ab-1-0</a>' in text
    none = augmentations_page.page({**by_augmentation(left=4)}, {})
    assert "0 of 8 trainings" in none and "<img" not in none


def test_histograms_before_and_after(drawn):
    found = by_recipe()
    figure = similarities_page.draw(found)["histograms.png"]
    baseline, amcl = figure.axes[:2], figure.axes[2:]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["baseline", "amcl"]
    assert {patch.get_label() for axes in baseline for patch in axes.patches if patch.get_linestyle() != "None"} >= {
        "positives",
        "all negatives",
    }
    assert not any(patch.get_label() == "hardest negatives" for axes in baseline for patch in axes.patches)
    for axes, moment in zip(amcl, ("before", "after"), strict=True):
        counts = np.array(found["trainings"][2][moment]["counts"]["hardest"]).sum(0)
        assert outline(axes, "hardest negatives").values == pytest.approx(counts / counts.sum())
        own = np.mean(found["trainings"][2][moment]["overlap"]["all"]["heads"])
        assert axes.get_title("left") == f"{moment} training, overlap {own:.2f}"


def test_temperatures_over_similarity(drawn):
    """Of the recipes that have some: τ = 0.5 + s/4 here, whatever the kind of pair."""
    found = by_recipe()
    figure = similarities_page.draw(found)["temperatures.png"]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["amcl\ntemperature τ"]
    for axes in figure.axes:
        lines = axes.get_lines()
        assert [line.get_label() for line in lines] == ["all negatives", "hardest negatives", "positives"]
        for line in lines:
            there = np.isfinite(line.get_ydata())
            assert 3 < there.sum() < len(there)
            assert line.get_ydata()[there] == pytest.approx(0.5 + line.get_xdata()[there] / 4, abs=0.005)
        assert len(axes.collections) == 3
    constant = {**found, "trainings": found["trainings"][:2], "overlaps": found["overlaps"][:1]}
    assert list(similarities_page.draw(constant)) == ["histograms.png"]


def test_the_table_and_the_page_by_recipes():
    found = by_recipe()
    lines = similarities_page.cells(found)
    assert [line["recipe"] for line in lines] == ["simclr-builtin-baseline", "simclr-builtin-amcl"]
    assert lines[1]["mean"].endswith("(one seed)") and lines[1]["mean difference"].endswith("(one seed)")
    hardest = np.mean(found["trainings"][2]["after"]["overlap"]["hardest"]["heads"])
    assert [line["with the hardest negatives"] for line in lines] == ["", f"{hardest:.2f}"]
    (difference,) = found["differences"]
    assert difference["seeds"] == [1] and difference["minus"] == {"recipe": "simclr-builtin-baseline"}
    text = similarities_page.page(found, {"histograms.png": b"PNG"})
    assert "<h1>Similarities before and after training: simclr-builtin-baseline, simclr-builtin-amcl</h1>" in text
    assert "3 of 4 trainings" in text and "<td>adaptive</td>" in text and text.count("<img") == 1
