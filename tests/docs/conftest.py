"""The site, built once for all tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]


def built(repository: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """A strict build of a repository's site in a folder."""
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=repository,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="session")
def build():
    return built


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """Folder of the site; a warning of the build is an error."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "site"
    with FileLock(shared / "site.lock"):
        if not folder.exists():
            result = built(ROOT, folder)
            assert result.returncode == 0, result.stderr
    return folder
