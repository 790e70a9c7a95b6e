"""Losses of more than two views: against a loop over ordered pairs, the two-view loss, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss, capabilities
from tests.helpers import literal_views as literal

N, HEADS, D, K = 4, 2, 6, 9
NATIVE = ["native"] if capabilities.native_status().available else []
# Number of views, and which of them the others attend to.
CASES = {"2": (2, None), "3": (3, None), "4": (4, None), "8": (8, None), "2 + 6": (8, [0, 1]), "1 + 2": (3, [2])}
FORMS = {
    "simclr": {
        "topk_mean": {"negatives": "topk_mean", "top_k": 3, "include_positive": False},
        "topk_softmax": {"negatives": "topk_softmax", "top_k": 3, "include_positive": True},
        "softmax": {"negatives": "softmax", "top_k": None, "include_positive": False},
        "infonce": {"negatives": "softmax", "top_k": None, "include_positive": True},
    },
    "simsiam": {"": {}},
    "barlow": {"": {"lambd": 0.05}},
}
FORMS["moco"] = FORMS["simclr"]
CLASSES = {"simclr": SimCLRLoss, "moco": MoCoLoss, "simsiam": SimSiamLoss, "barlow": BarlowTwinsLoss}
BETA = 0.02
NAMES = [(name, form) for name, forms in FORMS.items() for form in forms]


def temperature_of(kind, dim, dtype=torch.float64):
    if kind == "constant":
        return 0.3
    torch.manual_seed(0)
    module = AdaptiveTemperature(dim, 5, 0.05, 2.0, score=kind)
    with torch.no_grad():
        for p in module.phi.parameters():
            p.mul_(2)
        if module.offset is not None:
            module.offset.fill_(0.25)
    return module.to(dtype)


def loss_of(name, form, kind="cosine", dtype=torch.float64, **settings):
    temperature = temperature_of(kind, N if name == "barlow" else D, dtype)
    given = {"beta": BETA, **FORMS[name][form], **settings}
    if given.get("top_k", 0) is None:
        del given["top_k"]
    return CLASSES[name](temperature, **given)


def inputs_of(name, views, targets, dtype=torch.float64):
    """What `of_views` takes, sequences of views and the queue, without the targets."""
    generator = torch.Generator().manual_seed(views)

    def draw(count):
        return [torch.randn(N, HEADS, D, dtype=dtype, generator=generator) for _ in range(count)]

    if name == "moco":
        queue = F.normalize(torch.randn(HEADS, D, K, dtype=dtype, generator=generator), dim=1)
        return [draw(views), draw(views if targets is None else len(targets)), queue]
    return [draw(views), draw(views)] if name == "simsiam" else [draw(views)]


def expected_of(loss, name, form, inputs, targets):
    """By the loop over pairs."""
    tau = literal.tau_of(loss.temperature)
    settings = {**FORMS[name][form], "beta": BETA if loss.adaptive is not None else 0.0}
    if "negatives" in settings:
        settings["form"] = settings.pop("negatives")
    views = inputs[0]
    targets = range(len(views)) if targets is None else targets
    if name == "moco":
        keys = dict(zip(targets, inputs[1], strict=True))
        return literal.over_pairs(lambda q, k: literal.moco(q, k, inputs[2], tau, **settings), views, targets, keys)
    pair = getattr(literal, name)
    others = inputs[1] if name == "simsiam" else None
    return literal.over_pairs(lambda q, t: pair(q, t, tau, **settings), views, targets, others)


def leaves_of(inputs):
    return [t for given in inputs for t in (given if isinstance(given, list) else [given])]


def evaluate(function, loss, inputs):
    """The value, and the gradients of every view, the queue and the temperature, zeros where there is none."""
    leaves = [t.requires_grad_() for t in leaves_of(inputs)] + list(loss.parameters())
    value = function(inputs)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, leaves, strict=True)]


@pytest.mark.parametrize("kind", ["constant", "cosine"])
@pytest.mark.parametrize(("name", "form"), NAMES)
@pytest.mark.parametrize("case", CASES)
def test_is_the_mean_over_pairs(name, form, kind, case):
    views, targets = CASES[case]
    loss, inputs = loss_of(name, form, kind), inputs_of(name, views, targets)
    value, gradients = evaluate(lambda given: expected_of(loss, name, form, given, targets), loss, inputs)
    for loss.backend in ("reference", *NATIVE):
        found, of_found = evaluate(lambda given: loss.of_views(*given, targets=targets), loss, inputs)
        torch.testing.assert_close(found, value, rtol=1e-9, atol=0)
        for gradient, expected in zip(of_found, gradients, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-9)


def as_call(name, inputs):
    """What a call takes of two views and both their keys or projections."""
    first, *rest = inputs
    if name == "moco":
        return torch.cat(first), torch.cat(rest[0][::-1]), rest[1]
    return (first[0], rest[0][1], first[1], rest[0][0]) if name == "simsiam" else tuple(first)


@pytest.mark.parametrize("kind", ["constant", "dot"])
@pytest.mark.parametrize(("name", "form"), NAMES)
def test_two_views_are_a_call_bit_for_bit(name, form, kind):
    found = []
    inputs = inputs_of(name, 2, None, torch.float32)
    for targets in (None, [0, 1]):
        loss = loss_of(name, form, kind, torch.float32)
        results = evaluate(lambda given, loss=loss, of=targets: loss.of_views(*given, targets=of), loss, inputs)
        found.append((results, loss.last_stats))
        assert loss.last_shape == (N, HEADS, D)
    loss = loss_of(name, form, kind, torch.float32)
    expected, gradients = evaluate(lambda given: loss(*as_call(name, given)), loss, inputs)
    for (value, of_found), stats in found:
        assert torch.equal(value, expected)
        assert all(torch.equal(a, b) for a, b in zip(of_found, gradients, strict=True))
        assert stats.keys() == loss.last_stats.keys()
        assert all(torch.equal(value, loss.last_stats[key]) for key, value in stats.items())


@pytest.mark.parametrize("case", ["2", "3", "2 + 6"])
@pytest.mark.parametrize(("name", "form"), NAMES)
def test_one_tensor_of_views_is_the_same_as_many(name, form, case):
    views, targets = CASES[case]
    loss, inputs = loss_of(name, form), inputs_of(name, views, targets)
    expected, gradients = evaluate(lambda given: loss.of_views(*given, targets=targets), loss, inputs)

    def whole(given):
        return [torch.stack(t) if isinstance(t, list) else t for t in given]

    found, of_found = evaluate(lambda given: loss.of_views(*whole(given), targets=targets), loss, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for a, b in zip(of_found, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_two_dimensions_are_one_head():
    views = torch.randn(3, N, D)
    for loss in (SimCLRLoss(0.2, top_k=3), BarlowTwinsLoss()):
        assert torch.equal(loss.of_views(views), loss.of_views(views[:, :, None]))
        assert torch.equal(loss.of_views([*views]), loss.of_views(views))
        assert loss.last_shape == (N, 1, D)
    queue = F.normalize(torch.randn(D, K), dim=0)
    assert torch.equal(
        MoCoLoss(0.2, top_k=3).of_views(views, views.flip(0), queue),
        MoCoLoss(0.2, top_k=3).of_views(views[:, :, None], views.flip(0)[:, :, None], queue[None]),
    )


def pairs_of(name, loss, inputs, targets):
    """(s, τ) of all positives and all negatives, a row for each ordered pair of views, of one head after the other."""
    tau, views = literal.tau_of(loss.temperature), inputs[0]
    targets = [*range(len(views))] if targets is None else targets
    positives, negatives = [], []
    for c in range(HEADS):
        for t in targets:
            for q in range(len(views)):
                if q == t:
                    continue
                other = inputs[1][targets.index(t) if name == "moco" else t] if len(inputs) > 1 else views[t]
                x, y = views[q][:, c], other[:, c]
                if name == "barlow":
                    u, v = ((z - z.mean(0)) / z.std(0) for z in (x, y))
                    s, of = u.T @ v / N, tau(x.T, y.T)
                    on = torch.eye(D, dtype=torch.bool)
                    positives.append((s[on], of[on]))
                    negatives.append((s[~on], of[~on]))
                    continue
                x, y = literal.unit(x), literal.unit(y)
                positives.append(((x * y).sum(1), tau(x, y).diagonal()))
                if name == "simclr":
                    both = torch.cat([x, y])
                    keep = ~torch.eye(N, dtype=torch.bool).repeat(1, 2)
                    negatives.append(((x @ both.T)[keep], tau(x, both)[keep]))
                if name == "moco":
                    for anchor in (x, y):
                        keys = inputs[2][c].T
                        negatives.append(((anchor @ keys.T).flatten(), tau(anchor, keys).flatten()))
    return [tuple(map(torch.cat, zip(*of, strict=True))) if of else None for of in (positives, negatives)]


@pytest.mark.parametrize("case", ["3", "2 + 6"])
@pytest.mark.parametrize("name", CLASSES)
def test_statistics_are_of_all_pairs(name, case):
    views, targets = CASES[case]
    form = "infonce" if name in ("simclr", "moco") else ""
    loss, inputs = loss_of(name, form), inputs_of(name, views, targets)
    loss.of_views(*inputs, targets=targets)
    for kind, of in zip(("positive", "negative"), pairs_of(name, loss, inputs, targets), strict=True):
        if of is None:
            assert not [key for key in loss.last_stats if kind in key]
            continue
        s, tau = (values.detach() for values in of)
        expected = {f"similarity_{kind}": s.mean(), f"tau_{kind}_mean": tau.mean(), f"tau_{kind}_min": tau.min()}
        expected |= {f"tau_{kind}_std": tau.std(correction=0)}
        for key, value in expected.items():
            torch.testing.assert_close(loss.last_stats[key], value, rtol=1e-7, atol=1e-9, msg=f"{key} of {name}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("name", "form"), NAMES)
def test_half_precision_is_evaluated_in_float32(name, form, dtype):
    views, targets = CASES["2 + 6"]
    inputs = [
        [t.to(dtype) for t in given] if isinstance(given, list) else given.to(dtype)
        for given in inputs_of(name, views, targets)
    ]
    exact = [[t.double() for t in given] if isinstance(given, list) else given.double() for given in inputs]
    expected = loss_of(name, form).of_views(*exact, targets=targets)
    loss = loss_of(name, form, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, gradients = evaluate(lambda given: loss.of_views(*given, targets=targets), loss, inputs)
    assert found.dtype == torch.float32 and gradients[0].dtype == dtype
    assert found.item() == pytest.approx(expected.item(), rel=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("product", [None, torch.bfloat16])
@pytest.mark.parametrize(("name", "form"), [pair for pair in NAMES if pair[1] not in ("topk_softmax", "softmax")])
def test_triton_agrees(name, form, product):
    """Also where autocast has its products in half precision, on views of which one alone is a target."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = "3" if product is None else "1 + 2"
    views, targets = CASES[case]
    exact = inputs_of(name, views, targets)
    loss = loss_of(name, form)
    value, gradients = evaluate(lambda given: loss.of_views(*given, targets=targets), loss, exact)
    inputs = [[t.detach().float().to(device) for t in given] for given in exact[: 2 if len(exact) > 1 else 1]]
    inputs += [given.detach().float().to(device) for given in exact[2:]]
    loss = loss_of(name, form, dtype=torch.float32, backend="triton").to(device)
    with torch.autocast(device, product or torch.bfloat16, enabled=product is not None):
        found, of_found = evaluate(lambda given: loss.of_views(*given, targets=targets), loss, inputs)
    tolerance = 1e-4 if product is None else 0.1
    for a, b in zip([found, *of_found], [value, *gradients], strict=True):
        assert (a.cpu().double() - b).norm() <= tolerance * b.norm() + 1e-9


