"""Derivatives that a backend does not know are taken by the reference, or refused."""

import pytest
import torch

from tests.helpers.small_losses import BACKENDS, NAMES, NATIVE, device_of, evaluate, inputs_of, loss_of


def direction(t):
    return torch.randn(t.shape, dtype=t.dtype, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("kind", ["constant", "cosine"])
@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_is_the_gradient_times_the_direction(name, kind):
    """`auto` takes the reference: through the engines torch would hand on a tangent of zero."""
    loss = loss_of(name, kind, dtype=torch.float64)
    tensors = inputs_of(name)
    tangent = direction(tensors[0])
    _, (gradient, *_) = evaluate(loss, tensors)
    expected = (gradient * tangent).sum()
    _, found = torch.func.jvp(lambda x: loss(x, *tensors[1:]), (tensors[0],), (tangent,))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    with torch.autograd.forward_ad.dual_level():
        value = loss(torch.autograd.forward_ad.make_dual(tensors[0], tangent), *tensors[1:])
        found = torch.autograd.forward_ad.unpack_dual(value).tangent
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_transforms_take_the_reference(name):
    loss = loss_of(name, "cosine", dtype=torch.float64)
    tensors = inputs_of(name)
    _, (expected, *_) = evaluate(loss, tensors)

    def of_first(x):
        return loss(x, *tensors[1:])

    torch.testing.assert_close(torch.func.grad(of_first)(tensors[0]), expected)
    stack = torch.stack([tensors[0], tensors[0].flip(0)])
    torch.testing.assert_close(torch.func.vmap(of_first)(stack), torch.stack([of_first(x) for x in stack]).detach())
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(of_first))(stack)[0].detach(), expected)
    assert loss.last_stats == {}  # what it would hold means nothing outside of the transform
    loss(*tensors)
    assert loss.last_stats["similarity_positive"].isfinite()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", [*NATIVE, "triton"])
def test_engines_refuse_what_they_would_get_wrong(backend, name):
    loss = loss_of(name, backend=backend)
    first, *others = (t.float().to(device_of(backend)) for t in inputs_of(name))

    def of_first(x):
        return loss(x, *others)

    tangent = direction(first.cpu()).to(first)
    message = (
        rf"backend '{backend}' has no forward-mode derivative and takes no part in torch.func; backend='reference'"
    )
    for call in (
        lambda: torch.func.jvp(of_first, (first,), (tangent,)),
        lambda: torch.func.grad(of_first)(first),
        lambda: torch.func.vmap(of_first)(torch.stack([first, first])),
        lambda: torch.func.hessian(of_first)(first),
    ):
        with pytest.raises(NotImplementedError, match=message):
            call()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match=message):
        of_first(torch.autograd.forward_ad.make_dual(first, tangent))


@pytest.mark.parametrize("kind", ["constant", "cosine"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_are_right_or_refused(backend, name, kind):
    dtype = torch.float64 if backend == "reference" else torch.float32
    loss = loss_of(name, kind, backend, dtype)
    first, *others = (t.to(device_of(backend), dtype) for t in inputs_of(name))
    first.requires_grad_()
    (once,) = torch.autograd.grad(loss(first, *others), first, create_graph=True)
    (plain,) = torch.autograd.grad(loss(first, *others), first)
    assert torch.equal(once, plain)
    tangent = direction(first.cpu()).to(first)
    if backend != "reference":
        with pytest.raises(NotImplementedError, match="no second derivative; backend='reference' has"):
            torch.autograd.grad((once * tangent).sum(), first)
        return
    (found,) = torch.autograd.grad((once * tangent).sum(), first)
    step = 1e-5

    def gradient(x):
        return torch.autograd.grad(loss(x, *others), x)[0]

    shifted = (gradient((first + sign * step * tangent).detach().requires_grad_()) for sign in (1, -1))
    expected = (next(shifted) - next(shifted)) / (2 * step)
    assert (found - expected).norm() <= 1e-6 * expected.norm()
