"""A folder to work in, and trainings that fail at once."""

import pytest

from amcl_fast.study import training


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def untrained(monkeypatch):
    """The trainings that a study would begin; each fails at once."""
    begun = []
    monkeypatch.setattr(training.Commands, "run", lambda self, arguments: begun.append(arguments) or 1)
    return begun
