"""A pool of noise for short runs."""

import pytest
import torch

from benchmarks.collapse.training import Study

TRAIN = 24


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    file = tmp_path_factory.mktemp("pool") / "pool.pt"
    generator = torch.Generator().manual_seed(0)

    def images(*shape):
        return torch.randint(256, (*shape, 3, 32, 32), generator=generator, dtype=torch.uint8)

    torch.save(
        {
            "views": images(TRAIN, 3),
            "train": images(TRAIN, 1),
            "test": images(6, 1),
            "train_labels": torch.arange(TRAIN) % 3,
            "test_labels": torch.arange(6) % 3,
        },
        file,
    )
    return Study(str(file), "cpu", "reference", steps=2, graph=False)
