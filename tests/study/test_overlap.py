"""amcl_fast.study.overlap: against values worked out by hand, densities in closed form, and loops."""

import itertools
import math

import numpy as np
import pytest

from amcl_fast.runs.read import read_run
from amcl_fast.study import overlap as module
from amcl_fast.study.overlap import BINS, EDGES, auc, counts, look, looks, overlap, pooled, temperatures
from tests.helpers.shots import run_directory, snapshot


def array(*heads):
    return np.array(heads, np.float32)


def shot(**arrays):
    """Of two heads, four positives and five negatives."""
    given = {
        "positive_similarity": array([0.92, 0.92, 0.52, -0.98], [0.92, 0.92, 0.92, 0.92]),
        "random_similarity": array([0.52, 0.52, -0.98, -0.98, 0.02], [-0.98] * 5),
        "hardest_similarity": array([0.92, 0.52], [0.02, 0.02]),
    } | arrays
    sizes = {name.replace("similarity", "tau"): np.ones_like(value) for name, value in given.items()}
    return snapshot(7, **{**sizes, **given})


def test_bins_share_the_range_of_a_cosine():
    found = counts([-1.0, -1.0001, -0.951, -0.949, 0.0, 1.0, 1.00001])
    assert len(found) == BINS == 40 and sum(found) == 7
    assert {place: number for place, number in enumerate(found) if number} == {0: 3, 1: 1, 20: 1, 39: 2}
    assert EDGES[0] == -1 and EDGES[-1] == 1 and np.diff(EDGES) == pytest.approx(module.BIN_WIDTH)
    with pytest.raises(ValueError, match="similarities must be finite, got NaN or infinity among them"):
        counts([0.5, float("nan")])


def test_the_overlap_is_what_two_histograms_share():
    assert overlap([1, 0, 3], [1, 0, 3]) == 1 and overlap([2, 0, 6], [1, 0, 3]) == 1  # totals do not count
    assert overlap([4, 0], [0, 1]) == 0
    assert overlap([1, 3, 0], [2, 1, 1]) == 0.25 + 0.25  # of (1/4, 3/4, 0) and (1/2, 1/4, 1/4)


@pytest.mark.parametrize("apart", [0.0, 0.3, 0.6])
def test_the_estimate_comes_to_the_integral(apart):
    """Of normal densities of the same width s it is 2·Φ(−d/2s) (Inman & Bradley), and their AUC Φ(d/(s√2))."""
    random, size, width = np.random.default_rng(0), 4096, 0.15
    first, second = random.normal(apart / 2, width, size), random.normal(-apart / 2, width, 8 * size)

    def below(z):
        return 0.5 * math.erfc(-z / math.sqrt(2))

    expected = 2 * below(-apart / (2 * width))
    occupied = np.count_nonzero(counts(first))
    found = overlap(counts(first), counts(second))
    assert expected - 0.4 * math.sqrt(1.2 * occupied / size) < found < expected + 0.012
    assert auc(first, second) == pytest.approx(below(apart / (width * math.sqrt(2))), abs=0.01)


def test_the_area_counts_pairs():
    random = np.random.default_rng(1)
    first, second = random.integers(0, 9, 30) / 8, random.integers(0, 9, 40) / 10
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(first, second)]
    assert auc(first, second) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert auc([1.0], [0.0]) == 1 and auc([0.0], [1.0]) == 0 and auc([0.5], [0.5, 0.5]) == 0.5


def test_a_look_is_of_every_head_and_of_their_mean():
    found = look(shot())
    assert found["step"] == 7 and found["pairs"] == 4 and found["tau"] is None
    # Head 1: (1/4 at −0.98, 1/4 at 0.52, 1/2 at 0.92), (2/5 at −0.98, 1/5 at 0.02, 2/5 at 0.52). Head 2: apart.
    assert found["overlap"]["all"]["heads"] == [0.5, 0.0]
    # 0.92 twice above all five; 0.52 above three and beside two; −0.98 beside two.
    assert found["auc"]["all"]["heads"] == [(5 + 5 + 4 + 1) / 20, 1.0]
    # (0.92, 0.92, 0.72, −0.03) and (−0.23, −0.23, −0.98, −0.98, −0.48).
    assert found["overlap"]["all"]["mean"] == 0 and found["auc"]["all"]["mean"] == 1
    assert sum(found["mean_counts"]["positive"]) == 4 and found["mean_counts"]["positive"][19] == 1
    # (1/4, 1/4, 1/2) and (0, 1/2, 1/2).
    assert found["overlap"]["hardest"] == {"heads": [0.75, 0.0]}
    assert found["auc"]["hardest"] == {"heads": [(1.5 * 2 + 0.5 + 0) / 8, 1.0]}
    assert set(look(shot(), adaptive=True)["tau"]) == set(module.KINDS)


def test_a_loss_of_all_negatives_has_no_hardest():
    found = look(snapshot(top_k=0), adaptive=True)
    assert all(list(found[name]) == ["positive", "all"] for name in ("counts", "tau"))
    assert list(found["overlap"]) == list(found["auc"]) == ["all"]


def test_temperatures_are_told_in_bins_of_similarity():
    """Of a bin with enough pairs."""
    similarity = array([0.52] * 21 + [-1.0] * 19, [0.53] * 20 + [1.0] * 20)
    tau = array([*range(21), *[5] * 19], [*range(21, 41), *[7] * 20])
    found = look(shot(positive_similarity=similarity, positive_tau=tau), adaptive=True)["tau"]["positive"]
    assert {place: value for place, value in enumerate(found["mean"]) if value is not None} == {30: 20.0, 39: 7.0}
    assert found["low"][30] == 4.0 and found["high"][30] == 36.0
    row = {"after": {"tau": {"positive": found}}}
    other = {"after": {"tau": {"positive": {**found, "mean": [None] * 30 + [10.0] + [None] * 9}}}}
    together = temperatures([row, other], "positive", "after")
    assert together["mean"][30] == 15.0 and together["mean"][39] == 7.0 and np.isnan(together["mean"][0])
    assert together["high"][30] == 36.0


def test_trainings_are_pooled_by_their_shares():
    rows = [{"after": look(shot())}] * 2
    one = pooled(rows, "positive", "after")
    assert {place: share for place, share in enumerate(one) if share} == {0: 1 / 8, 30: 1 / 8, 38: 6 / 8}
    assert pooled(rows, "positive", "after", mean=True)[38] == 0.5


def test_a_run_is_looked_at_before_and_after(tmp_path):
    found = looks(read_run(run_directory(tmp_path, before=snapshot(), after=snapshot(19))))
    assert found["tau_kind"] == "adaptive" and found["before"]["step"] == 0 and found["after"]["step"] == 19
    assert found["after"]["tau"] is not None


def test_a_run_that_cannot_be_looked_at_is_refused(tmp_path):
    run = read_run(run_directory(tmp_path / "a", after=snapshot()))
    with pytest.raises(ValueError, match="a must have a snapshot from before training, got none"):
        looks(run)
    broken = snapshot(positive_similarity=array([float("inf")] * 16, [0.5] * 16))
    with pytest.raises(ValueError, match=r"before\.npz is damaged: positive_similarity must be finite"):
        read_run(run_directory(tmp_path / "b", before=broken, after=snapshot()))
