"""Packages of tests/others.txt, which lie in a folder of their own, for the tests that ask for them."""

import importlib.util
import sys
from pathlib import Path

import pytest

PACKAGES = ("accelerate", "sklearn", "transformers")
FOLDER = Path(sys.prefix) / "others"


def need(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Let this test and the processes that it starts import them; without them it is skipped."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("PYTHONPATH", str(FOLDER), prepend=":")
    importlib.invalidate_caches()
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package} here: make test installs it, from tests/others.txt")
