"""What each augmentation does to pixels, measured; rates within four standard errors of what is stated."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import center_crop, resize, solarize

from amcl_fast.data import Augmentation
from amcl_fast.data.graph import Output, evaluation_pipeline, operator_seeds, training_pipeline

IMAGES = 512
SIDE = 32
RAW = {
    "mean": (0.0, 0.0, 0.0),
    "std": (1 / 255, 1 / 255, 1 / 255),
}  # outputs are the pixels' values, 0 to 255
RAMP = np.stack(  # red runs along x, green along y
    [
        np.tile(np.arange(128) * 2, (128, 1)),
        np.tile(np.arange(128)[:, None] * 2, (1, 128)),
        np.zeros((128, 128)),
    ],
    -1,
).astype(np.uint8)


def tensors(outputs):
    return [torch.from_dlpack(out.as_tensor()) for out in outputs]


def read(files):
    """What a pipeline decodes: the same files every time."""
    encoded = [np.fromfile(path, np.uint8) for path in files]
    return lambda batch: encoded


def views_of(path, *augmentations, count=IMAGES, size=SIDE, seed=0):
    """(count, size, size, 3) pixel values of each view of one image."""
    pipeline = training_pipeline(
        read([path] * count),
        augmentations,
        Output(size=size, batch_size=count, **RAW),
        seed=seed,
        shard=0,
    )
    return tensors(pipeline.run())


def share_within_four_errors(measured, probability, count=IMAGES):
    return abs(measured - probability) < 4 * (probability * (1 - probability) / count) ** 0.5


def only(**settings):
    """An augmentation that does nothing else."""
    return Augmentation(**{"crop_scale": None, "flip": 0, "jitter": 0, "grey": 0, **settings})


def test_crop_area_and_ratio_follow_their_ranges(save):
    (view,) = views_of(save("ramp.png", RAMP), only(crop_scale=(0.08, 1.0)))
    # Slope of the ramp in the view = share of the side that was cropped; away from the clamped ends.
    width = (view[:, 16, 24, 0] - view[:, 16, 8, 0]) / 16 * SIDE / 256
    height = (view[:, 24, 16, 1] - view[:, 8, 16, 1]) / 16 * SIDE / 256
    area, ratio = width * height, width / height
    assert area.min() > 0.07
    assert area.min() < 0.12
    assert area.max() < 1.02
    assert area.max() > 0.85
    assert ratio.min() > 0.7
    assert ratio.max() < 1.42
    assert ratio.log().std() > 0.1
    # Uniform on [0.08, 1] has mean 0.54; the largest areas need a ratio near 1 and are drawn again.
    assert 0.46 < area.mean() < 0.56
    left = view[:, 16, 0, 0] / 256
    assert left.std() > 0.1


def test_flip_is_horizontal_and_happens_half_of_the_time(save):
    (view,) = views_of(save("ramp.png", RAMP), only(flip=0.5))
    flipped = view[:, 16, 0, 0] > view[:, 16, -1, 0]
    assert share_within_four_errors(flipped.float().mean().item(), 0.5)
    assert torch.equal(view[flipped][0].flip(1), view[~flipped][0])


def test_grey_is_luminance_and_happens_a_fifth_of_the_time(save):
    colour = torch.tensor([200.0, 100.0, 30.0])
    path = save("colour.png", np.full((SIDE, SIDE, 3), colour, np.uint8))
    (view,) = views_of(path, only(grey=0.2))
    grey = (view[..., 0] == view[..., 1]).all((1, 2)) & (view[..., 1] == view[..., 2]).all((1, 2))
    assert share_within_four_errors(grey.float().mean().item(), 0.2)
    assert (view[grey] - colour @ torch.tensor([0.299, 0.587, 0.114])).abs().max() <= 1
    assert torch.equal(view[~grey], colour.expand_as(view[~grey]))


def test_jitter_of_brightness_has_the_stated_rate_and_strength(save):
    # 128 is the fixed point of the contrast, and a grey has neither hue nor saturation: only brightness acts.
    path = save("grey.png", np.full((SIDE, SIDE, 3), 128, np.uint8))
    (view,) = views_of(path, only(jitter=0.8, jitter_strength=0.5))
    factor = view[:, 0, 0, 0] / 128
    changed = factor != 1
    # A change of less than half a grey level cannot be seen: one percent of them.
    assert share_within_four_errors(changed.float().mean().item(), 0.8 * 0.99)
    assert factor.min() >= 0.6 - 0.01
    assert factor.min() < 0.64
    assert factor.max() <= 1.4 + 0.01
    assert factor.max() > 1.36
    assert factor[changed].std() == pytest.approx(0.8 / 12**0.5, rel=0.1)


def test_jitter_changes_contrast_saturation_and_hue(save):
    stripes = np.full((SIDE, SIDE, 3), 64, np.uint8)
    stripes[:, ::2] = 192
    (view,) = views_of(save("stripes.png", stripes), only(jitter=1.0))
    contrast = (view[:, 0, 0, 0] - view[:, 0, 1, 0]) / (view[:, 0, 0, 0] + view[:, 0, 1, 0])  # free of brightness
    assert 0.28 < contrast.min() < 0.35
    assert 0.65 < contrast.max() < 0.72

    (view,) = views_of(save("red.png", np.full((SIDE, SIDE, 3), (160, 96, 96), np.uint8)), only(jitter=1.0))
    pixel = view[:, 0, 0]
    hue = torch.atan2(3**0.5 * (pixel[:, 1] - pixel[:, 2]), 2 * pixel[:, 0] - pixel[:, 1] - pixel[:, 2])
    # The turn is 36 degrees in YIQ, which is not the same angle in this plane.
    assert 25 < hue.rad2deg().max() < 60
    assert -60 < hue.rad2deg().min() < -25
    (calm,) = views_of(
        save("red.png", np.full((SIDE, SIDE, 3), (160, 96, 96), np.uint8)),
        only(jitter=1.0, jitter_strength=0.1),
    )
    assert (calm - torch.tensor([160.0, 96, 96])).abs().max() < 0.5 * (view - torch.tensor([160.0, 96, 96])).abs().max()


def test_blur_takes_the_high_frequencies_out_of_half_of_the_views(save):
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    path = save("noise.png", noise)
    original = torch.from_numpy(noise).float()

    def roughness(x):
        return (x[..., 1:, :] - x[..., :-1, :]).square().mean((-1, -2, -3))

    (view,) = views_of(path, only(blur=0.5, blur_sigma=(0.5, 2.0)))
    sharp = (view == original).all((1, 2, 3))
    assert share_within_four_errors(sharp.float().mean().item(), 0.5)
    assert roughness(view[~sharp]).max() < 0.6 * roughness(original)
    # A wider kernel takes more: the drawn sigma reaches the operator.
    assert roughness(view[~sharp]).max() > 10 * roughness(view[~sharp]).min()


@pytest.mark.parametrize("threshold", [0, 1, 128, 255])
def test_solarisation_is_torchvisions_value_for_value(save, threshold):
    values = np.arange(256).repeat(12).reshape(SIDE, SIDE, 3).astype(np.uint8)
    path = save("values.png", values)
    (view,) = views_of(path, only(solarise=0.2, solarise_threshold=threshold))
    original = torch.from_numpy(values)
    expected = solarize(original.permute(2, 0, 1), threshold).permute(1, 2, 0).float()
    solarised = (view == expected).all((1, 2, 3))
    assert share_within_four_errors(solarised.float().mean().item(), 0.2)
    assert torch.equal(view[~solarised], original.float().expand_as(view[~solarised]))


def test_solarisation_of_one_view_comes_after_the_blur_and_leaves_the_draws_of_all_else_as_they_are(save):
    path = save("noise.png", np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    first, second = (Augmentation(blur=blur) for blur in (1.0, 0.5))
    before = views_of(path, first, second, count=16)
    after = views_of(path, first, replace(second, solarise=1.0), count=16)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], torch.where(before[1] < 128, before[1], 255 - before[1]))


def test_nothing_is_changed_when_everything_is_off(save):
    pixels = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    views = views_of(save("noise.png", pixels), *[Augmentation.from_letters("")] * 2, count=4)
    for view in views:
        assert torch.equal(view, torch.from_numpy(pixels).float().expand(4, -1, -1, -1))


def test_draws_are_independent_between_views_and_between_augmentations(save):
    path = save("ramp.png", np.concatenate([RAMP[..., :2], np.full((128, 128, 1), 255, np.uint8)], -1))
    first, second = views_of(path, *[only(flip=0.5, grey=0.5)] * 2)
    draws = []
    for view in (first, second):
        draws.append(view[:, 16, 0].sum(-1) > view[:, 16, -1].sum(-1))
        draws.append(view[:, 16, 16, 0] == view[:, 16, 16, 2])
    correlation = torch.corrcoef(torch.stack(draws).float())
    assert (correlation - torch.eye(4)).abs().max() < 4 / IMAGES**0.5
    seeds = [s for shard in range(4) for view in range(4) for s in operator_seeds(0, shard, view)]
    assert len(set(seeds)) == len(seeds)


def test_each_view_has_its_own_settings(save):
    first, second, third = views_of(save("ramp.png", RAMP), only(flip=1.0), only(), only(grey=1.0), count=8)
    assert (first[:, 16, 0, 0] > first[:, 16, -1, 0]).all()
    assert (second[:, 16, 0, 0] < second[:, 16, -1, 0]).all()
    assert torch.equal(third[..., 0], third[..., 1])


def test_outputs_are_normalised_with_mean_and_std(save):
    path = save("colour.png", np.full((8, 8, 3), (51, 102, 204), np.uint8))
    output = Output(size=8, batch_size=1, mean=(0.2, 0.3, 0.4), std=(1.0, 0.5, 0.1))
    (image,) = tensors(evaluation_pipeline(read([path]), output).run())
    assert image.dtype == torch.float32
    torch.testing.assert_close(image[0, 0, 0], torch.tensor([0.0, 0.2, 4.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(64, 96), (96, 64)])
def test_evaluation_scales_the_shorter_side_and_crops_the_centre(save, shape):
    height, width = shape
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(width) * 2, np.arange(height)[:, None] * 2
    (image,) = tensors(evaluation_pipeline(read([save("ramp.png", ramp)]), Output(size=32, batch_size=1, **RAW)).run())
    # 64 pixels of a slope of 2 around the centre; the mean is the centre's value whatever the filter.
    assert image[0, ..., 0].mean().item() == pytest.approx(width - 1, abs=1)
    assert image[0, ..., 1].mean().item() == pytest.approx(height - 1, abs=1)
    assert (image[0, 16, 24, 0] - image[0, 16, 8, 0]).item() == pytest.approx(64, abs=2)


def test_evaluation_of_a_share_is_resize_and_center_crop(save):
    waves = np.sin(np.linspace(0, 9, 96))[:, None] * np.cos(np.linspace(0, 5, 128)) * 100 + 128
    pixels = np.repeat(waves[..., None], 3, -1).astype(np.uint8)
    output = Output(size=28, batch_size=1, crop_pct=0.875, **RAW)
    (image,) = tensors(evaluation_pipeline(read([save("waves.png", pixels)]), output).run())
    resized = resize(torch.from_numpy(pixels).permute(2, 0, 1), 32, antialias=True)
    expected = center_crop(resized, 28).permute(1, 2, 0).float()
    assert (image[0] - expected).abs().max() <= 3


def test_evaluation_keeps_an_image_of_the_wanted_size(save):
    pixels = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    (image,) = tensors(evaluation_pipeline(read([save("a.png", pixels)]), Output(size=SIDE, batch_size=1, **RAW)).run())
    assert torch.equal(image[0], torch.from_numpy(pixels).float())


def test_unusual_images_are_decoded_to_rgb(save):
    colour = Image.new("RGB", (40, 24), (200, 100, 30))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    half_red = np.zeros((24, 40, 3), np.uint8)
    half_red[:, :20, 0] = 255
    files = [
        save("cmyk.jpg", colour.convert("CMYK")),
        save("alpha.png", colour.convert("RGBA")),
        save("palette.png", colour.convert("P")),
        save("photo.webp", colour, lossless=True),
        save("photo.bmp", colour),
        save("progressive.jpg", colour, progressive=True),
        save("one.png", Image.new("RGB", (1, 1), (200, 100, 30))),
        save("long.png", Image.new("RGB", (30_000, 2), (200, 100, 30))),
        save("deep.png", np.full((24, 24), 25_700, np.uint16)),
        save("turned.jpg", Image.fromarray(half_red), exif=rotated, quality=95),
    ]
    output = Output(size=8, batch_size=len(files), **RAW)
    (images,) = tensors(evaluation_pipeline(read(files), output).run())
    assert (images[:8] - torch.tensor([200.0, 100, 30])).abs().max() < 8
    assert (images[8] - 100).abs().max() <= 1  # 16 bits: 25,700 = 100 * 257
    assert images[9, 0, :, 0].min() > 240  # the camera's rotation is undone: red is on top
    pipeline = training_pipeline(read(files), [Augmentation(blur=1.0)] * 2, output, seed=0, shard=0)
    assert all(view.isfinite().all() for view in tensors(pipeline.run()))


def test_the_gpu_graph_is_the_cpu_graph_on_another_device():
    def operators(device, device_id):
        output = Output(size=SIDE, batch_size=4, device=device, device_id=device_id)
        pipeline = training_pipeline(
            lambda batch: [],
            [Augmentation(blur=0.5, solarise=0.2), Augmentation(crop_scale=None)],
            output,
            seed=0,
            shard=0,
        )
        pipeline.start_py_workers()  # builds DALI's Python graph, and needs no GPU for it
        return [(type(op._op).__name__, op._op.device) for op in pipeline._ops]

    cpu, gpu = operators("cpu", None), operators("gpu", 0)
    assert [name for name, _ in cpu] == [name for name, _ in gpu]
    assert {device for _, device in cpu} == {"cpu"}
    assert [name for name, _ in gpu].count("Image") == 1  # decoded once for both views
    devices = dict.fromkeys(name for name, _ in gpu)
    for name in devices:
        devices[name] = {device for other, device in gpu if other == name}
    assert devices["ExternalSource"] == {"cpu"}
    assert devices["Image"] == {"mixed"}
    for name in (
        "RandomResizedCrop",
        "ColorTwist",
        "ColorSpaceConversion",
        "GaussianBlur",
        "LookupTable",
        "CropMirrorNormalize",
        "Resize",
    ):
        assert devices[name] == {"gpu"}
    for name in ("CoinFlip", "Uniform"):
        assert devices[name] == {"cpu"}


def test_views_in_half_precision_are_the_nearest_to_the_same_values(save):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    paths = [save(f"{number}.png", np.roll(noise, number)) for number in range(16)]
    every = Augmentation.from_letters("abcde")
    whole, half = (
        tensors(
            training_pipeline(
                read(paths), [every] * 2, Output(size=SIDE, batch_size=16, dtype=dtype), seed=3, shard=0
            ).run()
        )
        for dtype in ("float32", "float16")
    )
    for float32, float16 in zip(whole, half, strict=True):
        assert (float32.dtype, float16.dtype) == (torch.float32, torch.float16)
        assert float16.nbytes * 2 == float32.nbytes
        values = float32.numpy()
        # Half of the distance to the next number of half precision, and what float32 itself leaves open.
        most = np.spacing(np.abs(values).astype(np.float16)).astype(np.float32) / 2 * (1 + 1e-3)
        assert (np.abs(float16.numpy().astype(np.float32) - values) <= most).all()
