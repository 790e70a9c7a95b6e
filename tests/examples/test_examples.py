"""Every example runs, its φ learns, and it marks the three statements that a user changes."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from tests.helpers import others

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "examples"
NEEDS = {
    "plain_pytorch": "torchvision",
    "lightning_module": "lightning",
    "with_accelerate": "accelerate",
    "with_fabric": "lightning",
    "with_hugging_face_trainer": "transformers",
    "with_lightly": "lightly",
    "with_solo_learn": "solo.methods",
    "with_timm": "timm",
}


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested():
    """That of a framework of one's own in tests/test_python.py."""
    assert {path.stem for path in FOLDER.glob("*.py")} == {*NEEDS, "own_framework"}


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_runs_and_phi_learns(name, monkeypatch):
    if NEEDS[name] in others.PACKAGES:
        others.need(monkeypatch, NEEDS[name])
    pytest.importorskip(NEEDS[name], exc_type=ImportError)
    module = load(name)
    phi = [torch.cat([p.detach().flatten() for p in module.train(steps).adaptive.phi.parameters()]) for steps in (1, 2)]
    assert all(torch.isfinite(weights).all() for weights in phi)
    assert not torch.equal(*phi)


@pytest.mark.parametrize("name", NEEDS)
def test_three_statements_are_marked(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert len(re.findall(r"^ *# changed", text, re.MULTILINE)) == 3
    assert "the three statements marked `# changed`" in text
