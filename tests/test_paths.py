"""amcl_fast.paths: what a user may write in a path; tests/runs/test_run_folder.py has the rest."""

import os

import pytest

from amcl_fast.paths import expanded


def test_variables_of_the_environment_in_a_path(monkeypatch, tmp_path):
    """As a shell leaves them in quotes; what is there under that very name stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMCL_TEST", "/data")
    monkeypatch.delenv("AMCL_TEST_NONE", raising=False)
    assert expanded("$AMCL_TEST/x") == expanded("${AMCL_TEST}/x") == "/data/x"
    assert expanded("a/$1") == "a/$1" and expanded("cost $") == "cost $"
    monkeypatch.setenv("AMCL_TEST_HOME", "~")
    assert expanded("$AMCL_TEST_HOME/x") == os.path.expanduser("~/x")
    with pytest.raises(ValueError, match=r"^\$AMCL_TEST_NONE/x names a variable .* that is not set: AMCL_TEST_NONE$"):
        expanded("$AMCL_TEST_NONE/x")
    monkeypatch.setenv("AMCL_TEST_NONE", "")
    with pytest.raises(ValueError, match="a path must not be empty"):
        expanded("$AMCL_TEST_NONE")
    (tmp_path / "$AMCL_TEST").mkdir()
    assert expanded("$AMCL_TEST") == "$AMCL_TEST"
