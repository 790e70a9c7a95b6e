import dataclasses

import pytest

from amcl_fast.data import Augmentation


def test_the_letters_are_those_of_the_released_recipe():
    assert Augmentation.from_letters("acde") == Augmentation()
    everything = Augmentation.from_letters("edcba")
    assert everything.crop_scale == (0.08, 1.0)
    assert (everything.blur, everything.grey, everything.jitter, everything.flip) == (0.5, 0.2, 0.8, 0.5)
    assert (everything.jitter_strength, everything.solarise) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("letter", "field", "value"),
    [
        ("a", "crop_scale", (0.08, 1.0)),
        ("b", "blur", 0.5),
        ("c", "grey", 0.2),
        ("d", "jitter", 0.8),
        ("e", "flip", 0.5),
        ("s", "solarise", 0.2),
    ],
)
def test_each_letter_switches_one_augmentation(letter, field, value):
    nothing = Augmentation.from_letters("")
    assert Augmentation.from_letters(letter) == dataclasses.replace(nothing, **{field: value})
    assert nothing.crop_scale is None
    assert (nothing.blur, nothing.grey, nothing.jitter, nothing.flip, nothing.solarise) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("letters", ["acx", "aa", "A", "a c"])
def test_unknown_and_repeated_letters_are_refused(letters):
    with pytest.raises(ValueError, match=r"augmentation must be letters out of 'abcdes', .* got '"):
        Augmentation.from_letters(letters)


@pytest.mark.parametrize(
    "setting",
    [
        {"flip": 1.1},
        {"grey": -0.1},
        {"jitter": float("nan")},
        {"blur": 2},
        {"jitter_strength": 1.5},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 1.5)},
        {"crop_scale": (0.9, 0.5)},
        {"crop_ratio": (2.0, float("inf"))},
        {"blur_sigma": (0.1, 1e30)},
        {"blur_sigma": (0.0, 1.0)},
        {"blur_sigma": (1.0,)},
        {"solarise": 1.2},
        {"solarise_threshold": 256},
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises((ValueError, TypeError), match=f"{next(iter(setting))} must be .*, got"):
        Augmentation(**setting)


def test_an_augmentation_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Augmentation().flip = 0.1
