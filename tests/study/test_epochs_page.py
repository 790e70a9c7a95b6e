"""amcl_fast.study.epochs_page: table, figure and page of results made by hand."""

import pytest
from matplotlib.figure import Figure

from amcl_fast.study import epochs_page
from amcl_fast.study.epochs import Epochs, summary
from amcl_fast.study.epochs_page import cells, draw, page
from tests.helpers.studies import KNN, results


def test_the_table_is_what_comes_out_by_hand():
    head, *lines = cells(results())
    assert head[-2] == "above baseline, by seed"
    assert lines == [
        # 30 and 34: mean 32, s² = 8, s/√2 = 2. 35 and 41: s² = 18, s/√2 = 3. 5 and 7: s² = 2, s/√2 = 1.
        ["small", "baseline", "10", "30.0, 34.0", "32.0 ± 2.0", "", ""],
        ["small", "amcl", "10", "35.0, 41.0", "38.0 ± 3.0", "+5.0, +7.0", "+6.0 ± 1.0"],
        ["large", "baseline", "10", "50.0", "50.0 (one seed)", "", ""],
        ["large", "amcl", "10", "47.5", "47.5 (one seed)", "-2.5", "-2.5 (one seed)"],
    ]


def test_the_figure_has_means_bands_and_baselines(monkeypatch):
    drawn = []
    monkeypatch.setattr(epochs_page, "png", lambda figure: drawn.append(figure) or b"")
    draw(results())
    (figure,) = drawn
    assert isinstance(figure, Figure) and [axes.get_title("left") for axes in figure.axes] == ["small", "large"]
    small, large = ({line.get_label(): line for line in axes.get_lines()} for axes in figure.axes)
    # From the untrained encoders, 20 and 21 %, on.
    assert small["amcl"].get_xdata().tolist() == [0, 5, 10] and small["amcl"].get_ydata().tolist() == [20.5, 30.0, 38.0]
    assert large["baseline"].get_ydata().tolist() == [20.0, 40.0, 50.0]
    assert set(small["untrained encoder"].get_ydata()) == {20.5} and set(small["raw pixels"].get_ydata()) == {15.0}
    _, amcl = figure.axes[0].collections  # from the lowest to the highest seed
    assert {tuple(point) for point in amcl.get_paths()[0].vertices} >= {(10.0, 35.0), (10.0, 41.0), (5.0, 28.0)}
    assert not figure.axes[1].collections
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["baseline", "amcl", "untrained encoder", "raw pixels"]


def test_a_study_that_is_cut_shows_what_it_has():
    found = results({("small", "baseline"): {0: [25.0, 30.0]}}, left=7)
    text = page(found, {"epochs": draw(found)})
    assert "1 of 8 trainings have finished; go on with <code>amcl-fast study &lt;b&gt;</code>" in text
    assert text.count("<img") == 1 and "30.0 (one seed)" in text
    none = page(results({}, left=8), {})
    assert "0 of 8 trainings" in none and "<img" not in none


@pytest.mark.parametrize(("knn", "single"), [(KNN, True), ({cell: KNN[cell] for cell in list(KNN)[:2]}, False)])
def test_a_single_seed_is_no_claim(knn, single):
    text = page(results(knn), {"epochs": b"PNG"})
    assert ("Of a single seed no difference is known from chance" in text) is single
    assert ("differences are of trainings of the same seed" in text) is not single


def test_the_page_leads_to_the_reports_and_needs_nothing_else():
    text = page(results(backbones=["small"]), {"epochs": b"PNG"})
    assert '<a href="can-builtin-amcl-small-1/report/index.html">can-builtin-amcl-small-1</a>' in text
    assert text.count("src=") == text.count('src="data:') == 1 and "<b>" not in text
    assert "Of 1,000 held-out images, by 5,000 training images." in text
    assert "<td>cores</td><td>2</td>" in text and "<td>torch</td><td>2.11.0</td>" in text


def test_a_backbone_of_the_recipes_own_is_called_by_them():
    found = results({("default", "amcl"): {0: [1.0, 2.0]}})
    study = Epochs("can", "builtin", ("default",), ("amcl",), (0,))
    assert cells({**found, **study.options(), **summary(study, found["trainings"])})[1][0] == "can-builtin"
