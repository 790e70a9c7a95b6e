import pytest
import torch
from torch import nn

from amcl_fast.models import MultiHeadPredictor, MultiHeadProjector, ProjectorConfig


def normalised(h):
    return (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize("layers", [2, 3, 4])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_each_head_is_its_own_perceptron(batch_norm, layers):
    heads, features, hidden, dim = 3, 10, 6, 4
    config = ProjectorConfig(heads, hidden, dim, batch_norm, layers)
    projector = MultiHeadProjector(features, config).double()
    x = torch.randn(5, features, dtype=torch.float64)
    norm = normalised if batch_norm else nn.Identity()

    z = projector(x)
    assert z.shape == (5, heads, dim)
    for c in range(heads):
        rows = slice(c * hidden, (c + 1) * hidden)
        h = nn.functional.linear(x, projector.input.weight[rows], projector.input.bias[rows])
        for linear in (*projector.hidden, projector.output):
            h = norm(h).relu() @ linear.weight[c] + linear.bias[c, 0]
        torch.testing.assert_close(z[:, c], norm(h))


def test_only_the_last_batch_norm_can_lack_affine():
    projector = MultiHeadProjector(8, ProjectorConfig(2, 5, 4, True, 3, output_affine=False))
    assert [norm.affine for norm in (projector.input_norm, *projector.hidden_norms, projector.output_norm)] == [
        True,
        True,
        False,
    ]


def test_each_heads_predictor_is_its_own():
    predictor = MultiHeadPredictor(3, 4, 5).double()
    z = torch.randn(6, 3, 4, dtype=torch.float64)
    p = predictor(z)
    assert p.shape == z.shape
    for c in range(3):
        h = normalised(z[:, c] @ predictor.input.weight[c] + predictor.input.bias[c, 0]).relu()
        torch.testing.assert_close(p[:, c], h @ predictor.output.weight[c] + predictor.output.bias[c, 0])


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


def test_one_layer_is_no_projector():
    with pytest.raises(ValueError, match=r"projector\.layers must be at least 2, got 1"):
        MultiHeadProjector(8, ProjectorConfig(layers=1))
