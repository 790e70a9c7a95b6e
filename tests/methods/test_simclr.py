import torch

from tests.helpers.toy_methods import method


def test_views_pass_the_encoder_together_and_reach_the_loss_apart():
    module = method("simclr").double()
    views = torch.randn(2, 8, 3, 8, 8, dtype=torch.float64)
    seen = []
    module.criterion.register_forward_pre_hook(lambda _, z: seen.extend(z))
    module.loss_of_views(tuple(views))
    expected = module.embed(views.flatten(0, 1))
    assert [z.shape for z in seen] == [(8, 2, 6)] * 2
    torch.testing.assert_close(torch.cat(seen), expected)
