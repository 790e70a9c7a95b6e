"""Losses whose anchors have one temperature each: against a loop over anchors, and what is pinned, told and refused."""

import pytest
import torch
import torch.nn.functional as F

from amcl_fast import (
    AdaptiveTemperature,
    MoCoLoss,
    PerplexityTemperature,
    SimCLRLoss,
    capabilities,
)
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
KINDS = [
    (kind, form)
    for kind in TEMPERATURES
    for form, settings in FORMS.items()
    if kind != "dro" or form in ("topk_softmax", "as many as there are", "softmax")
]


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
