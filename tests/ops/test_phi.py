"""φ as one operator: its numbers, its gradients, and a precision of its products that is nobody else's."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F

from amcl_fast import AdaptiveTemperature, MoCoLoss, SimCLRLoss, SimSiamLoss
from amcl_fast import rows as rows_module
from amcl_fast.losses import base
from amcl_fast.ops import phi as module
from amcl_fast.ops.phi import phi
from tests.helpers.operations import Operations, without_launches

MATMUL = torch.backends.cuda.matmul


def weights_of(d=6, hidden=5, out=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((hidden, d), (hidden,), (out, hidden), (out,))
    return tuple(torch.randn(s, generator=generator, dtype=dtype, requires_grad=True) for s in shapes)


def table(layout, heads=3, rows=7, d=6, dtype=torch.float64):
    x = torch.randn(heads, rows, d, generator=torch.Generator().manual_seed(1), dtype=dtype)
    if layout == "queue":
        return x.mT.contiguous().mT
    return x.transpose(0, 1).contiguous().transpose(0, 1) if layout == "projections" else x


@pytest.mark.parametrize("layout", ["rows", "queue", "projections"])
def test_value_and_gradients(layout):
    x, weights = table(layout).requires_grad_(), weights_of()
    w1, b1, w2, b2 = weights
    torch.testing.assert_close(phi(x, weights, ""), F.linear(F.relu(F.linear(x, w1, b1)), w2, b2))
    assert torch.autograd.gradcheck(lambda x, *weights: phi(x, weights, "tf32"), (x, *weights))


def test_is_a_well_formed_operator():
    x = table("queue", dtype=torch.float32).requires_grad_()
    torch.library.opcheck(module._phi, (x, *weights_of(dtype=torch.float32), "tf32"))


@pytest.mark.parametrize("layout", ["rows", "queue"])
def test_a_table_is_multiplied_as_it_lies(layout):
    x, weights = table(layout), weights_of()
    with Operations() as operations:
        torch.autograd.grad(phi(x, weights, "").sum(), weights)
    copies = {"aten.clone", "aten.copy_", "aten.contiguous", "aten._to_copy"} & operations.counts.keys()
    assert copies <= {"aten.clone"} and operations.counts["aten.clone"] <= 1  # of the expanded gradient


def test_weights_that_learn_nothing_get_nothing():
    x, weights = table("rows"), weights_of()
    with Operations() as operations:
        (found,) = torch.autograd.grad(phi(x, weights, "").sum(), weights[3])
    torch.testing.assert_close(found, torch.full_like(found, 21.0))
    assert operations.counts["amcl_fast.phi_backward"] == 1


# ---- precision --------------------------------------------------------------------------------------------------


SETTINGS = {
    "as torch begins": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "highest": lambda: torch.set_float32_matmul_precision("highest"),
    "allow_tf32": lambda: setattr(MATMUL, "allow_tf32", True),
    "tf32": lambda: setattr(MATMUL, "fp32_precision", "tf32"),
    "ieee": lambda: setattr(MATMUL, "fp32_precision", "ieee"),
}


def state():
    """All that torch says of its setting; it refuses to where an older and a newer way to set it were both used."""
    answers = []
    for ask in (lambda: MATMUL.fp32_precision, lambda: MATMUL.allow_tf32, torch.get_float32_matmul_precision):
        try:
            answers.append(ask())
        except RuntimeError:
            answers.append(None)
    return answers


@pytest.fixture(params=SETTINGS)
def setting(request):
    """What the process is set to, and has to stay."""
    before = MATMUL.fp32_precision
    SETTINGS[request.param]()
    yield state()
    torch.set_float32_matmul_precision("highest")
    MATMUL.fp32_precision = before


class Precisions(Operations):
    """The precision at each product, forwards and backwards."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket._qualified_op_name.split("::")[1] in ("mm", "addmm", "bmm", "_addmm_activation"):
            self.seen.add(MATMUL.fp32_precision)
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize("precision", ["ieee", "tf32", ""])
@pytest.mark.parametrize("layout", ["rows", "queue"])
def test_products_have_the_precision_and_leave_it(layout, precision, setting):
    x, weights = table(layout, dtype=torch.float32).requires_grad_(), weights_of(dtype=torch.float32)
    with Precisions() as products:
        out = phi(x, weights, precision)
    assert products.seen == {precision or setting[0]} and state() == setting
    with Precisions() as products:
        torch.autograd.grad(out.sum(), (x, *weights))
    assert products.seen == {precision or setting[0]} and state() == setting


def test_an_exception_leaves_nothing_changed(setting):
    x, weights = table("rows", d=9, dtype=torch.float32), weights_of(dtype=torch.float32)
    for precision in ("ieee", "tf32"):
        with pytest.raises(RuntimeError, match="shape"):
            phi(x, weights, precision)
        assert state() == setting


