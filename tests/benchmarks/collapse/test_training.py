"""Runs of the study: their figures."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.collapse import training
from benchmarks.collapse.command import table
from benchmarks.collapse.grid import OPTIMIZERS, Run
from benchmarks.collapse.training import looks_at, train


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", ["topk-25%-adaptive+", "moco-infonce-0.1"])
def test_a_run_trains_and_is_looked_at(study, loss, optimizer):
    row = train(Run(loss, "hidden", 4, optimizer, 0), study)
    assert [look["step"] for look in row["looks"]] == looks_at(study.steps) == [0, 2]
    first, last = row["looks"]
    assert first["loss"] != last["loss"] and 0 <= row["knn"] <= 100 and row["gradient_norm_end"] > 0
    assert first["d_selected"] <= first["d_negative"]
    assert first["d_shares"] == sorted(first["d_shares"]) and first["d_shares"][-1] <= first["d_negative"]
    assert len(table([row]).splitlines()) == 3


def test_distances_are_those_of_the_projections(study):
    of_run = training._Training(Run("topk-25%-adaptive", "plain", 4, "sgd", 0), study)
    look = of_run.look()
    with torch.no_grad():
        z = F.normalize(of_run.encoder(of_run._batch(of_run.rows[-1])).transpose(0, 1), dim=-1)  # (3, 8, d)
    square = torch.cdist(z.double(), z.double()).square()
    own = torch.arange(8)
    assert look["d_positive"] == pytest.approx(square[:, own, own.roll(4)].mean().item(), abs=1e-5)
    assert look["cosine"] == pytest.approx(1 - square.sum().item() / (2 * 3 * 8 * 7), abs=1e-5)
    square[:, own, own] = square[:, own, own.roll(4)] = 9
    nearest = square.sort(-1).values
    assert look["d_selected"] == pytest.approx(nearest[..., :2].mean().item(), abs=1e-5)  # a quarter of 6
    assert look["d_negative"] == pytest.approx(nearest[..., :6].mean().item(), abs=1e-5)
