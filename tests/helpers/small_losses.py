"""A small loss of every framework on every backend, its inputs and its gradients."""

import torch
import torch.nn.functional as F

from amcl_fast import (
    AdaptiveTemperature,
    BarlowTwinsLoss,
    MoCoLoss,
    PerplexityTemperature,
    SimCLRLoss,
    SimSiamLoss,
    capabilities,
)

N, HEADS, D = 6, 2, 8
NATIVE = ["native"] if capabilities.native_status().available else []
BACKENDS = ["reference", *NATIVE, "triton"]  # Triton's interpreter, without a GPU
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ["simclr", "nt_xent", "moco", "simsiam", "barlow"]
OF_ANCHORS = [(name, kind) for name in ("simclr", "nt_xent", "moco") for kind in ("perplexity", "row")]
"""Losses and kinds of temperatures of which an anchor has one."""
TAU = 0.5


def temperature_of(name, kind, dtype):
    if kind == "constant":
        return TAU
    if kind == "perplexity":
        return PerplexityTemperature(TAU, 0.6, 0.1, 1.0)
    torch.manual_seed(0)
    if kind == "row":
        return AdaptiveTemperature(D, 8, 0.1, 1.0, share="row").to(dtype)
    module = AdaptiveTemperature(N if name == "barlow" else D, 8, 0.1, 1.0, score=kind)
    return module.to(dtype)


def device_of(backend):
    return DEVICE if backend == "triton" else "cpu"


def loss_of(name, kind="constant", backend="auto", dtype=torch.float32, temperature=None):
    if temperature is None:
        temperature = temperature_of(name, kind, dtype)
    settings = {"backend": backend}
    if name == "simclr":
        loss = SimCLRLoss(temperature, top_k=3, **settings)
    elif name == "nt_xent":
        loss = SimCLRLoss(temperature, negatives="softmax", include_positive=True, **settings)
    elif name == "moco":
        loss = MoCoLoss(temperature, negatives="topk_softmax", top_k=3, **settings)
    else:
        loss = (SimSiamLoss if name == "simsiam" else BarlowTwinsLoss)(temperature, **settings)
    return loss.to(device_of(backend))


def inputs_of(name, seed=1):
    """float64 inputs that are float32 numbers of at most 1."""
    generator = torch.Generator().manual_seed(seed)
    views = [
        torch.rand(N, HEADS, D, generator=generator).double() * 2 - 1 for _ in range(4 if name == "simsiam" else 2)
    ]
    if name == "moco":
        views.append(F.normalize(torch.randn(HEADS, D, 20, generator=generator), dim=1).double())
    return views


def evaluate(loss, tensors):
    """The value, the gradient of every input (0 where there is none), and of φ's parameters."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    value = loss(*leaves)
    grads = torch.autograd.grad(value, [*leaves, *loss.parameters()], allow_unused=True)
    grads = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, [*leaves, *loss.parameters()], strict=True)]
    return value.detach().cpu().double(), [g.cpu().double() for g in grads]