@pytest.mark.parametrize("own", [None, "tf32"], ids=["inherited", "its own"])
def test_what_is_inherited_stays_so(own):
    before = MATMUL.fp32_precision, torch.backends.fp32_precision
    try:
        MATMUL.fp32_precision = own or "none"
        torch.backends.fp32_precision = "tf32"
        phi(table("rows", dtype=torch.float32), weights_of(dtype=torch.float32), "ieee")
        assert (MATMUL.fp32_precision, torch.backends.fp32_precision) == ("tf32", "tf32")
        torch.backends.fp32_precision = "ieee"
        assert MATMUL.fp32_precision == (own or "ieee")
    finally:
        MATMUL.fp32_precision, torch.backends.fp32_precision = before


def test_two_threads_restore_the_setting():
    before = state()
    x, weights = table("rows", dtype=torch.float32), weights_of(dtype=torch.float32)

    def work(precision):
        for _ in range(200):
            torch.autograd.grad(phi(x, weights, precision).sum(), weights)

    threads = [threading.Thread(target=work, args=(precision,)) for precision in ("ieee", "tf32", "ieee")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state() == before


def test_autocast_does_not_round_the_products():
    x, weights = table("rows", dtype=torch.float32), weights_of(dtype=torch.float32)
    expected = torch.autograd.grad(phi(x, weights, "").square().sum(), weights)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(phi(x, weights, "").square().sum(), weights)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def launches_nothing(monkeypatch):
    """Only what is asked for counts; no kernel of the interpreter runs."""
    if torch.cuda.is_available():
        pytest.skip("the interpreter takes CPU tensors")
    monkeypatch.setattr(rows_module, "may_look", lambda _: False)
    with without_launches(monkeypatch):
        yield


@pytest.mark.parametrize(
    ("precision", "float32", "half"), [("auto", "", "tf32"), ("float32", "ieee", "ieee"), ("tf32", "tf32", "tf32")]
)
def test_what_the_losses_ask_for(precision, float32, half, monkeypatch, launches_nothing):
    asked = []

    def watched(rows, weights, precision):
        asked.append(precision)
        return phi(rows, weights, precision)

    monkeypatch.setattr(base, "phi", watched)
    temperature = AdaptiveTemperature(16, 8, 0.1, 1.0, score="cosine", precision=precision)
    z = torch.randn(4, 2, 16)
    queue = F.normalize(torch.randn(2, 16, 9), dim=1)
    calls = (
        lambda: SimCLRLoss(temperature, negatives="softmax", backend="triton")(z, -z),
        lambda: MoCoLoss(temperature, negatives="softmax", backend="triton")(z, -z, queue),
    )
    for call in calls:
        call()
        assert set(asked) == {float32}
        asked.clear()
        with torch.autocast("cpu", torch.bfloat16):
            call()
        assert set(asked) == {half}
        asked.clear()
    with torch.autocast("cpu", torch.bfloat16):  # whose pairs are not rounded
        SimSiamLoss(temperature, backend="triton")(z, z, z, z)
    assert set(asked) == {float32}


def test_a_module_of_before_the_setting_loads():
    temperature = AdaptiveTemperature(16, 8)
    del temperature.__dict__["precision"]
    for loaded in (pickle.loads(pickle.dumps(temperature)), copy.deepcopy(temperature)):
        assert loaded.precision == "auto" and loaded.products(torch.bfloat16) == "tf32"
    assert "precision" not in repr(loaded)
    assert "precision='tf32'" in repr(AdaptiveTemperature(16, precision="tf32"))


def test_a_precision_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"precision must be one of \('auto', 'float32', 'tf32'\), got 'bf16'"):
        AdaptiveTemperature(16, precision="bf16")


def rounded(x):
    """To 10 bits of mantissa, the nearest, as tensor cores read float32."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("spread", [1.0, 4.0], ids=["as it begins", "as it is trained"])
def test_tf32_moves_tau_less_than_rounding_its_output(spread):
    """Of the cosine: rounding φ to bfloat16, in which products read it, moves τ more."""
    torch.manual_seed(0)
    temperature = AdaptiveTemperature(128, tau_min=0.1, tau_max=1.0, score="cosine", offset=0.5)
    w1, b1, w2, b2 = (spread * w.detach() for w in temperature.weights(torch.float32))
    z = F.normalize(torch.randn(1, 256, 128), dim=-1)

    def tau(out, dtype=torch.float64):
        features = (2 * F.normalize(out.double(), dim=-1)).to(dtype).double()
        return 0.1 + 0.9 * torch.sigmoid(2 - features @ features.mT)

    exact = F.linear(F.relu(F.linear(z.double(), w1.double(), b1.double())), w2.double(), b2.double())
    tf32 = F.linear(rounded(F.relu(F.linear(rounded(z), rounded(w1), b1))), rounded(w2), b2)
    right = tau(exact)
    by_products, by_output, by_both = (
        ((t - right) / right).square().mean().sqrt()
        for t in (tau(tf32), tau(exact, torch.bfloat16), tau(tf32, torch.bfloat16))
    )
    assert by_products < by_output / 1.5
    assert by_both < 1.2 * by_output
