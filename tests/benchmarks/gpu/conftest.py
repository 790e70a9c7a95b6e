"""The command on a GPU that is not there: `pretended` says what is replaced."""

import pytest

from benchmarks import results
from benchmarks.gpu import command
from tests.helpers.benchmarks import pretended


@pytest.fixture
def pretend(monkeypatch):
    """A GPU that is not there."""
    pretended.install(monkeypatch.setattr)
    return monkeypatch


@pytest.fixture
def call(tmp_path, capfd):
    """The command with its output in a folder of the test: exit code, JSON and what was printed."""

    def of(*arguments):
        with pytest.raises(SystemExit) as end:
            command.main([*arguments, "--output", str(tmp_path), "--tuned", str(tmp_path / "tuned"), "--jobs", "2"])
        printed = capfd.readouterr()
        path = tmp_path / "nvidia-stand-in-1.json"
        return end.value.code, results.load(path)["sections"] if path.exists() else {}, printed.out, printed.err

    return of
