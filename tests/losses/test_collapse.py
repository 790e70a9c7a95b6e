"""When the contrast makes all projections equal: the condition, and the settings shown to a new user."""

import math

import pytest
import torch
import torch.nn.functional as F

from amcl_fast import AdaptiveTemperature, MoCoLoss, SimCLRLoss

N, HEADS, DIM, KEYS = 24, 2, 16, 40
FORMS = [
    ("softmax", None, True),
    ("softmax", None, False),
    ("topk_softmax", 5, True),
    ("topk_softmax", 5, False),
    ("topk_softmax", 23, True),
    ("topk_mean", 5, False),
]
# What augmentations change, as a share of what images differ by: positives are nearer than all, some, no negatives.
NOISES = [0.3, 1.5, 3.0]
SQUARE = 1e-7  # λ², so small that the next order does not show


def normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spread(noise):
    """Common direction m (C, 1, d), and ε ⟂ m of two views of each image (C, 2N, d)."""
    common = F.normalize(normal(HEADS, 1, DIM, seed=0), dim=-1)
    images = normal(HEADS, N, DIM, seed=1)
    epsilon = torch.cat([images + noise * normal(HEADS, N, DIM, seed=seed) for seed in (2, 3)], dim=1)
    return common, epsilon - (epsilon * common).sum(-1, keepdim=True) * common


def adaptive():
    torch.manual_seed(0)
    return AdaptiveTemperature(DIM, tau_min=0.1, tau_max=1.0, score="cosine").double()


def simclr_excess(epsilon, top_k):
    """D_p − D_T: mean squared distance of positives, less that of the top_k nearest negatives."""
    own = torch.arange(2 * N)
    positive = own.roll(N)
    square = torch.cdist(epsilon, epsilon).square()
    negatives = square.clone()
    negatives[:, own, own] = negatives[:, own, positive] = math.inf
    return square[:, own, positive].mean() - negatives.sort(-1).values[..., :top_k].mean()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("negatives", "top_k", "positive"), FORMS)
def test_nearly_equal_rows_contract_just_when_positives_are_farther_than_the_chosen(negatives, top_k, positive, noise):
    """dL/dλ² of rows m + λ·ε is C·(D_p − D_T)/2τ; times κ/(κ + 1) with the positive in the sum."""
    common, epsilon = spread(noise)
    kappa = top_k or 2 * N - 2
    excess = simclr_excess(epsilon, kappa)

    def slope(temperature):
        loss = SimCLRLoss(temperature, negatives=negatives, top_k=top_k, include_positive=positive)
        square = torch.tensor(SQUARE, dtype=torch.float64, requires_grad=True)
        z1, z2 = (common + square.sqrt() * epsilon).transpose(0, 1).chunk(2)
        (result,) = torch.autograd.grad(loss(z1, z2), square)
        return result, loss.last_stats["tau_positive_mean"]

    def expected(tau):
        return HEADS * excess / (2 * tau) * (kappa / (kappa + 1) if positive else 1)

    torch.testing.assert_close(slope(0.2)[0], expected(0.2), rtol=1e-3, atol=0)
    # τ of a pair rises with its distance, which makes the slope steeper, whatever its sign.
    found, tau = slope(adaptive())
    assert found / expected(tau) > 1


def test_all_negatives_expand_what_few_contract():
    _, epsilon = spread(NOISES[1])
    assert simclr_excess(epsilon, 2 * N - 2) < 0 < simclr_excess(epsilon, 5)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("negatives", "top_k"), [("softmax", None), ("topk_softmax", 5), ("topk_mean", 5)])
def test_moco_pulls_twice_as_hard_as_it_pushes(negatives, top_k, noise):
    """The k→q half has no gradient but its positive: dL/dλ of queries m + λ·ε_q is C·λ/2τ·⟨ε_q, ε_q + ε̄_T − 2ε_k⟩."""
    common, epsilon = spread(noise)
    of_queries, of_keys = epsilon.chunk(2, dim=1)
    of_queue = normal(HEADS, KEYS, DIM, seed=4)
    of_queue = of_queue - (of_queue * common).sum(-1, keepdim=True) * common
    nearest = torch.cdist(of_queries, of_queue).argsort(-1)[..., : top_k or KEYS]  # (C, N, κ)
    mean = torch.stack([rows[index].mean(1) for rows, index in zip(of_queue, nearest, strict=True)])
    step = math.sqrt(SQUARE)
    expected = HEADS * step / (2 * 0.2) * (of_queries * (of_queries + mean - 2 * of_keys)).sum(-1).mean()

    scale = torch.tensor(step, dtype=torch.float64, requires_grad=True)
    q, k = ((common + s * e).transpose(0, 1) for s, e in ((scale, of_queries), (step, of_keys)))
    queue = F.normalize(common + step * of_queue, dim=-1).mT
    loss = MoCoLoss(0.2, negatives=negatives, top_k=top_k)(q, k, queue)
    (slope,) = torch.autograd.grad(loss, scale)
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=0)
