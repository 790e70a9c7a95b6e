"""amcl_fast.pretraining.choosing: which recipe, at which size, for how long, by images and device alone."""

import pytest

from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits
from amcl_fast.pretraining.choosing import Facts, _limits, choose
from amcl_fast.recipes import recipe_names

_80_GB = {"gpus": 1, "memory": 80 << 30}


@pytest.mark.parametrize(
    ("facts", "recipe", "size", "batch", "epochs"),
    [
        (Facts(106, 106, 375), "simclr-builtin-amcl", 64, 16, 100),
        (Facts(5_000, 10, 40), "simclr-builtin-amcl", 32, 128, 20),
        (Facts(1_281_167, 1000, 375), "simclr-builtin-amcl", 64, 128, 1),
        (Facts(50_000, 10, 32, **_80_GB), "simclr-cifar10-best", 32, 512, 400),
        (Facts(105_000, 10, 64, **_80_GB), "simclr-stl10-best", 64, 512, 200),
        (Facts(105_000, 10, 96, **_80_GB), "simclr-imagenet100-best", 96, 256, 200),
        (Facts(126_689, 100, 375, gpus=4, memory=16 << 30), "simclr-imagenet100-best", 224, 512, 200),
        (Facts(1_281_167, 1000, 375, gpus=8, memory=80 << 30), "simclr-imagenet1k-best", 224, 2048, 100),
        (Facts(900, 0, 1000, **_80_GB), "simclr-imagenet100-best", 224, 128, 800),
        (Facts(900, 0, 1000, gpus=3, memory=80 << 30), "simclr-imagenet100-best", 224, 192, 800),
        (Facts(3, 0, 1000), "simclr-builtin-amcl", 64, 3, 100),
    ],
)
def test_a_recipe_follows_from_images_and_device(facts, recipe, size, batch, epochs):
    choice = choose(facts)
    names = ("data.size", "data.batch_size", "trainer.max_epochs")
    assert (choice.recipe, *(choice.settings[name] for name in names)) == (recipe, size, batch, epochs)
    assert recipe in recipe_names() and batch % max(facts.gpus, 1) == 0 and batch <= facts.images


def test_what_else_is_set_follows_from_the_images_too():
    few, many = choose(Facts(900, 9, 28, grey=True)), choose(Facts(60_000, 10, 28, **_80_GB))
    assert few.settings["data.augmentation"] == "ade" and "data.augmentation" not in many.settings
    assert few.settings["knn.k"] == 20 and "knn.k" not in many.settings
    assert few.settings["trainer.log_every_n_steps"] == 1 and "trainer.log_every_n_steps" not in many.settings
    assert choose(Facts(900, 9, 300, threads=4, **_80_GB)).settings["data.num_threads"] == 4
    short = choose(Facts(900, 9, 300, epochs=5, **_80_GB)).settings  # shorter than the recipe's warm-up
    assert (short["model.schedule.warmup_epochs"], short["knn.every_n_epochs"]) == (0, 1)


def test_images_are_looked_at_within_the_limits_that_are_given():
    assert _limits(["--data.max_image_pixels=400"]) == Limits(DEFAULT_LIMITS.bytes, 400)
    refused_later = ["--data.max_image_bytes=-5", "--data.max_image_pixels=0"]
    assert _limits(refused_later) == DEFAULT_LIMITS
