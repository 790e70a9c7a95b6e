"""Views in groups of different sizes, each with augmentations of its own, from images that are decoded once."""

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser

from amcl_fast.data import Augmentation, ContrastiveDataModule, ContrastiveLoader, ViewGroup
from amcl_fast.data.graph import Output, training_pipeline
from amcl_fast.data.scan.images import Images
from amcl_fast.data.views import each_view, shorter_side
from tests.helpers.loaders import RAW, assert_same, copies, corrupt, numbered, prepared
from tests.helpers.recipes import build

LARGE, SMALL = 12, 6
PLAIN, EVERY = ViewGroup.from_letters(""), ViewGroup.from_letters("abcde")
GROUPS = [replace(EVERY, count=2), replace(EVERY, count=3, size=SMALL, crop_scale=(0.05, 0.25))]
SETTINGS = """
- {count: 2}
- {count: 3, size: 6, crop_scale: [0.05, 0.25], blur: 0.5}
- {crop_scale: null, flip: 0.0}
"""
MEANT = (
    [Augmentation()] * 2
    + [ViewGroup(crop_scale=(0.05, 0.25), blur=0.5, size=6)] * 3
    + [Augmentation(crop_scale=None, flip=0.0)]
)


def loader(images, views=GROUPS, threads=2, **options):
    return ContrastiveLoader(images, views, Output(size=LARGE, batch_size=4, num_threads=threads, **RAW), **options)


def parser():
    found = ArgumentParser(exit_on_error=False)
    found.add_class_arguments(ContrastiveDataModule, "data")
    return found


def made(config):
    return parser().instantiate(config).data


def test_groups_come_in_their_order_each_in_its_size(tmp_path):
    data = loader(numbered(tmp_path / "i", 8), [ViewGroup(size=SMALL), *GROUPS])
    for views, labels in data:
        assert [tuple(view.shape) for view in views] == [(4, 3, side, side) for side in (6, 12, 12, 6, 6, 6)]
        assert all(view.is_contiguous(memory_format=torch.channels_last) for view in views)
        assert labels.shape == (4,)


def test_an_image_is_decoded_once_for_all_of_its_views(tmp_path):
    output = Output(size=LARGE, batch_size=4, device="gpu", device_id=0)
    graph = training_pipeline(lambda batch: [], each_view(GROUPS, LARGE), output, seed=0, shard=0)
    graph.start_py_workers()  # builds DALI's Python graph, and needs no GPU for it
    names = [type(operator._op).__name__ for operator in graph._ops]
    assert (names.count("Image"), names.count("RandomResizedCrop")) == (1, 5)
    data = loader(numbered(tmp_path / "i", 8), [replace(PLAIN, count=2), replace(PLAIN, count=6, size=SMALL)])
    for views, _ in data:
        # Images are flat: what they show is the image's, whatever the size.
        assert all(torch.equal(view[:, :, 0, 0], views[0][:, :, 0, 0]) for view in views)


def test_each_group_is_drawn_by_its_own_settings(save):
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(64, 64)  # a pixel says where it is, from left to right
    path = save("ramp.png", torch.stack([ramp] * 3, -1).numpy())
    images = Images([path] * 64, [0] * 64, ["a"])
    wide, narrow = replace(PLAIN, crop_scale=(0.8, 1.0), count=2), replace(PLAIN, crop_scale=(0.05, 0.1), count=2)
    (views, _), *_ = copies(loader(images, [wide, replace(narrow, size=SMALL)]))
    spans = [(view[:, 0, 0, -1] - view[:, 0, 0, 0]).abs().div(256) for view in views]
    # Of the width a crop of 80 to 100 % shows at least sqrt(0.8 · 3/4), one of 5 to 10 % at most sqrt(0.1 · 4/3).
    for large, small in zip(spans[:2], spans[2:], strict=True):
        assert large.min() > 0.77 * (LARGE - 1) / LARGE - 0.05 and small.max() < 0.37
    assert all(not torch.equal(one, other) for one, other in (views[:2], views[2:]))


