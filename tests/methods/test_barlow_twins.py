import pytest
import torch

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss
from tests.helpers.toy_methods import method


@pytest.mark.parametrize("kind", ["baseline", "amcl"])
def test_loss_is_of_both_views(kind):
    module = method("barlow", kind).double().eval()
    views = tuple(torch.randn(2, 8, 3, 8, 8, dtype=torch.float64))
    expected = module.criterion(*(module.embed(view) for view in views))
    torch.testing.assert_close(module.loss_of_views(views), expected)


def test_phi_must_be_as_wide_as_the_batch():
    module = method("barlow", batch=8)
    module.check_batch(8)
    with pytest.raises(ValueError, match=r"temperature\.dim must be data\.batch_size = 16 .*, got 8; leave"):
        module.check_batch(16)
    method("barlow", "baseline").check_batch(16)


def test_a_batch_of_another_size_is_refused_by_the_loss_too():
    with pytest.raises(ValueError, match=r"temperature\.dim.*= 6.*got 8"):
        method("barlow", batch=8).loss_of_views(tuple(torch.randn(2, 6, 3, 8, 8)))


def test_a_bounded_score_starts_where_the_baseline_does():
    """Raw channel vectors are as long as √N: φ·φ of the released form puts their τ at tau_min from the start."""
    torch.manual_seed(0)
    n, d = 512, 256
    common = torch.randn(n, d)
    views = [0.6 * common + 0.8 * torch.randn(n, d) for _ in range(2)]
    baseline = BarlowTwinsLoss()(*views)
    released = BarlowTwinsLoss(AdaptiveTemperature(n))
    bounded = BarlowTwinsLoss(AdaptiveTemperature(n, tau_min=0.5, score="cosine"))
    assert released(*views) > 1e9 * baseline
    assert released.last_stats["tau_positive_at_bound"] == 1
    assert baseline / 2 < bounded(*views) < 2 * baseline
    assert bounded.last_stats["tau_positive_at_bound"] == bounded.last_stats["tau_negative_at_bound"] == 0
    assert bounded.last_stats["tau_positive_std"] > 0.02
