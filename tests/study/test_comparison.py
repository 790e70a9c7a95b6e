"""amcl_fast.study.comparison and the studies that are comparisons: which trainings, what is refused, one from end to
end, statistics by hand."""

import json
import re

import pytest
import torch

from amcl_fast import PerplexityTemperature, SimCLRLoss
from amcl_fast.cli import main
from amcl_fast.models import ProjectorConfig
from amcl_fast.runs.read import read_run
from amcl_fast.study import heads, training
from amcl_fast.study.comparison import summary
from amcl_fast.study.comparison_page import cells, differences, draw, page
from tests.helpers.command_line import environment, image_folder
from tests.helpers.studies import Forked, compared, refusal, tiny

TINY = tiny("--knn.before_training", "false")


def study(*arguments):
    return main(["study", *map(str, arguments)])


def refused(capsys, *arguments):
    """The line in which a study is refused."""
    return refusal(capsys, study(*arguments))


def names(begun):
    return [arguments[6].rpartition("/")[2] for arguments in begun]


def told(arguments):
    """The last settings of a training, those of its cell."""
    return dict(zip(arguments[-8::2], arguments[-7::2], strict=True))


def test_temperatures_go_seed_by_seed_the_reference_first(here, untrained):
    options = ["--constants", "0.1", "0.2", "--means", "0.07", "--seeds", "3", "1"]
    assert study("temperatures", "--recipe", "simclr-cifar10-amcl", *options) == 1
    order = ["constant-0.1", "constant-0.2", "perplexity-0.07", "pairwise", "row-dro", "oracle"]
    assert names(untrained) == [f"{name}-{seed}" for seed in (3, 1) for name in order]
    temperature = "--model.init_args.criterion.init_args.temperature"
    assert untrained[1][-2:] == [temperature, "0.2"]
    assert json.loads(untrained[2][-1])["init_args"]["mean"] == 0.07
    assert json.loads(untrained[4][-1])["init_args"]["objective"] == "dro"
    criterion = json.loads(untrained[5][-2])
    assert criterion["class_path"] == "amcl_fast.study.oracle.SimCLROracle"
    assert criterion["init_args"]["temperature"] == 0.1 and criterion["init_args"]["negatives"] == "topk_softmax"
    assert untrained[5][-1] == "--trainer.callbacks+=amcl_fast.study.oracle.Labels"
    results = json.loads((here / "runs/temperatures-simclr-cifar10-amcl/study.json").read_text())
    assert results["left"] == 12 and [cell["cell"] for cell in results["cells"]] == order
    assert results["cells"][0]["model"]["init_args"]["criterion"]["init_args"]["temperature"] == 0.1


def test_cells_are_chosen_beside_the_reference(here, untrained):
    options = ["--reference", "0.2", "--cells", "oracle", "pairwise", "--seeds", "0"]
    study("temperatures", "--recipe", "moco-cifar10-amcl", *options)
    assert names(untrained) == ["constant-0.2-0", "pairwise-0", "oracle-0"]
    assert json.loads(untrained[2][-2])["class_path"] == "amcl_fast.study.oracle.MoCoOracle"


def test_projectors_of_all_numbers_of_heads_are_of_one_size(here, untrained):
    options = ["--heads", "1", "2", "5", "--differing", "means", "constants", "--mean", "0.2", "--seeds", "0"]
    study("heads", "--recipe", "simclr-cifar10-amcl", *options)
    assert names(untrained) == ["heads-1-0", "heads-2-0", "heads-5-0", "means-3-0", "constants-3-0"]
    sizes = json.loads((here / "runs/heads-simclr-cifar10-amcl/study.json").read_text())["parameters"]
    own = 512 * 1536 + 1536 + 2 * 1536 + 3 * (512 * 128 + 128) + 2 * 3 * 128  # the recipe's, of three heads
    assert sizes["means-3"] == own and all(abs(size / own - 1) < 0.01 for size in sizes.values())
    assert "512" in told(untrained[4])["--model.init_args.projector.hidden_dim"]
    means = json.loads(untrained[3][-1])["init_args"]
    assert means["mean"] == [0.1, 0.2, 0.4] and means["tau_max"] == 1.0
    assert json.loads(untrained[4][-1])["init_args"]["tau_max"] == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize(
    ("temperature", "mean"),
    [
        (0.2, 0.2),
        ({"class_path": "amcl_fast.PerplexityTemperature", "init_args": {"mean": 0.07}}, 0.07),
        ({"class_path": "amcl_fast.PerplexityTemperature", "init_args": {"mean": [0.1, 0.3]}}, 0.1),
        ({"class_path": "amcl_fast.AdaptiveTemperature", "init_args": {"tau_min": 0.2}}, 0.1),
    ],
)
def test_heads_that_differ_do_so_around_the_recipes_temperature(temperature, mean):
    assert heads._mean(temperature) == mean


