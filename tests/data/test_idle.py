"""Evaluations, one after the other, have one pipeline of DALI, and nothing of them is left behind."""

import copy
import gc
import os
import weakref

import numpy as np
import pytest
import torch

from amcl_fast.data import EvaluationLoader
from amcl_fast.data.graph import Output
from amcl_fast.data.loader import idle
from amcl_fast.data.scan.images import Images
from tests.helpers.loaders import RAW, corrupt, in_shards, numbered, prepared
from tests.helpers.soak import held, memory

OUTPUT = Output(size=8, batch_size=8, num_threads=1, **RAW)


@pytest.fixture
def made(monkeypatch):
    """The pipelines that were made, as long as they live."""
    pipelines, real = weakref.WeakSet(), idle.evaluation_pipeline

    def counted(*arguments):
        counted.number += 1
        pipelines.add(pipeline := real(*arguments))
        return pipeline

    counted.number, counted.living = 0, pipelines
    monkeypatch.setattr(idle, "evaluation_pipeline", counted)
    return counted


def seen(loader):
    return [number for images, _ in loader for number in images[:, 0, 0, 0].round().int().tolist()]


def test_passes_leave_nothing_behind(tmp_path, made):
    data = EvaluationLoader(numbered(tmp_path / "i", 20), OUTPUT)
    assert seen(data) == list(range(20))
    before = held()
    for _ in range(4):
        assert seen(data) == seen(data.only(range(20))) == list(range(20))
    assert seen(data.only([3, 17])) == [3, 17]
    assert held() == before
    assert made.number == 1
    collecting = gc.isenabled()
    gc.disable()
    try:
        del data
        assert not made.living  # no cycle holds it
    finally:
        if collecting:
            gc.enable()


def test_what_decoding_has_freed_goes_back_to_the_system(save):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    data = EvaluationLoader(Images([save("a.jpg", pixels)] * 64, [0] * 64, ["a"]), Output(size=128, batch_size=64))
    before = memory()["own"]
    for _ in range(6):
        list(data)
    assert memory()["own"] - before < 60 << 10  # or else a hundred, and more with every pass


def test_everything_that_is_measured_has_one_pipeline(make_shards, made):
    data = prepared(in_shards(make_shards)[0], num_threads=1)
    loaders = [*data.features_loaders(), *data.features_loaders(9, 2), data.held_out_sample(2, 1)]
    counts = [len(seen(loader)) for loader in loaders]
    assert counts[2:4] == [9, 2] and counts[0] > 9
    assert made.number == 1


def test_passes_at_once_and_passes_that_are_left_are_of_their_own_pipelines(tmp_path, made):
    data = EvaluationLoader(numbered(tmp_path / "i", 40), OUTPUT)
    both = [torch.stack((ours[0], theirs[0])) for ours, theirs in zip(data, data, strict=True)]
    assert len(both) == 5 and all(torch.equal(*pair) for pair in both)
    assert made.number == 2 and len(made.living) == 1
    left = iter(data)
    next(left)
    del left
    assert not made.living
    assert seen(data) == list(range(40))
    assert made.number == 3


def test_a_pass_after_a_failure_and_an_error_of_the_caller_is_as_every_pass(tmp_path, made):
    images = numbered(tmp_path / "i", 40)
    data = EvaluationLoader(images, OUTPUT)
    seen(data)
    corrupt(images.files[20])
    passes = iter(data)
    next(passes)
    with pytest.raises(ZeroDivisionError):
        passes.throw(ZeroDivisionError)
    before = held()
    for _ in range(2):
        assert seen(data) == [number for number in range(40) if number != 20]
    assert {**held(), "threads": 0} == {**before, "threads": 0}
    assert len(made.living) == 1


def test_another_output_has_another_pipeline(tmp_path, made):
    kept = idle.Idle()
    images = numbered(tmp_path / "i", 8)
    for output, pipelines in ((OUTPUT, 1), (OUTPUT, 1), (Output(size=4, batch_size=8, **RAW), 2)):
        ((batch, _),) = list(EvaluationLoader(images, output, idle=kept))
        assert batch.shape == (8, 3, output.size, output.size)
        assert made.number == pipelines and len(made.living) == 1


def test_a_copy_of_a_loader_and_of_a_process_make_pipelines_of_their_own(tmp_path, made):
    data = EvaluationLoader(numbered(tmp_path / "i", 8), OUTPUT)
    assert seen(data) == seen(copy.deepcopy(data)) == list(range(8))
    assert made.number == 2
    child = os.fork()
    if not child:
        alive = [len(made.living), seen(data) == list(range(8))]  # and its parent's pipeline does not end here
        del data
        gc.collect()
        os._exit(0 if alive == [1, True] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert seen(data) == list(range(8))
    assert made.number == 2
