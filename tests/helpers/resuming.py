"""Runs that a test changes and goes on with."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from amcl_fast.cli import main


def content(run: Path) -> dict[str, bytes]:
    """Of all files but the lock's, which says who looked last."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def resume(*settings: object) -> int:
    """Go on with the run `run`, with these changes; returns the exit code."""
    return main(["pretrain", "--resume", "run", *map(str, settings)])


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that was told of an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amcl-fast")]
    (line,) = lines
    return line


def rewritten(path: Path, change: Callable[[Any], object]) -> None:
    """Change the checkpoint in a file."""
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path.with_name("new"))
    os.replace(path.with_name("new"), path)


def change_everywhere(run: Path, change: Callable[[Any], object]) -> None:
    """Change the settings of a run as an earlier version may have written them."""
    config = run / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    change(settings)
    config.write_text(yaml.safe_dump(settings))
    rewritten(run / "checkpoints" / "last.ckpt", lambda state: change(state["settings"]))
