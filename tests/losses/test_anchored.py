"""Losses whose anchors have one temperature each: against a loop over anchors, and what is pinned, told and refused."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

import amcl_fast.temperature
from amcl_fast import (
    AdaptiveTemperature,
    BarlowTwinsLoss,
    MoCoLoss,
    PerplexityTemperature,
    SimCLRLoss,
    SimSiamLoss,
    capabilities,
    diagnose,
    ops,
)
from tests.helpers import literal
from tests.helpers import literal_views as by_anchor

N, HEADS, D, K, BETA = 3, 2, 6, 6, 0.02
BACKENDS = ["reference"] + (["native"] if capabilities.native_status().available else [])
CASES = {"2": (2, None), "3": (3, None), "4": (4, None), "2 + 2": (4, [0, 1]), "1 + 2": (3, [2])}
FORMS = {
    "topk_mean": {"negatives": "topk_mean", "top_k": 3},
    "topk_softmax": {"negatives": "topk_softmax", "top_k": 3},
    "the hardest": {"negatives": "topk_softmax", "top_k": 1},
    "hardest, positive": {"negatives": "topk_softmax", "top_k": 4, "include_positive": True},
    "as many as there are": {"negatives": "topk_softmax", "top_k": 100},
    "softmax": {"negatives": "softmax"},
    "infonce": {"negatives": "softmax", "include_positive": True},
}
TEMPERATURES = {
    "perplexity": lambda: PerplexityTemperature(0.1, 0.6, 0.02, 2.0),
    "means": lambda: PerplexityTemperature([0.05, 0.2], 0.6, 0.02, 2.0),
    "clamped": lambda: PerplexityTemperature(0.1, 0.6, 0.3, 0.5),
    "row": lambda: rows(),
    "dro": lambda: rows(objective="dro", rho=0.7),
}
# Of what differs by the temperature alone a few forms will do.
FEW = {
    "means": ["topk_softmax", "infonce"],
    "clamped": ["softmax"],
    "dro": ["topk_softmax", "as many as there are", "softmax"],
}
KINDS = [(kind, form) for kind in TEMPERATURES for form in FEW.get(kind, FORMS)]


def rows(**settings):
    torch.manual_seed(0)
    made = AdaptiveTemperature(D, 5, 0.05, 1.0, share="row", **settings).double()
    with torch.no_grad():
        for p in made.phi.parameters():
            p.mul_(2)
    return made


def loss_of(name, temperature, form, **settings):
    made = TEMPERATURES[temperature]() if isinstance(temperature, str) else temperature
    return (MoCoLoss if name == "moco" else SimCLRLoss)(made, beta=BETA, **FORMS[form], **settings)


def inputs_of(name, views, targets, dtype=torch.float64, n=N):
    """What `of_views` takes but for the targets: views, and MoCo's keys and queue."""
    generator = torch.Generator().manual_seed(views)
    drawn = [torch.randn(n, HEADS, D, dtype=dtype, generator=generator) for _ in range(2 * views)]
    if name == "simclr":
        return [drawn[:views]]
    queue = F.normalize(torch.randn(HEADS, D, K, dtype=dtype, generator=generator), dim=1)
    return [drawn[:views], drawn[views:][: views if targets is None else len(targets)], queue]


def anchors_of(inputs, targets):
    views, *rest = inputs
    targets = [*range(len(views))] if targets is None else targets
    return by_anchor.anchors_of(views, targets, *([dict(zip(targets, rest[0], strict=True)), rest[1]] if rest else []))


def expected_of(loss, inputs, targets):
    return by_anchor.anchored(
        loss.temperature, anchors_of(inputs, targets), loss.negatives, loss.top_k, loss.include_positive, BETA
    )


def evaluate(function, loss, inputs):
    """The value, and the gradients of every view, key, the queue and the temperature, zeros where there is none."""
    leaves = [t for given in inputs for t in (given if isinstance(given, list) else [given])]
    leaves = [t.requires_grad_() for t in leaves] + list(loss.parameters())
    value = function(inputs)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, leaves, strict=True)]


@pytest.mark.parametrize(("kind", "form"), KINDS)
@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_is_the_mean_over_anchors(name, kind, form):
    for views, targets in CASES.values() if kind in ("perplexity", "row") else [CASES["2"], CASES["2 + 2"]]:
        loss, inputs = loss_of(name, kind, form), inputs_of(name, views, targets)
        value, gradients = evaluate(lambda given, of=targets, loss=loss: expected_of(loss, given, of), loss, inputs)
        for loss.backend in BACKENDS:
            found, of_found = evaluate(
                lambda given, of=targets, loss=loss: loss.of_views(*given, targets=of), loss, inputs
            )
            torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12)
            for gradient, expected in zip(of_found, gradients, strict=True):
                torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-9)


