"""The grid of the study: its order, and what a loss takes of the negatives."""

from benchmarks.collapse.grid import LOSSES, QUEUE, Run, grid


def test_the_grid_begins_in_its_middle_and_every_seed_for_itself():
    losses = ["ntxent-0.5", "ntxent-0.2"]
    runs = grid(losses, ["plain", "both"], [256, 64], ["sgd"], [3, 4], deviations=1)
    assert [run.seed for run in runs] == [3] * 4 + [4] * 4
    assert runs[0] == Run("ntxent-0.5", "plain", 256, "sgd", 3)
    assert {(run.loss, run.head, run.batch) for run in runs[1:4]} == {
        ("ntxent-0.2", "plain", 256),  # a minor loss, in the middle only
        ("ntxent-0.5", "both", 256),
        ("ntxent-0.5", "plain", 64),
    }
    assert len(grid(losses, ["plain", "both"], [256, 64], ["sgd"], [3], deviations=9)) == 8


def test_a_share_of_the_negatives():
    assert LOSSES["topk-25%-adaptive"].selected(64) == (32, 126)
    assert LOSSES["topk-100-adaptive"].selected(32) == (62, 62)
    assert LOSSES["moco-topk-100-adaptive"].selected(64) == (100, QUEUE)
    assert LOSSES["ntxent-0.5"].selected(64) == (126, 126)
