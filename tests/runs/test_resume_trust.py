"""`amcl-fast pretrain --resume`: whose code it imports."""

import sys

import pytest

from tests.helpers.resuming import content, error, resume


@pytest.fixture
def stranger(run, monkeypatch):
    """A run whose settings name a class of somebody's, which leaves a trace when it is imported."""
    folder = run.parent
    (folder / "their_code.py").write_text(
        "from pathlib import Path\nimport lightning as L\nPath('imported').touch()\nclass Theirs(L.Callback): pass\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "their_code", raising=False)
    config = run / "config.yaml"
    text = config.read_text().replace("callbacks: null", "callbacks: [{class_path: their_code.Theirs}]")
    assert "their_code" in text
    config.write_text(text)
    return folder


def test_their_code_is_not_imported_unless_trusted(stranger, capsys):
    before = content(stranger / "run")
    assert resume("--trainer.max_epochs", 2) == 2
    line = error(capsys)
    assert "trainer.callbacks[0].class_path: their_code.Theirs" in line and "--trust" in line
    assert not (stranger / "imported").exists() and content(stranger / "run") == before
    assert resume("--trainer.max_epochs", 2, "--trust") == 0
    assert (stranger / "imported").exists()


def test_their_code_can_be_left_out(stranger):
    assert resume("--trainer.max_epochs", 2, "--trainer.callbacks", "null") == 0
    assert not (stranger / "imported").exists()
