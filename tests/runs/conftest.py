"""A run that has finished, and a copy of it for each test that changes it."""

import os
import shutil

import pytest

from amcl_fast.cli import main
from tests.helpers.command_line import NT_XENT, image_folder

_SETTINGS = NT_XENT + "trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1}"


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run of one epoch, in a folder with its settings and images."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "settings.yaml").write_text(_SETTINGS)
    image_folder(folder / "images", 8, 2)
    run = ["--run_dir", str(folder / "run")]
    start = ["--config", str(folder / "settings.yaml"), "--data", str(folder / "images")]
    assert main(["pretrain", *start, *run]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of that run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "run", tmp_path / "run", copy_function=os.link)  # whoever writes makes a new file
    for name in ("metrics.csv", "config.yaml"):
        shutil.copy(finished / "run" / name, tmp_path / "name")
        os.replace(tmp_path / "name", tmp_path / "run" / name)
    return tmp_path / "run"
