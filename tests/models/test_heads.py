import pytest
import torch
from torch import nn

from amcl_fast.models import MultiHeadProjector, ProjectorConfig


@pytest.mark.parametrize("batch_norm", [False, True])
def test_each_head_is_its_own_perceptron(batch_norm):
    heads, features, hidden, dim = 3, 10, 6, 4
    projector = MultiHeadProjector(features, ProjectorConfig(heads, hidden, dim, batch_norm)).double()
    x = torch.randn(5, features, dtype=torch.float64)

    def norm(h):
        return (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt() if batch_norm else h

    z = projector(x)
    assert z.shape == (5, heads, dim)
    for c in range(heads):
        rows = slice(c * hidden, (c + 1) * hidden)
        h = nn.functional.linear(x, projector.input.weight[rows], projector.input.bias[rows])
        expected = norm(h).relu() @ projector.output.weight[c] + projector.output.bias[c, 0]
        torch.testing.assert_close(z[:, c], norm(expected))


def test_batch_norm_keeps_projections_apart_at_the_start():
    """Features that share a large common part, as those of an untrained encoder do."""
    torch.manual_seed(0)
    features = 5 + torch.rand(64, 32)
    for batch_norm, bound in ((False, (0.9, 1.0)), (True, (-0.1, 0.1))):
        z = nn.functional.normalize(MultiHeadProjector(32, ProjectorConfig(3, batch_norm=batch_norm))(features), dim=-1)
        similarity = torch.einsum("icd,jcd->cij", z, z).mean()
        assert bound[0] < similarity < bound[1]


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
