"""amcl_fast.study.results: against values worked out by hand."""

import pytest

from amcl_fast.runs.read import read_run
from amcl_fast.study.results import accuracies, differences, spread
from tests.helpers.studies import finished


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [(3, 1, [1, 2, 3]), (6, 2, [2, 4, 6]), (7, 3, [3, 6, 7]), (2, 5, [2])],
)
def test_accuracies_are_of_the_epochs_that_the_settings_say(epochs, every, expected, tmp_path):
    """And of the last one in any case."""
    knn = [30.0 + number for number in range(len(expected))]
    found = accuracies(read_run(finished(tmp_path / "run", knn, epochs=epochs, every=every)))
    assert found == {"epochs": expected, "knn": knn, "untrained": 20.0, "pixels": 10.0}


def test_a_run_that_was_not_measured_to_its_end_is_refused(tmp_path):
    run = finished(tmp_path / "run", [30.0], epochs=3, unmeasurable="no classes")
    with pytest.raises(ValueError, match=r"run must have 3 kNN accuracies.*got 1: no classes"):
        accuracies(read_run(run))


def test_the_spread_is_that_of_the_mean():
    # Deviations −3, 0, 3 of the mean 13: s² = 18/2, and s/√3 = 1.7321.
    assert spread([10.0, 13.0, 16.0]) == {"mean": 13.0, "standard_error": 1.7321}
    assert spread([10.0]) == {"mean": 10.0, "standard_error": None}


def rows(**values):
    """Rows of variants: seed to the last accuracy."""
    return [
        {"variant": variant, "seed": seed, "knn": [0.0, last]}
        for variant, found in values.items()
        for seed, last in found.items()
    ]


def test_differences_are_of_the_same_seed():
    found = differences(
        rows(a={0: 30.0, 1: 40.0, 2: 35.0}, b={2: 36.0, 0: 34.0, 7: 90.0}), {"variant": "a"}, {"variant": "b"}
    )
    # 34 − 30 and 36 − 35; of the mean 2.5 they deviate by ±1.5: s² = 4.5, s/√2 = 1.5.
    assert found == {"seeds": [0, 2], "points": [4.0, 1.0], "mean": 2.5, "standard_error": 1.5}


def test_a_single_pair_has_no_error_and_none_no_difference():
    found = rows(a={0: 30.0}, b={0: 34.0}, c={1: 50.0})
    assert differences(found, {"variant": "a"}, {"variant": "b"})["standard_error"] is None
    assert differences(found, {"variant": "a"}, {"variant": "c"}) is None
