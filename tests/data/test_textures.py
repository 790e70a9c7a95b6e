"""amcl_fast.data.sources.textures: repeatable images that keep their pattern in greyscale."""

import numpy as np
import pytest

from amcl_fast.data.sources.textures import SIDE, TEXTURES, draw


@pytest.mark.parametrize("name", TEXTURES)
def test_an_image_repeats_with_its_generator_and_only_with_it(name):
    first, same, other = (draw(name, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.shape == (SIDE, SIDE, 3) and first.dtype == np.uint8
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", TEXTURES)
def test_patterns_lie_between_the_two_colours_and_use_both(name):
    for seed in range(20):
        pattern = TEXTURES[name](np.random.default_rng(seed), 8 + seed / 5)
        assert pattern.shape == (SIDE, SIDE)
        assert pattern.min() >= 0 and pattern.max() <= 1
        assert np.ptp(pattern) > 0.6


@pytest.mark.parametrize("name", TEXTURES)
def test_the_pattern_survives_greyscale(name):
    """Brightness varies by much more than the noise, 0.01, and the gradient, 0.1 from end to end."""
    for seed in range(10):
        grey = draw(name, np.random.default_rng(seed)) @ [0.299, 0.587, 0.114] / 255
        assert np.ptp(np.percentile(grey, [2, 98])) > 0.2


def test_an_unknown_texture_is_named():
    with pytest.raises(ValueError, match="plaid"):
        draw("plaid", np.random.default_rng(0))