def test_views_of_one_size_are_what_they_are_without_groups(tmp_path):
    images = numbered(tmp_path / "i", 8)
    expected = copies(loader(images, [EVERY.augmentation] * 3))
    assert_same(copies(loader(images, [replace(EVERY, count=3)])), expected)
    assert_same(copies(loader(images, [replace(EVERY, count=2, size=LARGE), EVERY])), expected)
    # The first views do not depend on those that come after.
    more = [(views[:3], labels) for views, labels in copies(loader(images, [replace(EVERY, count=3), *GROUPS]))]
    assert_same(more, expected)


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_restored_loader_continues_bit_for_bit(tmp_path, stop):
    images = numbered(tmp_path / "i", 14)
    expected = copies(batch for data in [loader(images)] for _ in range(3) for batch in data)
    first = loader(images)
    done = copies(islice((batch for _ in range(3) for batch in first), stop))
    torch.save(first.state_dict(), tmp_path / "state")
    second = loader(images, threads=1)
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    while len(done) < len(expected):
        done += copies(second)
    assert_same(done, expected)


def test_a_state_without_sizes_is_what_it_was_and_other_groups_are_refused(tmp_path):
    images = numbered(tmp_path / "i", 8)
    state = loader(images, [replace(EVERY, count=2)]).state_dict()
    # As a checkpoint has it of a run from before there were groups.
    as_it_was = (
        "Augmentation(crop_scale=(0.08, 1.0), crop_ratio=(0.75, 1.3333333333333333), flip=0.5, jitter=0.8, "
        "jitter_strength=0.5, grey=0.2, blur=0.5, blur_sigma=(0.1, 2.0))"
    )
    assert state["settings"]["views"] == f"[{as_it_was}, {as_it_was}]"
    with pytest.raises(ValueError, match="does not fit these settings: views was"):
        loader(images, [replace(EVERY, count=2, solarise=0.2)]).load_state_dict(state)
    grouped = loader(images).state_dict()
    for other in (GROUPS[:1], GROUPS[::-1], [GROUPS[0], replace(GROUPS[1], size=5)]):
        with pytest.raises(ValueError, match="does not fit these settings: views was"):
            loader(images, other).load_state_dict(grouped)


def test_a_file_that_goes_bad_is_replaced_in_every_view(tmp_path):
    images, listed = numbered(tmp_path / "i", 16), []
    corrupt(images.files[5])
    views = [replace(PLAIN, count=2), replace(PLAIN, count=2, size=SMALL)]
    seen = []
    for batch, labels in loader(images, views, on_bad_file=lambda path, reason: listed.append(path)):
        reds = [view[:, 0, 0, 0].round().int().tolist() for view in batch]
        assert reds[1:] == reds[:-1]
        assert labels.tolist() == [red % 4 for red in reds[0]]
        seen += reds[0]
    assert sorted(seen) == sorted([*range(5), 6, *range(6, 16)])
    assert listed == [images.files[5]]


def test_shards_share_the_images_and_draw_their_own(tmp_path):
    images = numbered(tmp_path / "i", 16)
    views = [replace(PLAIN, count=2, flip=0.5, crop_scale=(0.5, 1.0)), replace(PLAIN, size=SMALL)]
    parts = [copies(loader(images, views, shard=shard, num_shards=2)) for shard in range(2)]
    reds = [[round(float(red)) for (views, _) in part for red in views[2][:, 0, 0, 0]] for part in parts]
    assert sorted(reds[0] + reds[1]) == list(range(16))
    ours, theirs = (loader(images, shard=shard, num_shards=2) for shard in range(2))
    next(iter(ours)), next(iter(theirs))
    assert ours._checkpoint != theirs._checkpoint


def test_large_images_keep_what_the_neediest_view_shows():
    small = ViewGroup(size=96, crop_scale=(0.05, 0.14), crop_ratio=(1.0, 1.0))
    large = ViewGroup(count=2, crop_scale=(0.25, 1.0), crop_ratio=(1.0, 1.0))
    assert shorter_side(each_view([small, large], 224), 224) == 224 / 0.25**0.5
    assert shorter_side(each_view([replace(small, crop_scale=(0.01, 0.14)), large], 224), 224) == pytest.approx(960)


