"""amcl_fast.report.figures: which figures a run gets, and that they show what they say."""

import io

import numpy as np
import pytest
from PIL import Image
from shots import run_directory, snapshot

from amcl_fast.report import figures as module
from amcl_fast.report import read_run
from amcl_fast.report.figures import draw_figures


def picture(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def has_colour(png, colour, least=100):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (abs(picture(png).astype(int) - wanted).max(-1) < 12).sum() > least


def figures(folder, **parts):
    return draw_figures(read_run(run_directory(folder, **parts)))


def test_a_finished_run_gets_all_figures(tmp_path):
    found = figures(tmp_path, before=snapshot(), after=snapshot(19))
    assert list(found) == ["knn.png", "loss.png", "temperature.png", "histograms.png", "pairs.png"]
    for png in found.values():
        assert picture(png).std() > 5
    for name in ("knn.png", "temperature.png", "histograms.png"):
        assert has_colour(found[name], module._BLUE) and has_colour(found[name], module._RED)


def test_a_run_that_just_began_gets_what_there_is(tmp_path):
    found = figures(tmp_path, metrics="step,loss,knn_pixels\n0,,11\n1,5.0,\n")
    assert list(found) == ["knn.png", "loss.png"]
    assert not has_colour(found["knn.png"], module._BLUE, least=1000)


def test_constant_temperature_has_no_histogram_of_tau(tmp_path):
    adaptive = figures(tmp_path / "a", before=snapshot(), after=snapshot(19))
    constant = figures(tmp_path / "c", before=snapshot(tau=(0.2, 0.2)), after=snapshot(19, tau=(0.2, 0.2)))
    assert constant["temperature.png"] != adaptive["temperature.png"]
    assert not has_colour(constant["temperature.png"], module._RED, least=0)


def test_a_loss_over_all_negatives_has_no_hardest_ones(tmp_path):
    found = figures(tmp_path, before=snapshot(top_k=0), after=snapshot(19, top_k=0))
    assert has_colour(found["histograms.png"], module._BLUE)
    assert not has_colour(found["histograms.png"], module._RED, least=0)


def test_one_value_everywhere_is_drawn_too(tmp_path):
    same = {f"{kind}_similarity": np.ones((1, 8), np.float32) for kind in ("positive", "hardest", "random")}
    found = figures(tmp_path, before=snapshot(heads=1, **same))
    assert has_colour(found["histograms.png"], module._BLUE)


@pytest.mark.parametrize("pairs", [1, 10])
def test_pairs_show_the_pixels_of_both_views(tmp_path, pairs):
    views = np.zeros((2, pairs, 8, 8, 3), np.uint8)
    views[0], views[1] = (200, 30, 40), (20, 60, 210)
    found = figures(tmp_path, before=snapshot(views=views))
    assert has_colour(found["pairs.png"], "#c81e28", least=5000)
    assert has_colour(found["pairs.png"], "#143cd2", least=5000)
