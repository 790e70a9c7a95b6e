"""Every image once, in order, without augmentation."""

import pytest
import torch

from amcl_fast.data import EvaluationLoader
from amcl_fast.data.graph import Output
from amcl_fast.data.scan.images import Images
from tests.helpers.loaders import RAW, corrupt, numbered


@pytest.mark.parametrize("count", [5, 16, 21])
def test_evaluation_gives_every_image_once_in_order(tmp_path, count):
    data = EvaluationLoader(numbered(tmp_path / "i", count), Output(size=8, batch_size=8, **RAW))
    for _ in range(2):
        batches = list(data)
        assert len(batches) == len(data)
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert images.shape == (count, 3, 8, 8)
        assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
        assert images[:, 0, 0, 0].round().int().tolist() == list(range(count))
        assert labels.tolist() == [number % 4 for number in range(count)]


def test_evaluation_leaves_out_damaged_files(tmp_path):
    images = numbered(tmp_path / "i", 60)
    bad = {0, 20, 21, 59}
    for number in bad:
        corrupt(images.files[number])
    listed = []
    data = EvaluationLoader(
        images, Output(size=8, batch_size=8, **RAW), on_bad_file=lambda path, reason: listed.append(path)
    )
    for _ in range(2):
        pixels, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
        good = [number for number in range(60) if number not in bad]
        assert pixels[:, 0, 0, 0].round().int().tolist() == good
        assert labels.tolist() == [number % 4 for number in good]
    assert listed == [images.files[number] for number in sorted(bad)]


def test_evaluation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="images must have at least one, got none"):
        EvaluationLoader(Images([], [], []), Output(size=8, batch_size=8))
