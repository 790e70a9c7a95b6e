from dataclasses import replace

import pytest
import torch

from benchmarks.cases import CASES, named, select
from benchmarks.peers import implementation

# Issue by issue: what each device has to reach.
TARGETS = {
    "cpu": {
        "SimCLR, N = 512": {"dense": 4, "compiled": 3, "products": 1},
        "SimCLR, N = 2048": {"dense": 8, "products": 0.6, "memory": 20},
        "SimCLR, N = 16,384": {"gib": 2},
        "SimCLR, N = 1024, softmax over all": {"dense": 2},
        "MoCo, N = 256, queue 65,536": {"dense": 4},
        "Barlow Twins, d = 2048, N = 512": {"dense": 2},
    },
    "cuda": {
        "SimCLR, N = 4096": {"products": 2, "dense": 10, "compiled": 5, "memory": 50},
        "SimCLR, N = 65,536": {"gib": 4},
        "MoCo, N = 256, queue 65,536": {"dense": 5},
        "NT-Xent, N = 4096": {"compiled": 3},
        "Barlow Twins, d = 8192, N = 1024": {"dense": 5, "memory": 50},
        "SimSiam, d = 2048, N = 4096": {"bandwidth": 0.7},
    },
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_targets(device):
    assert {case.name: case.targets[device] for case in CASES if case.targets.get(device)} == TARGETS[device]


def test_a_device_gets_its_targets_and_what_it_can_bear():
    names = {device: [case.name for case in select(device)] for device in ("cpu", "cuda")}
    assert set(TARGETS["cpu"]) <= set(names["cpu"]) and set(TARGETS["cuda"]) <= set(names["cuda"])
    assert "SimCLR, N = 65,536" not in names["cpu"]
    assert "NT-Xent, N = 1024" in names["cpu"] and "NT-Xent, N = 1024" in names["cuda"]


def test_names_are_distinct_and_found_by_any_part():
    assert len({case.name for case in CASES}) == len(CASES)
    assert [case.name for case in select("cpu", "BARLOW")] == [
        "Barlow Twins, d = 2048, N = 512",
        "Whole loss: Barlow Twins, τ = 1, d = 2048, N = 512",
    ]
    with pytest.raises(ValueError, match="got 'nosuch':\n  SimCLR, N = 512\n"):
        select("cpu", "nosuch")


@pytest.mark.parametrize("width", [32, 100, 128, 512])
def test_similarities_on_the_grid_have_no_rounding(width):
    case = next(case for case in CASES if case.operator == "contrast")
    x, y, *_ = type(case)("", "contrast", 2, 60, 0, width, case.settings).operands("cpu", torch.float32, on_grid=True)
    torch.testing.assert_close((x @ y.mT).double(), x.double() @ y.double().mT, rtol=0, atol=0)
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(2, 60), rtol=0, atol=0.01)
    assert torch.equal(x.bfloat16().float(), x)


def test_operands_differ_by_seed_alone():
    case = CASES[0]
    a, b, c = (case.operands("cpu", torch.float32, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_case_with_a_perplexity_has_it():
    """Rows of topk_mean are mean(s)/τ, which tells τ; with it the softmax over the hardest has the perplexity."""
    case = named("SimCLR, N = 2048, perplexity")
    case = replace(case, settings=case.settings | {"negatives": "topk_mean"})
    top_k, share = 100, case.settings["perplexity"]
    case = replace(case, rows=120, width=16)
    x, y, *rest = case.operands("cpu", torch.float64)
    assert rest[:3] == [None, None, None]
    s = (x @ y.mT).scatter(-1, rest[3].expand(len(x), -1, -1), -2).topk(top_k).values
    p = (s / (s.mean(-1) / implementation("auto", case)(x, y, *rest)).unsqueeze(-1)).softmax(-1)
    torch.testing.assert_close(torch.special.entr(p).sum(-1), torch.full(p.shape[:2], share * top_k).double().log())


def test_a_case_by_its_name():
    assert named(CASES[-1].name) is CASES[-1]
    with pytest.raises(ValueError, match=r"case must be the name of one of benchmarks.cases.CASES, got 'nosuch'"):
        named("nosuch")
