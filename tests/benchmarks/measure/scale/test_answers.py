"""What the processes of a rehearsal measure, and the processes."""

import json
import statistics
import time

import pytest
import torch

from amcl_fast.benchmarks.measure.scale import answers, children
from amcl_fast.data import ContrastiveDataModule
from tests.helpers.processes import spawn


def test_an_exact_number_of_queries(here):
    """Then nothing is extrapolated; the bank's accuracy is checked against float64."""
    request = {"rows": 3000, "width": 16, "dtype": "float32", "device": "cpu", "queries": 300, "seconds": None}
    request["most"] = 50_000
    (answer,) = children.measure("knn", request, {})
    assert [(one["queries"], one["rows"]) for one in answer["timed"]] == [(300, 3000)] and answer["error"] == 0
    assert answer["timed"][0]["knn"] > 0 and answer["timed"][0]["product"] > 0


def test_steps_of_a_probe(here):
    """No more than an epoch has, however much time there is; the first are none of them."""
    request = {"rows": 3000, "width": 16, "dtype": "float32", "device": "cpu", "seconds": 3600}
    (answer,) = children.measure("probe", request, {})
    assert answer["steps"] == 10 and answer["steps_of_a_block"] == 2 and answer["batches"] == 12
    assert 0 < answer["step"] == pytest.approx(statistics.median(answer["blocks"][1:]) / 2)


def slow_start(rank, request, folder):
    usual = ContrastiveDataModule.prepare_data

    def slow(data):
        time.sleep(6)  # longer than a busy machine holds one of them up
        usual(data)

    ContrastiveDataModule.prepare_data = slow
    answer = answers._answer("start", request | {"rank": rank})
    (folder / f"{rank}.json").write_text(json.dumps(answer))


@pytest.mark.slow
@pytest.mark.distributed
def test_the_start_of_two_processes(photographs, tmp_path, monkeypatch):
    """The second takes the first one's list, and waits for it."""
    monkeypatch.setenv("AMCL_FAST_CACHE", str(tmp_path / "cache"))
    request = {"root": str(photographs), "loads": False, "processes": 2, "group": str(tmp_path / "group")}
    spawn(slow_start, args=(request, tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["images"] == second["images"] > 0
    # Both are counted from one moment on, and the list is there at another.
    listed = [answer["prepare"] + answer["waiting"] for answer in (first, second)]
    assert listed[0] == pytest.approx(listed[1], abs=5)
    assert first["prepare"] > 6 and second["prepare"] < 5 and second["waiting"] > 1


def test_two_processes():
    """Both take the same steps of a probe."""
    request = {"rows": 3000, "width": 16, "dtype": "float32", "device": "cpu", "seconds": 0.1}
    answers = children.measure("probe", request, {}, 2)
    assert [answer["batches"] for answer in answers] == [12, 12] and answers[0]["steps"] == answers[1]["steps"] >= 10
    assert min(answer["step"] for answer in answers) > 0


def test_a_process_that_fails_is_named():
    with pytest.raises(children.Failed, match="nosuch: the process that measures it ended with code 1"):
        children.measure("nosuch", {}, {})


def test_features_have_class_structure():
    features = answers._Features(512, torch.float32, "cpu")
    rows, labels = features.rows(4000, seed=1)
    assert torch.equal(rows, features.rows(4000, seed=1)[0]) and not torch.equal(rows, features.rows(4000, seed=2)[0])
    rows = torch.nn.functional.normalize(rows, dim=1)
    cosine = rows @ rows.T
    same = (labels[:, None] == labels) & ~torch.eye(4000, dtype=torch.bool)
    assert cosine[same].mean() == pytest.approx(0.9 / 512**0.5, rel=0.1)
    assert abs(cosine[labels[:, None] != labels].mean()) < 0.001
