import lightning as L
import pytest
import torch

from amcl_fast.optim import OptimizerConfig
from tests.helpers.toy_methods import fit, method


def views():
    return tuple(torch.randn(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


@pytest.mark.parametrize("kind", ["baseline", "amcl"])
def test_predictions_meet_the_other_views_projections(kind):
    module = method("simsiam", kind).double().eval()
    z1, z2 = (module.embed(view) for view in views())
    p1, p2 = module.predictor(z1), module.predictor(z2)
    torch.testing.assert_close(module.loss_of_views(views()), module.criterion(p1, z2, p2, z1))


def test_gradients_pass_the_predictor_only():
    module = method("simsiam", "baseline").double().eval()
    z = module.embed(torch.cat(views())).detach().requires_grad_()
    module.encode_views = lambda images: z
    module.loss_of_views(views()).backward()
    targets = z.detach()
    p1, p2 = module.predictor(z).chunk(2)
    expected = torch.autograd.grad(module.criterion(p1, targets[8:], p2, targets[:8]), z)[0]
    torch.testing.assert_close(z.grad, expected)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("predictor_lr", [None, 0.05])
def test_the_predictor_keeps_its_learning_rate(name, predictor_lr):
    rates = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            by_name = {id(p): n for n, p in module.named_parameters()}
            groups = trainer.optimizers[0].param_groups
            rates.append({by_name[id(p)]: g["lr"] for g in groups for p in g["params"]})

    module = method("simsiam", optimizer=OptimizerConfig(name, lr=0.1, decay_all=False), predictor_lr=predictor_lr)
    trainer = fit(module, callbacks=[Rates()])
    assert rates[0].keys() == dict(module.named_parameters()).keys()
    for parameter, last in rates[-1].items():
        constant = predictor_lr is not None and parameter.startswith("predictor.")
        assert rates[0][parameter] == (predictor_lr if constant else 0.1)
        assert (last == rates[0][parameter]) == constant
    assert trainer.callback_metrics["lr"] == pytest.approx(rates[-1]["backbone.conv1.weight"])


def test_a_bad_predictor_is_named():
    with pytest.raises(ValueError, match=r"predictor_hidden_dim.*got 0"):
        method("simsiam", predictor_hidden_dim=0)