@pytest.mark.parametrize("name", ["simclr", "moco", "simsiam", "barlow"])
def test_phi_reads_every_row_once(name):
    form = "infonce" if name in ("simclr", "moco") else ""
    loss, inputs = loss_of(name, form), inputs_of(name, 4, None)
    rows = []
    loss.temperature.phi.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[:-1].numel()))
    loss.of_views(*inputs)
    of_views = HEADS * (D if name == "barlow" else N) * 4
    expected = {"moco": 2 * of_views + HEADS * K, "simsiam": 2 * of_views}
    assert sum(rows) == expected.get(name, of_views)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operator makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.skipif(not NATIVE, reason="the reference is dense")
@pytest.mark.parametrize("name", ["simclr", "moco", "simsiam"])
def test_nothing_is_as_large_as_all_pairs_of_rows(name):
    form, rows, views = "infonce" if name in ("simclr", "moco") else "", 200, 4
    loss = loss_of(name, form)
    inputs = [
        torch.randn(views, rows, 1, D, dtype=torch.float64, requires_grad=True) for _ in range(1 + (name != "simclr"))
    ]
    queue = [torch.randn(1, D, rows, dtype=torch.float64)] if name == "moco" else []
    with Largest() as largest:
        loss.of_views(*inputs, *queue).backward()
    assert largest.elements <= views**2 * rows * D < rows**2


