"""amcl_fast.callbacks.capture sees the pairs of every framework."""

import numpy as np
import pytest
import torch

from amcl_fast.recipes import FRAMEWORKS
from amcl_fast.report import capture
from tests.helpers.fake_data import FakeDataModule
from tests.helpers.toy_methods import KINDS, method


class Data(FakeDataModule):
    """Gives a new reader whenever it is asked, as the real one does."""

    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)

    def train_dataloader(self):
        return type(self.loader)(self.loader.steps, self.loader.batch)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_framework_can_be_looked_at(framework, kind):
    module = method(framework, kind)
    found = capture(module, Data(), pairs=16)
    assert found.framework == type(module).__name__
    assert found.positive_tau.shape == (2, 2 * (6 if framework == "barlow" else 8))  # channels or images, two batches
    torch.manual_seed(0)  # of CAN's masks
    pairs = module.train().pairs_of_views(next(iter(Data().loader))[0])
    count = pairs.positive_tau.shape[1]
    assert np.array_equal(found.positive_tau[:, :count], pairs.positive_tau.numpy())
    assert np.array_equal(found.positive_similarity[:, :count], pairs.positive_similarity.numpy())
    assert found.constant_tau == (kind == "baseline")
    assert found.top_k == (4 if kind == "amcl" and framework in ("simclr", "moco", "can") else 0)
    assert abs(found.random_similarity).max() <= 1 + 1e-5


def test_what_can_makes_of_images_is_kept_and_comes_again():
    module = method("can")
    state = torch.get_rng_state()
    found, again = (capture(module, Data(), pairs=8) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert found.picture_names.tolist() == ["view", "what is seen", "reconstruction", "noise", "predicted noise"]
    assert found.pictures.shape == (5, 8, 8, 8, 3) and np.array_equal(found.pictures, again.pictures)
    assert np.array_equal(found.pictures[0], found.views[0])
    kept = (found.pictures[1] == found.pictures[2]).all(-1).mean()
    assert kept == pytest.approx(0.5, abs=0.05)  # what is seen; the rest is filled in