def test_groups_come_from_the_command_line_and_from_yaml_and_go_back(tmp_path):
    given = parser().parse_args([f"--data.views={SETTINGS}", "--data.size=12"])
    assert made(given).views == MEANT
    # As config.yaml of a run holds them, and a resume reads them.
    text = parser().dump(given, skip_unset=False, format="yaml")
    (tmp_path / "config.yaml").write_text(text)
    again = parser().parse_path(tmp_path / "config.yaml")
    assert again.data == given.data
    assert made(again).views == MEANT
    assert parser().dump(again, skip_unset=False, format="yaml") == text
    assert made(parser().parse_args(["--data.views=4"])).views == [Augmentation()] * 4


def test_a_data_module_says_which_views_are_the_largest(make_folder):
    data = prepared(make_folder(), size=LARGE, views=[ViewGroup(size=SMALL), *GROUPS])
    assert (data.view_sizes, data.target_views) == ([6, 12, 12, 6, 6, 6], 2)
    ((views, _), *_) = data.train_dataloader()
    assert [view.shape[-1] for view in views] == data.view_sizes
    # What is evaluated has data.size, and what a linear probe trains on.
    for measured in (data.features_loaders()[1], data.linear_probe_loader()):
        assert next(iter(measured))[0].shape[-1] == LARGE
    assert prepared(data.root, views=3).target_views == 3


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (-3, "views must be at least 2 and at most 256, got -3"),
        ([], "views must be at least 2 and at most 256, got 0"),
        ([ViewGroup()], "views must be at least 2 and at most 256, got 1"),
        (2.5, "views must be a number, ViewGroups or Augmentations, got 2.5"),
        ([ViewGroup(), 3], "views must be a number, ViewGroups or Augmentations, got 3 among them"),
        ([ViewGroup(size=33), ViewGroup()], "views must have data.size, 32, as their largest size, got 33"),
        ([ViewGroup(count=2, size=31)], "views must have data.size, 32, as their largest size, got 31"),
    ],
)
def test_views_that_cannot_be_are_refused_in_a_line(views, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ContrastiveDataModule(views=views)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[{count: 0}]", "views: count must be from 1 to 256, got 0"),
        ("[{count: 2}, {size: 0}]", "views: size must be at least 1, got 0"),
        ("[{count: 2, blur: 2}]", "blur must be a probability between 0 and 1, got 2.0"),
    ],
)
def test_what_is_wrong_with_a_group_is_what_is_told(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        made(parser().parse_args([f"--data.views={given}"]))
    error = caught.value
    while "Given value type:" in str(error):  # as `pretrain` finds it
        error = error.__cause__
    assert str(error) == message


@pytest.mark.parametrize("given", ["[{count: 2, blurr: 0.5}]", "[4]", "4.5", "[{count: x}]"])
def test_what_is_no_group_is_refused_by_its_name(given):
    with pytest.raises(ArgumentError, match=r"data\.views") as caught:
        parser().parse_args([f"--data.views={given}"])
    assert "blurr" not in given or "Option 'blurr' is not accepted" in str(caught.value)


def test_the_example_of_multi_crop_goes_behind_a_recipe(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "multi_crop.yaml"
    data = build("simclr-imagenet100-baseline", tmp_path, "--config", str(example)).datamodule
    assert data.view_sizes == [224] * 2 + [96] * 6
    # SwAV's code, scripts/swav_800ep_pretrain.sh and src/multicropdataset.py.
    swav = replace(Augmentation.from_letters("abcde"), jitter_strength=1.0)
    assert data.views[:2] == [replace(swav, crop_scale=(0.14, 1.0))] * 2
    assert data.views[2:] == [ViewGroup(**vars(replace(swav, crop_scale=(0.05, 0.14))), size=96)] * 6


def test_the_groups_of_the_documentation_are_settings():
    page = (Path(__file__).parents[2] / "docs" / "views.md").read_text()
    config = parser().parse_string(page.partition("```yaml\n")[2].partition("```")[0])
    assert made(config).view_sizes == [224] * 2 + [96] * 6
    commands = re.findall(r"--data\.views (?:'(.*)'|(\d+))", page.partition("```bash\n")[2].partition("```")[0])
    sizes = [made(parser().parse_args([f"--data.views={group or number}"])).view_sizes for group, number in commands]
    assert sizes == [[32] * 4, [32] * 2 + [16] * 4]
