import pytest
import torch
from torch import nn

from amcl_fast.models import MultiHeadProjector, ProjectorConfig


@pytest.mark.parametrize("batch_norm", [False, True])
def test_each_head_is_its_own_perceptron(batch_norm):
    heads, features, hidden, dim = 3, 10, 6, 4
    projector = MultiHeadProjector(features, ProjectorConfig(heads, hidden, dim, batch_norm)).double()
    x = torch.randn(5, features, dtype=torch.float64)
    z = projector(x)
    assert z.shape == (5, heads, dim)
    for c in range(heads):
        rows = slice(c * hidden, (c + 1) * hidden)
        h = nn.functional.linear(x, projector.input.weight[rows], projector.input.bias[rows])
        if batch_norm:
            h = (h - h.mean(0)) / (h.var(0, unbiased=False) + projector.norm.eps).sqrt()
        expected = h.relu() @ projector.output.weight[c] + projector.output.bias[c, 0]
        torch.testing.assert_close(z[:, c], expected)


def test_projections_are_contiguous_per_head():
    z = MultiHeadProjector(8, ProjectorConfig(3, 6, 4))(torch.randn(5, 8))
    assert z.transpose(0, 1).is_contiguous()


def test_heads_start_apart_and_as_linear_layers_do():
    torch.manual_seed(0)
    projector = MultiHeadProjector(8, ProjectorConfig(3, 256, 64))
    weight = projector.output.weight.detach()
    assert not torch.equal(weight[0], weight[1])
    bound = 256**-0.5
    assert weight.abs().max() <= bound and weight.std() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize("name", ["heads", "hidden_dim", "dim"])
def test_bad_sizes_are_named(name):
    with pytest.raises(ValueError, match=f"projector.{name}.*got 0"):
        MultiHeadProjector(8, ProjectorConfig(**{name: 0}))
