"""The shape that a loss understood, and what it warns of."""

import warnings

import pytest
import torch

from tests.helpers.small_losses import (
    HEADS,
    NAMES,
    D,
    N,
    inputs_of,
    loss_of,
)


@pytest.mark.parametrize("name", NAMES)
def test_the_shape_that_was_understood_is_shown(name):
    loss = loss_of(name)
    assert loss.last_shape is None and "last_shape" not in repr(loss)
    tensors = [t.float() for t in inputs_of(name)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(*tensors)
    assert loss.last_shape == (N, HEADS, D)
    assert f"last_shape=Shape(N={N}, C={HEADS}, d={D})" in repr(loss)
    turned = [t.transpose(0, 1) for t in tensors[: 2 if name == "moco" else None]]
    if name == "moco":
        turned.append(torch.cat([tensors[2]] * (N // HEADS)))
    argument = {"moco": "q", "simsiam": "p1"}.get(name, "z1")
    message = rf"{argument} is read as \(N, C, d\): a batch of N = {HEADS} images, C = {N} heads, d = {D}\. If it is "
    with pytest.warns(UserWarning, match=message + rf"\(C, N, d\), pass {argument}\.transpose\(0, 1\)") as caught:
        loss(*turned)
    assert caught[0].filename == __file__
    assert loss.last_shape == (HEADS, N, D)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(*turned)  # said once
    with pytest.warns(UserWarning, match=message):
        loss_of(name)(*turned)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_code_keeps_the_shape_and_breaks_no_graph(dynamic):
    torch._dynamo.reset()
    loss = loss_of("nt_xent")
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (N, 9, 11):
        z = torch.randn(n, HEADS, D)
        z[1] *= 1e25  # and rows of any size
        torch.testing.assert_close(compiled(z, z + 1), loss_of("nt_xent")(z, z + 1))
        assert loss.last_shape == (n, HEADS, D)
    compiled(z.transpose(0, 1), z.transpose(0, 1))
    assert loss.last_shape == (HEADS, 11, D)
