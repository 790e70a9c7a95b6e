"""Tensors without values: a loss of them has its shape, dtype, device and gradients, and waits for no value."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests.helpers.small_losses import NAMES, NATIVE, OF_ANCHORS, N, inputs_of, loss_of

DTYPES = {torch.float64: torch.float64, torch.bfloat16: torch.float32}


def views_of(name, tensors):
    """What `of_views` takes of three views."""
    first = tensors[0]
    views = [first, first, first]
    return {"simsiam": [views, views], "moco": [views, views, tensors[-1]]}.get(name, [views])


def check(name, loss, given, dtype, kind):
    for run in (loss, lambda *_: loss.of_views(*views_of(name, given))):
        value = run(*given)
        assert type(value) is kind and value.shape == () and value.dtype == dtype and value.device == given[0].device
        value.backward()
        assert given[0].grad.shape == given[0].shape and given[0].grad.dtype == given[0].dtype
        assert all(p.grad.shape == p.shape for p in loss.parameters())
        assert loss.last_shape[0] == N and all(type(of) is kind for of in loss.last_stats.values())


@pytest.mark.parametrize(("name", "kind"), [*itertools.product(NAMES, ["constant", "cosine"]), *OF_ANCHORS])
def test_meta_tensors(name, kind):
    loss = loss_of(name, kind).to("meta")
    for dtype, expected in DTYPES.items():
        given = [t.to("meta", dtype).requires_grad_() for t in inputs_of(name)]
        check(name, loss, given, expected, torch.Tensor)


@pytest.mark.parametrize("backend", ["reference", *NATIVE])
@pytest.mark.parametrize(("name", "kind"), [*((name, "cosine") for name in NAMES), *OF_ANCHORS])
def test_fake_tensors(name, kind, backend):
    """Of the CPU, whose real tensors are looked at."""
    loss = loss_of(name, kind, backend)
    with FakeTensorMode() as mode:
        for module in loss.modules():
            for key, p in module.named_parameters(recurse=False):
                module._parameters[key] = mode.from_tensor(p)
        given = [mode.from_tensor(t.float()).requires_grad_() for t in inputs_of(name)]
        check(name, loss, given, torch.float32, FakeTensor)
