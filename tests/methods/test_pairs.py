"""Method.pairs_of_views: the pairs that the losses form."""

import math

import pytest
import torch
import torch.nn.functional as F

from amcl_fast import MoCoLoss, PerplexityTemperature
from amcl_fast.methods import pairs as pairs_module
from amcl_fast.methods.pairs import MOST_ANCHORS, perplexities
from amcl_fast.recipes import FRAMEWORKS
from amcl_fast.reference import of_perplexity
from tests.helpers import literal
from tests.helpers.toy_methods import DIM, HEADS, KINDS, method

N = 8


def views():
    return tuple(torch.randn(2, N, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


def expected_rows(module, framework):
    """Anchors, their positives, and their negatives one by one, as φ and as the similarity read them."""
    torch.manual_seed(1)  # of CAN's masks
    z = module.embed(torch.cat(views()))
    z1, z2 = z.chunk(2)
    if framework in ("simclr", "can"):
        return z1, z2, [torch.cat([z1[:i], z1[i + 1 :], z2[:i], z2[i + 1 :]]) for i in range(N)]
    if framework == "moco":
        keys = module.key_encoder(torch.cat(views()))
        return z1, keys[N:], [module.queue.keys.transpose(0, 1)] * N
    if framework == "simsiam":
        return module.predictor(z)[:N], z2, [torch.cat([z2[:i], z2[i + 1 :]]) for i in range(N)]
    # Anchors are channels: (d, C, n).
    x, y = z1.permute(2, 1, 0), z2.permute(2, 1, 0)
    return x, y, [torch.cat([y[:i], y[i + 1 :]]) for i in range(DIM)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_pairs_one_by_one(framework, kind):
    module = method(framework, kind)
    anchors, positives, negatives = expected_rows(module, framework)
    torch.manual_seed(1)
    found = module.pairs_of_views(views())

    def similarity(a, b):
        if framework == "barlow":
            return torch.corrcoef(torch.stack([a, b]))[0, 1]
        return F.cosine_similarity(a, b, dim=0)

    def tau(a, b):
        if kind == "baseline":
            return module.criterion.temperature
        a, b = (x if framework == "barlow" else F.normalize(x, dim=0) for x in (a, b))
        return module.criterion.temperature(a[None], b[None]).item()

    for value in filter(lambda value: value is not None, found):
        assert value.dtype == torch.float32 and not value.requires_grad
    for c in range(HEADS):
        for i in range(len(anchors)):
            a, b = anchors[i, c], positives[i, c]
            assert found.positive_similarity[c, i].item() == pytest.approx(similarity(a, b).item(), abs=1e-5)
            assert found.positive_tau[c, i].item() == pytest.approx(tau(a, b), abs=1e-5)
        # A row of negatives is a set.
        for values, function in ((found.negative_similarity, similarity), (found.negative_tau, tau)):
            expected = torch.tensor([float(function(anchors[2, c], b)) for b in negatives[2][:, c]])
            torch.testing.assert_close(values[c, 2].sort().values, expected.sort().values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("framework", ["simclr", "moco"])
def test_temperatures_of_a_given_perplexity_have_their_mean_over_the_anchors_that_are_looked_at(framework):
    module = method(framework, "perplexity")
    temperature, top_k = module.criterion.temperature, module.criterion.top_k
    anchors, _, negatives = expected_rows(module, framework)
    found = module.pairs_of_views(views())
    for c in range(HEADS):
        raw = []
        for i in range(N):
            s = F.cosine_similarity(anchors[i, c][None], negatives[i][:, c]).topk(top_k).values.tolist()
            raw.append(literal.calibrated(s, temperature.perplexity, temperature.tau_min, temperature.tau_max))
        raw = torch.tensor(raw)
        expected = raw * temperature.mean * raw.reciprocal().mean()
        torch.testing.assert_close(found.positive_tau[c], expected, rtol=1e-3, atol=0)
        torch.testing.assert_close(
            found.negative_tau[c], expected[:, None].expand_as(found.negative_tau[c]), rtol=1e-3, atol=0
        )


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_look_changes_nothing(framework):
    module = method(framework).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.pairs_of_views(views())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(norm.track_running_stats for norm in module.modules() if hasattr(norm, "track_running_stats"))


def test_long_queues_are_sampled_all_along():
    module = method("moco", "baseline", queue_size=3 * MOST_ANCHORS - 2)
    keys = module.queue.keys
    keys[:, ::3] = keys[:, :1]
    found = module.pairs_of_views(views())
    assert found.negative_tau.shape == (HEADS, N, MOST_ANCHORS)
    torch.testing.assert_close(found.negative_similarity.std(dim=-1), torch.zeros(HEADS, N), rtol=0, atol=1e-6)


def literal_perplexity(similarity, tau):
    weights = [math.exp(s / t) for s, t in zip(similarity, tau, strict=True)]
    shares = [weight / sum(weights) for weight in weights]
    return math.exp(-sum(p * math.log(p) for p in shares)) / len(shares)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_negatives_that_the_loss_takes_and_their_perplexity_one_by_one(framework, kind):
    module = method(framework, kind)
    found = module.pairs_of_views(views())
    if framework in ("simsiam", "barlow"):
        assert found.taken_similarity is None and found.taken_tau is None
        return
    perplexity = perplexities(found.taken_similarity, found.taken_tau)
    assert perplexity.shape == (HEADS, N)
    for c in range(HEADS):
        for i in range(N):
            both = zip(found.negative_similarity[c, i].tolist(), found.negative_tau[c, i].tolist(), strict=True)
            expected = sorted(both, reverse=True)[: 4 if kind == "amcl" else None]
            taken = zip(found.taken_similarity[c, i].tolist(), found.taken_tau[c, i].tolist(), strict=True)
            assert sorted(taken, reverse=True) == expected
            assert perplexity[c, i].item() == pytest.approx(literal_perplexity(*zip(*expected, strict=True)), rel=1e-4)


@pytest.mark.parametrize("temperature", ["pair", "perplexity", "constant"])
def test_of_a_long_queue_the_hardest_are_found_in_all_of_it(monkeypatch, temperature):
    monkeypatch.setattr(pairs_module, "MOST_PRODUCTS", 5 * MOST_ANCHORS * HEADS)  # anchors in parts
    module = method("moco", queue_size=3 * MOST_ANCHORS - 2)
    if temperature != "pair":
        of = PerplexityTemperature(0.2, 0.5, 0.001, 9.0) if temperature == "perplexity" else 0.3
        module.criterion = MoCoLoss(of, negatives="topk_softmax", top_k=4)
    found = module.pairs_of_views(views())
    anchors = F.normalize(expected_rows(module, "moco")[0], dim=-1)
    for c in range(HEADS):
        similarity = anchors[:, c] @ module.queue.keys[c].T
        torch.testing.assert_close(found.taken_similarity[c], similarity.topk(4).values, rtol=0, atol=1e-5)
        if temperature == "pair":
            tau = module.criterion.temperature(anchors[:, c], module.queue.keys[c])
            expected = tau.gather(1, similarity.topk(4).indices)
            torch.testing.assert_close(found.taken_tau[c], expected, rtol=0, atol=1e-5)
    if temperature == "perplexity":
        assert torch.equal(found.taken_tau[..., 0], found.positive_tau)
        tau = of_perplexity(found.taken_similarity, 0.5, 0.001, 9.0)
        torch.testing.assert_close(found.positive_tau, 0.2 * tau * (1 / tau).mean(1, keepdim=True))


def test_views_are_two():
    with pytest.raises(ValueError, match=r"two views.*got 1"):
        method("simclr").pairs_of_views(views()[:1])