def test_a_constant_of_its_own_for_each_head_is_one():
    """As a range of no width gives it."""
    cell = heads._differing("constants", ProjectorConfig(heads=2), 0.2)
    temperature = PerplexityTemperature(**json.loads(cell.settings[-1])["init_args"])
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 6, 2, 4, dtype=torch.float64)
    loss = SimCLRLoss(temperature, negatives="softmax", backend="reference")(z1, z2)
    expected = sum(
        SimCLRLoss(tau, negatives="softmax", backend="reference")(z1[:, head], z2[:, head])
        for head, tau in enumerate((0.1, 0.4))
    )
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


def test_shares_of_negatives_are_those_of_batch_or_queue(here, untrained):
    for recipe, counts in (
        ("simclr-cifar10-amcl", ["1022", "102", "511"]),
        ("moco-cifar10-amcl", ["4096", "410", "2048"]),
    ):
        untrained.clear()
        study("top-k", "--recipe", recipe, "--shares", "0.1", "0.5", "1", "--seeds", "0")
        assert names(untrained) == ["all-0", "top-0.1-0", "top-0.5-0"]
        assert [arguments[-1] for arguments in untrained] == counts


SIMCLR = ["--recipe", "simclr-cifar10-amcl"]
ALL = [*SIMCLR, "--shares", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["temperatures", *SIMCLR, "--seeds", "0", "0"], "--seeds must be different ones, got 0 0"),
        (["temperatures", *SIMCLR, "--constants", "0.2", "0.2"], "--constants must be different ones, got 0.2 0.2"),
        (["temperatures", *SIMCLR, "--means", "0.1", "0.1000001"], "--means must be different ones, got 0.1 0.1"),
        (
            ["temperatures", *SIMCLR, "--cells", "oracel"],
            r"--cells must be among constant-0.1 constant-0.05 .* oracle, got oracel",
        ),
        (
            ["temperatures", *SIMCLR, "--constants", "-1"],
            "constant--1 cannot be of this recipe: temperature must be .*",
        ),
        (
            ["temperatures", "--recipe", "simclr-cifar10-baseline", "--cells", "row-dro"],
            "row-dro cannot be of this recipe: include_positive must be False with objective='dro'.*",
        ),
        (
            ["temperatures", "--recipe", "barlow-cifar10-amcl"],
            "--recipe must be one of SimCLR or MoCo for a study of temperatures, got one with amcl_fast.Barlow.*",
        ),
        (
            ["temperatures", *SIMCLR, "--model.criterion.temperature.tau_min", "0.1"],
            "--model.criterion.temperature.tau_min must be left out of this study, whose trainings differ in it",
        ),
        (
            ["heads", *SIMCLR, "--model.init_args.projector.heads=2"],
            "--model.init_args.projector.heads must be left out of this study, whose trainings differ in it",
        ),
        (["heads", *SIMCLR, "--heads", "0"], "--heads must be at least 1, got 0"),
        (["heads", *SIMCLR, "--differing_heads", "0"], "--differing_heads must be at least 1, got 0"),
        (["heads", *SIMCLR, "--mean", "0"], "perplexity-3 cannot be of this recipe: mean must be one number, .*"),
        (["heads", *SIMCLR, "--differing", "none", "means"], "--differing must be none alone, or others without it,.*"),
        (
            ["heads", *SIMCLR, "--differing", "none", "--mean", "0.2"],
            r"--mean must be left out where no heads differ \(--differing none\), got 0.2",
        ),
        (
            ["heads", *SIMCLR, "--model.projector.hidden_dim", "1", "--heads", "9"],
            r"--heads must be such that projectors are of equal size, got 9, with which the nearest to [\d,]+ .*",
        ),
        (["top-k", *SIMCLR, "--shares", "0"], "--shares must be above 0 and at most 1, got 0"),
        (
            ["top-k", *SIMCLR, "--shares", "0.1", "0.1001"],
            "--shares must be of different numbers of 1,022 negatives, got 0.1 0.1001, of which two come to .*",
        ),
        (["top-k", *ALL, "--trainer.max_steps", "9"], "trainer.max_steps must be left out of a study.*"),
        (
            ["top-k", *ALL, "--trainer.fast_dev_run", "true"],
            "trainer.fast_dev_run must be left out of a study, whose trainings are kept, got True",
        ),
        (
            ["top-k", *ALL, "--trainer.callbacks", "[{class_path: lightning.pytorch.callbacks.LearningRateMonitor}]"],
            r"trainer.callbacks must be given as --trainer.callbacks\+ in a study, .*",
        ),
        (["top-k", *ALL, "--run_dir", "x"], "--run_dir must be left out of a study.*"),
        (["top-k", *ALL, "--knn.bank", "0"], "knn.bank must be at least 1 in a study of accuracies, got 0"),
    ],
)
def test_what_cannot_be_a_study_is_one_line_and_leaves_no_folder(arguments, message, here, untrained, capsys):
    assert re.fullmatch(message, refused(capsys, *arguments))
    assert not untrained and not list(here.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a study of two cells of forty images, its results, and its arguments."""
    root = tmp_path_factory.mktemp("study")
    images = image_folder(root / "images", 8, 12)
    arguments = ["temperatures", "--recipe", "moco-builtin-amcl", "--cells", "oracle", "--seeds", "0"]
    settings = ["--model.queue_size", "16", "--data", images, *TINY, "--output", root / "study"]
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment(root).items():
            patched.setenv(name, value)
        patched.setattr(training, "Popen", Forked)
        assert study(*arguments, *settings) == 0
    return root / "study", json.loads((root / "study" / "study.json").read_text()), [*arguments, *settings]


@pytest.mark.slow
def test_a_comparison_from_end_to_end(trained):
    folder, results, _ = trained
    assert [(row["cell"], row["seed"]) for row in results["trainings"]] == [("constant-0.1", 0), ("oracle", 0)]
    for row in results["trainings"]:
        measures = row["measures"]
        # With BatchNorm as it ran it is what the run itself has found.
        assert measures["knn"] == row["knn"][-1] == round(read_run(folder / row["run"]).last("knn"), 4)
        assert measures["images"] == {"bank": 16, "queries": 24} and measures["batch_norms"] == 20
        assert measures["recalibrated_on"] == 16 and 0 <= measures["ridge_recalibrated"] <= 100
        assert [len(of) for of in row["tau"].values()] == [3, 3] and row["tau"]["negative"][0]["mean"] == 0.1
        assert -1 <= row["agreement"] <= 1 and row["metrics"]["loss"] > 0
    knn = {row["cell"]: row["measures"]["knn"] for row in results["trainings"]}
    above = next(row for row in results["differences"] if row["measure"] == "knn")
    assert above["points"] == [round(knn["oracle"] - knn["constant-0.1"], 4)] and above["standard_error"] is None
    # Leaving negatives out changes what is learned.
    assert len({read_run(folder / f"{cell}-0").last("loss") for cell in ("constant-0.1", "oracle")}) == 2
    assert results["left"] == 0 and {path.name for path in folder.glob("*.png")} == {
        "differences.png",
        "accuracies.png",
    }
    assert (folder / "index.html").read_text().count("<img") == 2


@pytest.mark.slow
def test_a_comparison_that_has_ended_is_read_and_takes_more_seeds(trained, untrained):
    folder, results, arguments = trained
    assert study(*arguments) == 0 and not untrained
    assert json.loads((folder / "study.json").read_text())["trainings"] == results["trainings"]
    place = arguments.index("--seeds") + 2
    more = [*arguments[:place], "5", *arguments[place:]]
    assert study(*more) == 1
    assert names(untrained) == ["constant-0.1-5", "oracle-5"]


def test_differences_are_paired_by_seed_and_of_all_pairs():
    found = summary(["a", "b", "c"], compared({"a": {0: 30.0, 1: 40.0}, "b": {1: 41.0, 0: 34.0}, "c": {1: 42.0}}))
    knn = [row for row in found["differences"] if row["measure"] == "knn"]
    # 34 − 30 and 41 − 40: of the mean 2.5 they deviate by ±1.5, s² = 4.5, s/√2 = 1.5.
    assert knn[0] == {
        "cell": "b", "minus": "a", "measure": "knn", "seeds": [0, 1], "points": [4.0, 1.0], "mean": 2.5,
        "standard_error": 1.5,
    }  # fmt: skip
    assert [(row["cell"], row["minus"], row["points"], row["standard_error"]) for row in knn[1:]] == [
        *(("c", "a", [2.0], None), ("c", "b", [1.0], None)),
    ]
    (mean,) = (row for row in found["means"] if (row["cell"], row["measure"]) == ("a", "ridge"))
    assert (mean["values"], mean["mean"], mean["standard_error"]) == ([31.0, 41.0], 36.0, 5.0)


def results(values, left=0):
    rows = compared(values)
    about = {
        "title": "Temperatures",
        "what": "kNN",
        "recipe": "simclr-<b>",
        "command": "amcl-fast study <b>",
        "machine": {"name": "Some Processor 1", "cores": 2},
        "environment": {"torch": "2.11.0"},
        "cells": [{"cell": name, "about": f"<{name}>"} for name in ("a", "b")],
    }
    return {**about, "left": left, **summary(["a", "b"], rows), "trainings": rows}


def test_tables_and_page_are_what_comes_out_by_hand():
    found = results({"a": {0: 30.0, 1: 40.0}, "b": {0: 34.0, 1: 41.0}}, left=2)
    assert cells(found)[1] == ["a", "2", *("35.00 ± 5.00", "36.00 ± 5.00") * 2, "0.100", "0.50"]
    assert differences(found)[1] == ["b", "a", "2", *["+2.50 ± 1.50"] * 4, "+4.0, +1.0"]
    text = page(found, draw(found))
    assert "4 of 6 trainings have finished; go on with <code>amcl-fast study &lt;b&gt;</code>" in text
    assert text.count("<img") == 2 and "<b>" not in text and "&lt;a&gt;" in text
    assert "differences are of trainings of the same seed" in text
    # P(|t| < 2) in closed form: 2/√6 of two degrees of freedom, of four (3u − u³)/2 with u = 2/√8.
    three, five = (100 * share for share in (2 / 6**0.5, (3 * 0.5**0.5 - 0.5**1.5) / 2))
    assert f"the true difference in {three:.0f} % of studies of three seeds, in {five:.0f} % of five" in text
    assert '<a href="b-1/report/index.html">b-1</a>' in text


def test_a_single_seed_is_no_claim_and_no_batch_norm_is_said():
    found = results({"a": {0: 30.0}, "b": {0: 34.0}})
    for row in found["trainings"]:
        row["measures"]["batch_norms"] = 0
    text = page(found, draw(found))
    assert "Of a single seed no difference is known from chance" in text and "+4.00 (one seed)" in text
    assert "Two standard errors" not in text
    assert "there is nothing to recalibrate, and the numbers are the same" in text


def test_the_picture_has_a_panel_a_measure_and_a_point_a_seed(monkeypatch):
    drawn = []
    monkeypatch.setattr("amcl_fast.study.comparison_page.png", lambda figure: drawn.append(figure) or b"")
    draw(results({"a": {0: 30.0, 1: 40.0}, "b": {0: 34.0, 1: 41.0}}))
    panels = drawn[0].axes
    assert [axes.get_title("left") for axes in panels] == ["kNN", "ridge", "kNN, recalibrated", "ridge, recalibrated"]
    seeds, diamond, *_, zero = panels[0].get_lines()
    assert list(seeds.get_xdata()) == [4.0, 1.0] and list(diamond.get_xdata()) == [2.5]
    assert list(zero.get_xdata()) == [0, 0] and [text.get_text() for text in panels[0].get_yticklabels()] == ["b"]
    (bar,) = panels[0].collections[0].get_segments()
    assert bar[:, 0].tolist() == [-0.5, 5.5]  # ± 2 standard errors
