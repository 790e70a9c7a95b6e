"""Tensors that are not plain: a named error in one line, or the right value. Sparse, nested, of inference mode, …"""

import functools
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from amcl_fast import (
    AdaptiveTemperature,
    BarlowTwinsLoss,
    LearnedTemperature,
    MoCoLoss,
    PerplexityTemperature,
    SimCLRLoss,
    SimSiamLoss,
    capabilities,
    ops,
)
from amcl_fast.evaluate import knn_accuracy, linear_probe
from amcl_fast.evaluate.ridge import ridge_probe
from amcl_fast.models.momentum import KeyQueue
from amcl_fast.optim import LARS
from amcl_fast.setting_types import shown, written

BACKENDS = ["reference"] + (["native"] if capabilities.native_status().available else [])
N, C, D, K = 6, 2, 4, 9


def nested(layout):
    return lambda t: torch.nested.nested_tensor([*t], layout=layout)


def masked(t):
    return torch.masked.masked_tensor(t, torch.ones_like(t, dtype=torch.bool))


DENSE = "must be a dense tensor, got "
FOREIGN = {
    "sparse": (lambda t: t.to_sparse(), DENSE + r"the layout torch.sparse_coo; {}.to_dense\(\) is one"),
    "CSR": (lambda t: t.to_sparse_csr(), DENSE + r"the layout torch.sparse_csr; {}.to_dense\(\) is one"),
    "BSR": (lambda t: t.to_sparse_bsr((1, 1)), DENSE + r"the layout torch.sparse_bsr; {}.to_dense\(\) is one"),
    "MKL-DNN": (lambda t: t.to_mkldnn(), DENSE + r"the layout torch._mkldnn; {}.to_dense\(\) is one"),
    "nested": (nested(torch.strided), DENSE + r"a nested one; torch.stack\({}.unbind\(\)\) is one where"),
    "jagged": (nested(torch.jagged), DENSE + r"a nested one; torch.stack\({}.unbind\(\)\) is one where"),
    "masked": (masked, DENSE + r"a MaskedTensor; {}.get_data\(\) is one"),
    "complex": (lambda t: t + 0j, "must be one of float32, float64, bfloat16, float16, got torch.complex64"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), "must be one of .*float16, got torch.float8_e4m3fn"),
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "must be one of .* got torch.qint8"),
    "an array": (lambda t: t.numpy(), "must be a torch.Tensor, got ndarray"),
}
NAMES = {
    "with names": (lambda t: t.rename("n", "d"), r"must have no names, got \('n', 'd'\); {}.rename\(None\) has none")
}
LOSSES = {
    SimCLRLoss: ("z1", "z2"),
    MoCoLoss: ("q", "k", "queue"),
    SimSiamLoss: ("p1", "z2", "p2", "z1"),
    BarlowTwinsLoss: ("z1", "z2"),
}
pytestmark = pytest.mark.filterwarnings(
    "error", "ignore:.*(prototype|Named tensors|beta state|experimental|deprecated)"
)


def dense(seed=0, rows=N):
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [*FOREIGN, *NAMES])
def test_losses_name_them(kind):
    make, told = (FOREIGN | NAMES)[kind]
    for loss, names in LOSSES.items():
        for place, name in enumerate(names):
            words = "must have the dtype of q, torch.float32" if name == "queue" and "one of" in told else told
            given = [dense(i) if of != "queue" else dense(i, K).T for i, of in enumerate(names)]
            given[place] = make(given[place].contiguous())
            with pytest.raises(TypeError, match=f"^{name} {words.format(name)}.*$"):
                loss(0.5)(*given)


@pytest.mark.parametrize("kind", ["sparse", "nested", "jagged"])
def test_views_name_them(kind):
    make, told = FOREIGN[kind]
    third = re.escape("views[2]")
    with pytest.raises(TypeError, match=f"^{third} {told.format(third)}"):
        SimCLRLoss(0.5).of_views([dense(), dense(1), make(dense(2))])
    views = torch.stack([dense(i) for i in range(3)])
    for call, name in (
        (lambda v: BarlowTwinsLoss().of_views(v), "views"),
        (lambda v: SimSiamLoss().of_views(v, views), "predictions"),
        (lambda v: SimSiamLoss().of_views(views, v), "projections"),
        (lambda v: MoCoLoss(0.5).of_views(views, v, dense(rows=K).T), "keys"),
    ):
        with pytest.raises(TypeError, match=f"^{name} {told.format(name)}"):
            call(make(views))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["sparse", "CSR", "nested", "jagged", "MKL-DNN", "masked"])
