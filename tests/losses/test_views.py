"""Losses of more than two views: against a loop over ordered pairs, the two-view loss, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

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
