import sys
import types
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import dense, peers
from benchmarks.check import Oracle
from benchmarks.measure import operators
from benchmarks.show import plots, tables
from tests.helpers.benchmarks.tiny import ALL, SIMCLR

# What torch.compile makes of `dense` is checked where it is timed.
RUNS = [(case, peer.name) for case in ALL for peer in peers.beside(case, "cpu") if peer.name != "compiled"]


@pytest.mark.parametrize(("case", "name"), RUNS, ids=[f"{case.name}: {name}" for case, name in RUNS])
def test_peers_compute_the_same(case, name):
    if name == "lightly":
        pytest.importorskip("lightly")
        case = replace(case, width=400)  # granted is 5 / N here
    oracle = Oracle(case, "cpu", torch.float32)
    assert oracle.error(peers.implementation(name, case)) <= oracle.allows(name)


def test_allowances_are_for_peers_alone():
    case = next(case for case in ALL if case.settings.get("top_k"))
    assert peers.allowance("auto", case, torch.float32) == peers.allowance("reference", case, torch.bfloat16) == 0
    assert peers.allowance("dense", case, torch.float32) == 0.02
    assert peers.allowance("dense", case, torch.bfloat16) == 0.5
    barlow = next(case for case in ALL if case.operator == "barlow")
    assert peers.allowance("lightly", barlow, torch.float32) == 5 / barlow.width
    oracle = Oracle(case, "cpu", torch.float32)
    assert oracle.allows("auto") == oracle.tolerance < oracle.allows("dense") == 0.02


@pytest.fixture
def made(monkeypatch):
    """Shapes of the results of the products so far."""
    shapes = []
    original = torch.Tensor.__matmul__

    def product(a, b):
        shapes.append(tuple((result := original(a, b)).shape))
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    return shapes


@pytest.mark.parametrize(
    "case", [case for case in ALL if case.operator in ("contrast", "align", "decorrelate")], ids=str
)
def test_products_are_of_the_shapes_of_the_case(case, made):
    """All similarities, whether all anchors are taken at a time or some, and a gradient for each row that has one."""
    operands = case.operands("cpu", torch.float32)
    tables = [table for table in operands[:4] if table is not None]
    heads, anchors, _ = tables[0].shape
    for at_once in (None, 8):
        made.clear()
        peers.products(case, operands, at_once)()
        expected = []
        for x, y in zip(tables[::2], tables[1::2], strict=True):
            for part in x.split(at_once or anchors, dim=1):
                expected.append((heads, part.shape[1], y.shape[1]))
                expected += [part.shape] * x.requires_grad + [y.shape] * y.requires_grad
        assert made == [tuple(shape) for shape in expected]


def test_products_are_those_of_the_gradients(made):
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
    case = next(case for case in ALL if peers.PEERS["lightly"] in peers.beside(case, "cpu"))
    monkeypatch.setitem(sys.modules, "lightly.loss", None)
    with pytest.raises(peers.NotInstalled, match=r"amcl-fast\[bench\]"):
        peers.implementation("lightly", case)
    with pytest.raises(ValueError, match=r"peer must be one of .* for barlow, got 'chunked'"):
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
    case = next(case for case in ALL if peers.PEERS[name] in peers.beside(case, "cuda"))
    assert peers.PEERS[name] not in peers.beside(case, "cpu")
    oracle = Oracle(case, "cpu", torch.float32)
    assert oracle.error(peers.implementation(name, case)) <= oracle.tolerance
    assert set(calls) == {name}
    for missing in ("inf_cl", "liger_kernel.transformers.functional"):
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(peers.NotInstalled, match="pip install"):
        peers.implementation(name, case)
    with pytest.raises(ValueError, match=f"peer must be one of .* for contrast, got '{name}'"):
        peers.implementation(name, ALL[0])


def test_one_more_peer_is_one_more_record(monkeypatch):
    """It is checked, timed, drawn and in every table, by that alone."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    to_hex = pytest.importorskip("matplotlib.colors").to_hex

    def times(factor):
        return lambda case: lambda *operands: factor * dense.OPERATORS[case.operator](*operands, **case.settings)

    def is_contrast(case):
        return case.operator == "contrast"

    about = "of a test"
    right = peers.Peer("right", about, "#123456", times(1), takes=is_contrast, joins=True)
    wrong = peers.Peer("wrong", about, "#654321", times(1.1), takes=is_contrast, joins=True)
    elsewhere = peers.Peer("elsewhere", about, "#aaaaaa", times(1), joins=True, devices=("cuda",))
    absent = peers.Peer("absent", about, "#bbbbbb", lambda case: __import__("nosuch"), joins=True, install="nosuch")
    for peer in (right, wrong, elsewhere, absent):
        monkeypatch.setitem(peers.PEERS, peer.name, peer)
    monkeypatch.setattr(operators.memory, "in_fresh_process", lambda case, name: 1000)
    row = operators.measure(replace(SIMCLR, peers=("dense",)), "cpu", "auto", 0.0)
    assert row["runs"].keys() == {"ours", "dense", "right", "wrong", "absent"}
    assert row["runs"]["right"]["rounds"] >= 3 and row["ratios"]["right"] > 0
    assert row["runs"]["wrong"] == {"wrong": pytest.approx(0.1, rel=0.2)}
    assert row["runs"]["absent"] == {"missing": "not installed: pip install nosuch"}
    head, _, line = tables.operators([row]).splitlines()
    assert "| × right | × wrong | × absent |" in head and "| wrong by 1e-01 | not installed |" in line
    assert f"{row['ratios']['right']:.1f} right; wrong by 1e-01 wrong" in tables.operator_line(row)
    assert "| right | of a test |" in tables.peers()
    axes = figure.add_subplot()
    plots._speed_up(axes, [row])
    assert to_hex(axes.patches[-1].get_facecolor()) == "#123456"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["dense", "right"]
    allowed = Oracle(SIMCLR, "cpu", torch.float32).allows("right")
    assert allowed == peers.allowance("right", SIMCLR, torch.float32) == 0.02
    # Where it is no peer of the operator it does not run, and cannot be asked for.
    assert right not in peers.beside(next(case for case in ALL if case.operator == "align"), "cpu")
    with pytest.raises(ValueError, match=r"peer must be one of .* for contrast, got 'nosuch'"):
        peers.beside(replace(SIMCLR, peers=("nosuch",)), "cpu")