def test_operators_name_them(kind, backend):
    make, told = FOREIGN[kind]
    x, skip = dense(), torch.zeros(N, 1, dtype=torch.int64)
    foreign = make(x)
    contrast = {"anchors": x[None], "candidates": x[None], "phi_anchors": x[None], "phi_candidates": x[None]}
    contrast |= {"offset": x[0, 0], "skip": skip, "tau_min": 0.1, "tau_max": 1.0, "beta": 0.0, "top_k": None}
    for name in ("anchors", "candidates", "phi_anchors", "phi_candidates", "offset", "skip"):
        with pytest.raises(TypeError, match=f"^{name} {told.format(name)}"):
            ops.contrast(**contrast | {name: foreign, "negatives": "softmax"}, backend=backend)
    for name in ("x", "y", "phi_x", "phi_y"):
        paired = {"x": x[None], "y": x[None], "phi_x": x[None], "phi_y": x[None], "offset": None} | {name: foreign}
        for operator, more in ((ops.align, {"weight": 1.0}), (ops.decorrelate, {"lambd": 1.0})):
            with pytest.raises(TypeError, match=f"^{name} {told.format(name)}"):
                operator(**paired, tau_min=0.1, tau_max=1.0, beta=0.0, backend=backend, **more)
    settings = {"tau_min": 0.1, "tau_max": 1.0, "negatives": "softmax", "top_k": None, "perplexity": 0.5}
    for tables, name in (((foreign, x[None]), "anchors"), ((x[None], foreign), "candidates")):
        with pytest.raises(TypeError, match=f"^{name} {told.format(name)}"):
            ops.calibrate(*tables, None, **settings, backend=backend)


@pytest.mark.parametrize("kind", FOREIGN)
def test_temperatures_queue_and_evaluations_name_them(kind):
    make, told = FOREIGN[kind]
    x, labels = dense(rows=20), torch.arange(20) % 3
    foreign = make(x)
    for temperature in (AdaptiveTemperature(D), LearnedTemperature()):
        for given, name in (((foreign, x), "x"), ((x, foreign), "y")):
            with pytest.raises(TypeError, match=f"^{name} {told.format(name)}"):
                temperature(*given)
    for given, name in (((foreign, labels, x, labels), "bank"), ((x, labels, foreign, labels), "queries")):
        for probe in (knn_accuracy, ridge_probe):
            with pytest.raises(TypeError, match=f"^{name} {told.format(name)}"):
                probe(*given, num_classes=3)
    with pytest.raises(TypeError, match=f"^queries {told.format('queries')}"):
        linear_probe([(x, labels)], foreign, labels, num_classes=3)
    if "dense" in told:
        with pytest.raises(TypeError, match=f"^keys {told.format('keys')}"):
            KeyQueue(1, 30, D).enqueue(foreign)


@pytest.mark.parametrize("keys", [dense(), dense()[None, :, :3], dense()[None].expand(2, -1, -1)], ids=str)
def test_keys_of_another_shape_are_named(keys):
    with pytest.raises(ValueError, match=r"^keys must have the shape \(C, n, d\) = \(1, n, 4\), got"):
        KeyQueue(1, 30, D).enqueue(keys)


def test_sparse_gradients_are_named():
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"^gradients must be dense with LARS, got a sparse one"):
        LARS(embedding.parameters(), 0.1).step()


def temperatures(width):
    yield 0.5
    yield AdaptiveTemperature(width, 3, 0.1, 1.0, score="cosine")
    yield AdaptiveTemperature(width, 3, 0.1, 1.0)


