"""Measurements of a rehearsal in this process, at a tiny size."""

import gc

import pytest

from amcl_fast.benchmarks.measure.scale import answers, children
from tests.helpers.command_line import image_folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("photographs"), 20, 1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Measurements of one process in this one, which has all libraries loaded; loaders of small images."""
    alone = children.measure

    def measure(what, request, environment, processes=1):
        if processes > 1 and what == "knn":  # a start of its own costs seconds
            return alone(what, request, environment, processes)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            gc.freeze()  # what other tests have left is none of this process's, and is collected at every measurement
            try:
                return [answers._answer(what, dict(request) | {"rank": 0, "processes": 1})]
            finally:
                gc.unfreeze()

    monkeypatch.setattr(children, "measure", measure)
    monkeypatch.setattr(answers, "SIZE", 16)
    monkeypatch.setattr(answers, "IMAGES", 8)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path
