import pytest
import torch
from toy_methods import method


@pytest.mark.parametrize("kind", ["baseline", "amcl"])
def test_loss_is_of_both_views(kind):
    module = method("barlow", kind).double().eval()
    views = tuple(torch.randn(2, 8, 3, 8, 8, dtype=torch.float64))
    expected = module.criterion(*(module.embed(view) for view in views))
    torch.testing.assert_close(module.contrast(views), expected)


def test_phi_must_be_as_wide_as_the_batch():
    module = method("barlow", batch=8)
    module.check_batch(8)
    with pytest.raises(ValueError, match=r"temperature\.dim=8, data\.batch_size=16"):
        module.check_batch(16)
    method("barlow", "baseline").check_batch(16)


def test_a_batch_of_another_size_is_refused_by_the_loss_too():
    with pytest.raises(ValueError, match=r"temperature\.dim.*= 6.*got 8"):
        method("barlow", batch=8).contrast(tuple(torch.randn(2, 6, 3, 8, 8)))