@pytest.fixture
def seen(monkeypatch):
    """Every call of calibrate and of contrast: its tables, its settings and what came of it."""
    calls = {"calibrate": [], "contrast": []}
    for name, found in calls.items():
        original = getattr(ops, name)

        def watched(*tensors, _original=original, _found=found, **settings):
            _found.append((tensors, settings, _original(*tensors, **settings)))
            return _found[-1][2]

        monkeypatch.setattr(ops, name, watched)
    return calls


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["topk_softmax", "infonce"])
@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_rows_have_their_perplexity_and_the_mean_is_pinned(name, form, backend, seen):
    temperature = PerplexityTemperature([0.05, 0.2], 0.6, 1e-3, 10.0)
    views, targets = CASES["1 + 2"]
    inputs = inputs_of(name, views, targets, n=5)
    loss = loss_of(name, temperature, form, backend=backend)
    loss.of_views(*inputs, targets=targets)
    similarities = [[by_anchor.hardest(a, of, loss.negatives, loss.top_k).tolist() for a, _, of in head]
                    for head in anchors_of(inputs, targets)]  # fmt: skip
    every = [literal.calibrated(of, 0.6, 1e-3, 10.0) for head in similarities for of in head]
    assert 1e-3 < min(every) < max(every) < 10
    # In another order, and a view that is in several pairs of MoCo's is calibrated once.
    found = torch.cat([of[0].flatten() for _, _, of in seen["calibrate"]]).unique()
    torch.testing.assert_close(found, torch.tensor(every, dtype=torch.float64).unique(), rtol=1e-8, atol=0)
    for head in similarities:
        for of in head:
            tau = literal.calibrated(of, 0.6, 1e-3, 10.0)
            assert literal.perplexity(of, tau) == pytest.approx(0.6 * len(of), rel=1e-9)
    used = torch.stack([(1 / settings["tau"]).unflatten(0, (HEADS, -1)).flatten(1).sum(1) for _, settings, _ in
                        seen["contrast"]])  # fmt: skip
    if name == "simclr":
        count = sum(settings["tau"].numel() // HEADS for _, settings, _ in seen["contrast"])
        torch.testing.assert_close(used.sum(0) / count, 1 / torch.tensor([0.05, 0.2], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["perplexity", "clamped", "dro"])
@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_statistics_are_of_anchors(name, kind):
    for views, targets in (CASES["2"], CASES["1 + 2"]):
        loss, inputs = loss_of(name, kind, "topk_softmax"), inputs_of(name, views, targets)
        loss.of_views(*inputs, targets=targets)
        temperature, heads = loss.temperature, anchors_of(inputs, targets)
        mean = getattr(temperature, "mean", None)
        with torch.no_grad():
            taus = [by_anchor.taus_of(temperature, head, mean, loss.negatives, loss.top_k) for head in heads]
        taus = torch.stack([tau for head in taus for tau in head])
        s = torch.stack([by_anchor.hardest(a, of, loss.negatives, loss.top_k) for head in heads for a, _, of in head])
        ends, by = (temperature.tau_min, temperature.tau_max), float if mean is None else math.log
        of_ranges = taus.tolist()
        if mean is not None:  # before they were pinned
            of_ranges = [literal.calibrated(of.tolist(), temperature.perplexity, *ends) for of in s]
        near = 0.01 * (by(ends[1]) - by(ends[0]))
        at_bound = sum(min(by(tau) - by(ends[0]), by(ends[1]) - by(tau)) < near for tau in of_ranges) / len(s)
        assert at_bound > 0.5 or kind != "clamped"
        expected = {"mean": taus.mean(), "std": taus.std(correction=0), "min": taus.min(), "at_bound": at_bound}
        for group in ("positive", "negative"):
            for measure, value in expected.items():
                assert loss.last_stats[f"tau_{group}_{measure}"].item() == pytest.approx(float(value), rel=1e-9)
        positive = torch.stack([a @ p for head in heads for a, p, _ in head])
        assert loss.last_stats["similarity_positive"].item() == pytest.approx(positive.mean().item(), rel=1e-9)
        assert loss.last_stats["similarity_negative"].item() == pytest.approx(s.mean().item(), rel=1e-9)
        assert len(diagnose(loss)) == (at_bound > 0.99)


def test_the_robust_form_is_convex_in_tau_and_least_at_its_perplexity():
    """|T|·exp(−ρ), where calibrate finds it without descent."""
    loss = loss_of("moco", rows(objective="dro", rho=0.7), "softmax")
    temperature = loss.temperature
    q, k, queue = inputs_of("moco", 2, None)
    # One anchor, for which one number decides.
    q, k = (t[0][:1, :1].expand(2, -1, -1) for t in (q, k))
    queue = queue[:1]
    row, bias = F.normalize(q[0, 0], dim=0), temperature.phi[2].bias

    def at(tau):
        with torch.no_grad():
            temperature.phi[2].weight.zero_()
            bias.fill_(-math.log((tau - temperature.tau_min) / (temperature.tau_max - tau)))
        value = loss(q, row.expand(2, 1, -1), queue)
        return value.item(), -torch.autograd.grad(value, bias)[0].item()

    values = torch.tensor([at(tau)[0] for tau in torch.linspace(0.06, 0.99, 40).tolist()])
    assert (values.diff().diff() > 0).all()
    low, high = 0.051, 0.999
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[1] < 0 else (low, middle)
    s = (queue[0].T @ row).tolist()
    assert 0.06 < low < 0.99 and literal.perplexity(s, low) == pytest.approx(K * math.exp(-0.7), rel=1e-6)


def test_init_is_where_tau_begins():
    for settings in ({"share": "row"}, {"score": "cosine"}):
        made = AdaptiveTemperature(D, 5, 0.05, 1.0, init=0.3, **settings)
        x = torch.ones(2, D) if made.share == "pair" else torch.randn(2, D)
        torch.testing.assert_close(made(x, x), torch.full((2, 2), 0.3), rtol=1e-6, atol=0)
        made(x, x).sum().backward()
        assert made.phi[2].bias.grad.abs().max() > 0 or made.share == "pair"


REFUSED = {
    "mean=0": (lambda: PerplexityTemperature(0.0), "mean must be one number, or one for each head, from 1e-18 to 3.4e"),
    "mean=nan": (lambda: PerplexityTemperature(math.nan), "mean must be one number, .* got nan"),
    "mean=text": (lambda: PerplexityTemperature("0.1"), "mean must be a number, got '0.1'"),
    "mean=true": (lambda: PerplexityTemperature([0.1, True]), "mean must be a number, got True"),
    "no mean": (lambda: PerplexityTemperature([]), r"mean must be one number, .* got \[\]"),
    "perplexity=1": (lambda: PerplexityTemperature(perplexity=1), "perplexity must be above 0 and below 1, .* got 1"),
    "perplexity=0": (lambda: PerplexityTemperature(perplexity=0.0), "perplexity must be above 0 .* got 0.0"),
    "range": (lambda: PerplexityTemperature(tau_min=1.0), "tau_min and tau_max must be such .* got tau_min=1.0, tau_"),
    "share": (lambda: AdaptiveTemperature(4, share="rows"), r"share must be one of \('pair', 'row'\), got 'rows'"),
    "cosine": (lambda: AdaptiveTemperature(4, share="row", score="cosine"), "score must be 'dot' with share='row', .*"),
    "tf32": (lambda: AdaptiveTemperature(4, share="row", precision="tf32"), "precision must be 'auto' with share='row"),
    "objective": (lambda: rows(objective="mean"), "objective must be one of .* got 'mean'"),
    "pairs": (lambda: AdaptiveTemperature(4, objective="dro", rho=1.0), "share must be 'row' with objective='dro', .*"),
    "rho alone": (lambda: rows(rho=1.0), "rho must be None with objective='likelihood', got 1.0"),
    "no rho": (lambda: rows(objective="dro"), "rho must be a number, got None"),
    "rho=0": (lambda: rows(objective="dro", rho=0), "rho must be positive and at most 3.4e.38, got 0"),
    "init": (lambda: rows(init=1.0), "init must be above tau_min=0.05 and below tau_max=1.0, got 1.0"),
    "init of pairs": (lambda: AdaptiveTemperature(4, init=0.5), "init must be None with score='dot' over pairs, .*"),
    "init and offset": (
        lambda: AdaptiveTemperature(4, 4, 0.1, 1.0, "cosine", init=0.5, offset=1.0),
        "offset must be left out where init says where τ begins, got 1.0",
    ),
    "heads": (
        lambda: SimCLRLoss(PerplexityTemperature([0.1] * 3))(torch.ones(4, 2, 3), torch.ones(4, 2, 3)),
        r"temperature.mean must be one number, or one for each of the 2 heads, got \[0.1, 0.1, 0.1\]",
    ),
    "simsiam": (lambda: SimSiamLoss(PerplexityTemperature()), "temperature must be a float or an Ada.*no negatives"),
    "barlow": (lambda: BarlowTwinsLoss(rows()), "temperature.share must be 'pair' where the loss has no anchors.*"),
    "dro of a mean": (
        lambda: loss_of("simclr", "dro", "topk_mean"),
        "negatives must be 'topk_softmax' or 'softmax' with objective='dro', .* got 'topk_mean'",
    ),
    "dro with its positive": (
        lambda: loss_of("moco", "dro", "infonce"),
        "include_positive must be False with objective='dro', .* got True",
    ),
    "dro of too few": (
        lambda: loss_of("moco", "dro", "the hardest"),
        r"temperature.rho must be below log\(top_k\) = 0, or every τ falls to tau_min, got 0.7",
    ),
    "dro of few images": (
        lambda: loss_of("simclr", rows(objective="dro", rho=1.5), "softmax")(*inputs_of("simclr", 2, None)[0]),
        r"temperature.rho must be below log \|T\| = 1.39 of the 4 negatives that count, or every τ .*, got 1.5",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_named(case):
    call, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=f"^{message}") as raised:
        call()
    assert "\n" not in str(raised.value)


def test_state_copies_and_modules_of_before():
    inputs = inputs_of("simclr", 2, None)[0]
    for kind in TEMPERATURES:
        loss = loss_of("simclr", kind, "topk_softmax")
        expected = loss(*inputs)
        for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
            assert torch.equal(other(*inputs), expected) and repr(other.temperature) == repr(loss.temperature)
        phi = [f"temperature.phi.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
        assert list(loss.state_dict()) == (phi if kind in ("row", "dro") else [])
    assert repr(PerplexityTemperature([0.1])) == (
        "PerplexityTemperature(mean=[0.1], perplexity=0.25, tau_min=0.01, tau_max=1.0)"
    )
    old = AdaptiveTemperature(D, score="cosine").double()
    for name in ("share", "objective", "rho", "precision"):
        del vars(old)[name]  # of a pickle of before there were these
    assert torch.isfinite(SimCLRLoss(pickle.loads(pickle.dumps(old)), top_k=3)(*inputs))
    assert amcl_fast.temperature.AdaptiveTemperature is AdaptiveTemperature


@pytest.mark.parametrize("kind", ["perplexity", "row"])
@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_transforms_and_second_derivatives(name, kind):
    loss, (views, *rest) = loss_of(name, kind, "topk_softmax"), inputs_of(name, 2, None)
    rest = [rest[0][0], rest[1]] if rest else [views[1]]
    x = views[0].requires_grad_()

    def of(x):
        return loss(x, *rest)

    (once,) = torch.autograd.grad(loss.__class__.__call__(as_reference(loss), x, *rest), x, create_graph=True)
    torch.testing.assert_close(torch.func.grad(of)(x), once)
    direction = torch.ones_like(x)
    torch.testing.assert_close(torch.func.jvp(of, (x,), (direction,))[1], (once * direction).sum())
    stack = torch.stack([x, x.flip(0)])
    torch.testing.assert_close(torch.func.vmap(of)(stack), torch.stack([of(t) for t in stack]))
    if kind == "row":  # of the other τ is a constant, where a difference moves it
        assert torch.autograd.gradgradcheck(lambda x: as_reference(loss)(x, *rest), x, atol=1e-6)
    else:
        (twice,) = torch.autograd.grad(once.square().sum(), x)
        assert twice.isfinite().all() and twice.abs().max() > 0


def as_reference(loss):
    loss.backend = "reference"
    return loss


@pytest.mark.parametrize("kind", ["perplexity", "row"])
@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_half_precision_and_autocast(name, kind):
    loss = loss_of(name, kind, "topk_softmax").float()
    views, *rest = inputs_of(name, 2, None, torch.float32, n=6)
    tensors = [*views, rest[1]] if rest else views
    plain = loss(*tensors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(*tensors), plain)
    for dtype in (torch.bfloat16, torch.float16):
        halves = [t.to(dtype).requires_grad_() for t in tensors]
        value = loss(*halves)
        value.backward()
        exact = loss(*(t.detach().float() for t in halves))
        assert value.dtype == torch.float32 and value.item() == pytest.approx(exact.item(), rel=1e-5)
        assert halves[0].grad.dtype == dtype and halves[0].grad.isfinite().all()


@pytest.mark.parametrize("kind", ["perplexity", "row"])
def test_compiles_whole(kind):
    loss = loss_of("simclr", kind, "topk_softmax").float()
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for run in (loss, compiled):
        views = [t.requires_grad_() for t in inputs_of("simclr", 2, None, torch.float32)[0]]
        value = run(*views)
        value.backward()
        results.append([value.detach(), views[0].grad, *loss.last_stats.values()])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_seed_has_the_phi_that_it_always_had():
    """That of runs from before anchors had one."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 5))
    torch.manual_seed(0)
    for mine, theirs in zip(AdaptiveTemperature(5, 3).phi.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
