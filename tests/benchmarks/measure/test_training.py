import pytest
import yaml

from benchmarks.measure import training


def test_summary():
    steps = [dict.fromkeys(training.PHASES, value) for value in (10.0, 20.0, 60.0)]
    found = training.summary(steps, batch_size=54)
    assert found["images_per_second"] == pytest.approx(54 * 3 / (6 * 0.09))
    assert found["steps"] == 3 and found["milliseconds"] == dict.fromkeys(training.PHASES, 20.0)


def test_recipes_exist():
    from amcl_fast.recipes import recipe_names

    assert set(training.recipes()) <= set(recipe_names())


@pytest.mark.slow
def test_steps_of_a_small_recipe(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    pytest.importorskip("nvidia.dali")
    from amcl_fast import recipes

    small = tmp_path / "small.yaml"
    settings = {
        "data": {"batch_size": 16, "limit": 64},
        "model": {"init_args": {"backbone": {"name": "resnet18", "stem": "small", "width": 8}}},
    }
    small.write_text(yaml.safe_dump(settings))
    files = [*recipes.recipe_files("simclr-builtin-amcl"), small]
    monkeypatch.setattr(recipes, "recipe_files", lambda name: files)
    found = training.measure("small", steps=6)
    assert found["recipe"] == "small" and found["steps"] == 6
    assert found["milliseconds"].keys() == set(training.PHASES)
    assert all(value >= 0 for value in found["milliseconds"].values())
    for phase in ("encoder, forward", "loss", "encoder, backward", "optimiser"):
        assert found["milliseconds"][phase] > 0
    assert found["images_per_second"] > 0