CALLS = {
    "SimCLR": (lambda t, b: SimCLRLoss(t, negatives="softmax", include_positive=True, backend=b), 2),
    "SimCLR, κ": (lambda t, b: SimCLRLoss(t, negatives="topk_softmax", top_k=3, backend=b), 2),
    "MoCo": (lambda t, b: MoCoLoss(t, negatives="softmax", backend=b), 3),
    "SimSiam": (lambda t, b: SimSiamLoss(t, backend=b), 4),
    "Barlow Twins": (lambda t, b: BarlowTwinsLoss(t, backend=b), 2),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_what_was_made_in_inference_mode_is_worth_the_same(name, backend):
    make, count = CALLS[name]
    of_views = {
        "MoCo": lambda loss, a: loss.of_views(a[0], a[1], a[2]),
        "SimSiam": lambda loss, a: loss.of_views(a[0], a[1]),
    }.get(name, lambda loss, a: loss.of_views(a[0]))
    more = [LearnedTemperature(), PerplexityTemperature(), AdaptiveTemperature(D, 3, 0.1, 1.0, share="row")]
    for temperature in [
        *temperatures(N if name == "Barlow Twins" else D),
        *(more if name in ("SimCLR", "MoCo") else ()),
    ]:
        loss = make(temperature, backend)
        plain = [dense(i) for i in range(count)]
        views = [torch.stack([dense(3 * i + v) for v in range(3)]) for i in range(2)]
        if name == "MoCo":
            plain[2] = torch.nn.functional.normalize(dense(2, K), dim=1).T
            views.append(plain[2])
        for call, given in ((lambda loss, a: loss(*a), plain), (of_views, views)):
            exact = call(loss, given)
            for place in range(len(given)):
                with torch.inference_mode():
                    made = given[place].clone()
                mixed = [t.clone().requires_grad_() for t in given]
                mixed[place] = made
                value = call(loss, mixed)
                assert torch.equal(value, exact)
                if value.requires_grad:
                    value.backward()
                with torch.inference_mode():
                    assert torch.allclose(call(loss, mixed), exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_operators_take_what_was_made_in_inference_mode(backend):
    x, phi = dense()[None], dense(1)[None].requires_grad_()
    with torch.inference_mode():
        made = x.clone()
    settings = {"tau_min": 0.1, "tau_max": 1.0, "beta": 0.1, "backend": backend}
    for operator in (
        functools.partial(ops.contrast, skip=None, negatives="softmax", top_k=None),
        functools.partial(ops.align, weight=1.0),
        functools.partial(ops.decorrelate, lambd=0.1),
    ):
        (first, *_), (second, *_) = (operator(t, t, phi, phi, offset=None, **settings) for t in (x, made))
        second.sum().backward()
        assert torch.equal(first, second) and phi.grad.isfinite().all()


NUMBERS = (0.25, np.float32(0.25), np.float16(0.25), Fraction(1, 4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_any_kind_are_worth_the_same(backend):
    x, y = dense(), dense(1)
    losses = {SimCLRLoss(t, beta=t, backend=backend)(x, y) for t in NUMBERS}
    align = {"phi_x": x[None], "phi_y": y[None], "offset": None, "tau_max": 1.0, "backend": backend}
    rows = [ops.align(x[None], y[None], **align, tau_min=t, weight=t, beta=t)[0] for t in NUMBERS]
    assert len({float(loss) for loss in losses}) == 1 and all(torch.equal(row, rows[0]) for row in rows)
    for t in NUMBERS:
        of_numpy = AdaptiveTemperature(4, tau_min=t, scale=t, offset=t, score="cosine")
        assert (of_numpy.tau_min, of_numpy.scale, of_numpy.offset.item()) == (0.25, 0.25, 0.25)
        assert LearnedTemperature(t, tau_min=t).tau_min == PerplexityTemperature(t, t).mean == 0.25
    assert SimCLRLoss(1, top_k=np.int64(3)).top_k == 3 and AdaptiveTemperature(np.int64(4)).dim == 4
    assert SimSiamLoss.recommended(np.int64(4)).temperature.tau_max == SimSiamLoss.recommended(4).temperature.tau_max


@pytest.mark.parametrize("value", [Fraction(10**400), -Fraction(10**400)], ids=["large", "low"])
def test_a_fraction_beyond_all_floats_is_refused_by_name(value):
    for name, call in {
        "temperature": lambda: SimCLRLoss(value),
        "beta": lambda: SimSiamLoss(beta=value),
        "tau_min and tau_max": lambda: AdaptiveTemperature(4, tau_max=value),
        "lr": lambda: LARS([torch.zeros(1)], lr=value),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name} must be .*got ") as error:
            call()
        assert len(str(error.value)) < 200


class Unwritable:
    def __repr__(self):
        raise RuntimeError("no")


GIVEN = {
    "a whole number of about 400 digits": 10**400,
    "a whole number of about 9999 digits": -(10**9999),
    "a value of type list": [10**5000],
    "a value of type Unwritable": Unwritable(),
    f"'{'x' * 78}…": "x" * 300,
    "Tensor of torch.float32 and shape (3, 200)": torch.ones(3, 200),
    "ndarray of float64 and shape (2, 2)": np.ones((2, 2)),
    "nan": math.nan,
}


@pytest.mark.parametrize("told", GIVEN)
def test_what_was_given_is_one_short_line(told):
    value = GIVEN[told]
    assert written(value) == told
    for call in (
        lambda: SimCLRLoss(value),
        lambda: SimSiamLoss(beta=value),
        lambda: SimCLRLoss(0.1, top_k=value),
        lambda: SimCLRLoss(0.1, negatives=value),
        lambda: BarlowTwinsLoss(backend=value),
        lambda: AdaptiveTemperature(value),
        lambda: AdaptiveTemperature(4, tau_max=value),
        lambda: AdaptiveTemperature(4, score=value),
        lambda: LearnedTemperature(value),
        lambda: PerplexityTemperature(perplexity=value),
        lambda: SimSiamLoss.recommended(value),
        lambda: KeyQueue(1, value, 4),
    ):
        with pytest.raises((TypeError, ValueError), match=r" must be .*got ") as error:
            call()
        assert len(str(error.value)) < 200 and "\n" not in str(error.value) and told in str(error.value)


def test_a_terminal_obeys_nothing_that_was_given():
    assert shown("\x1b[31mred\n\ud800 é") == r"\x1b[31mred \ud800 é"


@pytest.mark.parametrize("size", [2**31, 2**62])
def test_a_width_that_no_tensor_has_is_named(size):
    with pytest.raises(ValueError, match=f"dim must be at most 2147483647, got {size}$"):
        AdaptiveTemperature(size)


def test_widths_without_memory_for_them_are_named():
    widest = 2**31 - 1
    with pytest.raises(ValueError, match=f"^dim must be such .* memory for it, got dim={widest}, hidden_dim={widest}$"):
        AdaptiveTemperature(widest, widest)


def test_a_tensor_as_temperature_says_what_is_one():
    with pytest.raises(TypeError, match=r"^beta must be a float, got tensor\(0.1000\); its .item\(\) is one$"):
        SimSiamLoss(beta=torch.tensor(0.1))