Z = torch.zeros(3, N, HEADS, D)
QUEUE = torch.zeros(HEADS, D, K)
REFUSED = {
    "one view": (lambda: SimCLRLoss(0.1).of_views([Z[0]]), "views must be at least two views of an image, got 1"),
    "none": (lambda: BarlowTwinsLoss().of_views([]), "views must be at least two views of an image, got 0"),
    "a number": (
        lambda: SimSiamLoss().of_views(3, Z),
        "predictions must be a sequence of tensors, one a view, got int",
    ),
    "other images": (lambda: SimCLRLoss(0.1).of_views([*Z, Z[0, :2]]), r"views\[3\] must have the shape of views\[0\]"),
    "other heads": (lambda: SimSiamLoss().of_views(Z, Z[:, :, :1]), r"projections\[0\] must have the shape of pred"),
    "other width": (lambda: BarlowTwinsLoss().of_views([*Z[:2], Z[2, ..., 1:]]), r"views\[2\] must have the shape"),
    "no target": (lambda: SimCLRLoss(0.1).of_views(Z, []), r"targets must be views from 0 to 2, .* got \[\]"),
    "no such view": (
        lambda: SimCLRLoss(0.1).of_views(Z, [0, 3]),
        r"targets must be views from 0 to 2, .* got \[0, 3\]",
    ),
    "from the end": (lambda: BarlowTwinsLoss().of_views(Z, [-1]), r"targets must be views from 0 to 2"),
    "one twice": (lambda: SimSiamLoss().of_views(Z, Z, [1, 1]), r"targets must be views .* each once .* got \[1, 1\]"),
    "a bool": (lambda: SimCLRLoss(0.1).of_views(Z, [True]), r"targets must be a sequence of int.* got \[True\]"),
    "one target": (lambda: SimCLRLoss(0.1).of_views(Z, 1), r"targets must be a sequence of int.* got 1"),
    "keys of all": (lambda: MoCoLoss(0.1).of_views(Z, Z, QUEUE, [0, 1]), "keys must be those of the 2 targets.* got 3"),
    "no keys": (lambda: MoCoLoss(0.1).of_views(Z, None, QUEUE), "keys must be those of the 3 targets.* got NoneType"),
    "fewer projections": (lambda: SimSiamLoss().of_views(Z, Z[:2]), "projections must be those of the 3 views.* got 2"),
    "one image": (lambda: SimCLRLoss(0.1).of_views(Z[:, :1]), r"views\[0\] must have a batch of N ≥ 2 rows, got 1"),
    "another queue": (lambda: MoCoLoss(0.1).of_views(Z, Z, QUEUE[:1]), "queue must have shape"),
    "φ of another width": (
        lambda: SimCLRLoss(AdaptiveTemperature(9)).of_views(Z),
        rf"temperature\.dim must be the projection width d = {D} for this views\[0\], got 9",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_named(case):
    call, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_the_view_that_is_not_finite_is_named():
    views = torch.randn(3, N, HEADS, D)
    views[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"views\[1\] must be finite, got 1 of 48 values"):
        SimCLRLoss(0.1, top_k=3).of_views(views)
