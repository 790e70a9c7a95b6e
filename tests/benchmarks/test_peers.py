import sys
import types
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import peers
from benchmarks.check import Oracle, granted
from tests.helpers.benchmarks.tiny import ALL

RUNS = [(case, name) for case in ALL for name in case.peers if name in ("dense", "chunked", "reference", "lightly")]


@pytest.mark.parametrize(("case", "name"), RUNS, ids=[f"{case.name}: {name}" for case, name in RUNS])
def test_peers_compute_the_same(case, name):
    if name == "lightly":
        pytest.importorskip("lightly")
        case = replace(case, width=400)  # granted is 5 / N here
    oracle = Oracle(case, "cpu", torch.float32)
    assert oracle.error(peers.implementation(name, case)) <= max(oracle.tolerance, granted(name, case, torch.float32))


def test_granted_is_for_peers_alone():
    case = next(case for case in ALL if case.settings.get("top_k"))
    assert granted("auto", case, torch.float32) == granted("reference", case, torch.bfloat16) == 0
    assert granted("dense", case, torch.float32) == 0.02


def test_products_run_at_every_size():
    for case in ALL:
        if case.operator in ("contrast", "align", "decorrelate"):
            operands = case.operands("cpu", torch.float32)
            peers.products(case, operands)()
            peers.products(case, operands, 8)()


def test_products_are_those_of_the_gradients(monkeypatch):
    made = []
    original = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: made.append(1) or original(a, b))
    counts = {}
    for case in ALL:
        if case.operator in ("contrast", "decorrelate"):
            made.clear()
            peers.products(case, case.operands("cpu", torch.float32))()
            counts[case.name] = len(made)
    assert counts["SimCLR, N = 512"] == counts["Barlow Twins, d = 2048, N = 512"] == 6
    assert counts["NT-Xent, N = 1024"] == 3
    assert counts["MoCo, N = 256, queue 65,536"] == 5


def test_missing_package_and_unknown_peer(monkeypatch):
    case = next(case for case in ALL if "lightly" in case.peers)
    monkeypatch.setitem(sys.modules, "lightly.loss", None)
    with pytest.raises(peers.NotInstalled, match=r"amcl-fast\[bench\]"):
        peers.implementation("lightly", case)
    with pytest.raises(ValueError, match="no peer 'chunked' of barlow"):
        peers.implementation("chunked", next(case for case in ALL if case.operator == "barlow"))


def packages(monkeypatch, calls):
    """Inf-CL and Liger by stand-ins that compute, in PyTorch, what their documentation says."""

    def cal_flash_loss(q, k, labels=None, scale=1.0, head_dim=256):
        assert q.shape[-1] % head_dim == 0
        calls.append("inf_cl")
        return F.cross_entropy(scale * q @ k.mT, torch.arange(len(q)), reduction="none")

    def liger(input, weight, target):
        calls.append("liger")
        return F.cross_entropy(input @ weight.mT, target)

    modules = {
        "inf_cl": types.SimpleNamespace(cal_flash_loss=cal_flash_loss),
        "liger_kernel": types.SimpleNamespace(),
        "liger_kernel.transformers": types.SimpleNamespace(),
        "liger_kernel.transformers.functional": types.SimpleNamespace(liger_fused_linear_cross_entropy=liger),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", ["inf_cl", "liger"])
def test_kernels_of_others_are_asked_for_what_they_have(monkeypatch, name):
    calls = []
    packages(monkeypatch, calls)
    case = next(case for case in ALL if name in case.peers)
    oracle = Oracle(case, "cpu", torch.float32)
    assert oracle.error(peers.implementation(name, case)) <= oracle.tolerance
    assert set(calls) == {name}
    for missing in ("inf_cl", "liger_kernel.transformers.functional"):
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(peers.NotInstalled, match="pip install"):
        peers.implementation(name, case)
    with pytest.raises(ValueError, match=f"no peer '{name}' of contrast"):
        peers.implementation(name, ALL[0])
