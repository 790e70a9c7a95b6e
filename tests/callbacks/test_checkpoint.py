import os
import resource
import shutil
import tempfile

import fsspec
import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from amcl_fast.callbacks import Checkpoint, NonFiniteError, OnlineKNN, RunFolderError, SaveError
from amcl_fast.callbacks.checkpoint import LocalCheckpointIO
from tests.helpers.command_line import saved_step
from tests.helpers.running import Stop, fit


def saves(monkeypatch):
    steps = []
    real = L.Trainer.save_checkpoint

    def save(trainer, *args, **kwargs):
        steps.append((trainer.current_epoch, trainer.global_step))
        return real(trainer, *args, **kwargs)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", save)
    return steps


def test_saves_between_steps_and_at_the_end_of_epochs(tmp_path, monkeypatch):
    steps = saves(monkeypatch)
    fit(tmp_path, checkpoint=Checkpoint(every_n_epochs=2, every_n_steps=3), max_epochs=3)
    # Step 12 ends an epoch that is not due, and training: saved once, at the end.
    assert steps == [(0, 3), (1, 6), (1, 8), (2, 9), (3, 12)]


def test_saves_after_minutes(tmp_path, monkeypatch):
    steps = saves(monkeypatch)
    fit(tmp_path, checkpoint=Checkpoint(every_n_epochs=9, every_n_minutes=1e-9), max_epochs=1)
    assert steps == [(0, 1), (0, 2), (0, 3), (1, 4)]


def test_accumulated_gradients_are_never_cut_in_two(tmp_path, monkeypatch):
    steps = saves(monkeypatch)
    checkpoint = Checkpoint(every_n_epochs=9, every_n_minutes=1e-9)
    fit(tmp_path, checkpoint=checkpoint, max_epochs=1, accumulate_grad_batches=2)
    assert steps == [(0, 1), (1, 2)]


def test_loads_as_weights_only_and_leaves_no_partial_file(tmp_path):
    trainer = fit(tmp_path, max_epochs=1)
    path = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    assert state["global_step"] == 4 and state["optimizer_states"]
    for name, value in trainer.lightning_module.state_dict().items():
        assert torch.equal(state["state_dict"][name], value)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_save_that_dies_leaves_the_old_file(tmp_path, monkeypatch):
    trainer = fit(tmp_path, max_epochs=1)
    path = tmp_path / "checkpoints" / "last.ckpt"
    good = path.read_bytes()

    def die(trainer, partial, **_):
        partial.write_bytes(good[:100])
        raise OSError("disk full")

    monkeypatch.setattr(L.Trainer, "save_checkpoint", die)
    with pytest.raises(OSError, match="disk full"):
        trainer.checkpoint_callback.save(trainer)
    assert path.read_bytes() == good


class FullDisk(L.Callback):
    """From step `first` to before step `last`, no file can grow beyond a few pages: a save fails half way."""

    def __init__(self, first, last):
        self.first, self.last = first, last
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_start(self, trainer, *_):
        full = self.first <= trainer.global_step < self.last
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if full else self.limits[0], self.limits[1]))

    def on_exception(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


def test_training_goes_on_when_a_save_fails(tmp_path, monkeypatch):
    folder, seen = tmp_path / "checkpoints", {}

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            seen[trainer.global_step] = (
                torch.load(folder / "last.ckpt", weights_only=True)["global_step"] if trainer.global_step else None,
                [file.name for file in folder.glob("*")],
            )

    with pytest.warns(UserWarning, match=r"step 3: the checkpoint cannot be saved \(.*File too large.*goes on"):
        fit(tmp_path, checkpoint=Checkpoint(every_n_steps=1), extra=[FullDisk(2, 4), Look()], max_epochs=2)
    assert seen[4] == (2, ["last.ckpt"])  # steps 3 and 4 could not be saved
    assert seen[6] == (6, ["last.ckpt"])


def test_the_last_save_must_succeed(tmp_path):
    with pytest.raises(SaveError, match=r"step 8: .*File too large.*the last good one is .*last\.ckpt"):
        fit(tmp_path, checkpoint=Checkpoint(every_n_epochs=9, every_n_steps=3), extra=[FullDisk(7, 9)])
    assert saved_step(tmp_path) == 6
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Poison(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 3:
                with torch.no_grad():
                    module.projector.input.bias[0] = float("nan")

    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = Checkpoint(every_n_steps=1)
    with pytest.raises(NonFiniteError, match=rf"step 3.*a weight is not finite.*{path}"):
        fit(tmp_path, checkpoint=checkpoint, extra=[Poison()])
    assert torch.load(path, weights_only=True)["global_step"] == 2


@pytest.fixture
def no_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))


@pytest.mark.usefixtures("no_temporary_folder")
def test_the_temporary_folder_does_not_matter(tmp_path):
    kept = ModelCheckpoint(dirpath=tmp_path / "deep" / "down", every_n_epochs=1, save_top_k=-1)
    fit(tmp_path / "run", checkpoint=Checkpoint(every_n_steps=1), extra=[kept])
    found = {path.name: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.rglob("*.ckpt")}
    assert found == {"epoch=0-step=4.ckpt": 4, "epoch=1-step=8.ckpt": 8, "last.ckpt": 8}
    assert not list(tmp_path.rglob("*.partial"))


def test_a_run_goes_on_from_what_lightnings_callback_keeps(tmp_path):
    def extra():
        return [ModelCheckpoint(dirpath=tmp_path / "checkpoints", every_n_epochs=1, save_top_k=-1, save_last=True)]

    fit(tmp_path, extra=extra(), max_epochs=2)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 8 and last["exact_resume"]
    first = tmp_path / "checkpoints" / "epoch=0-step=4.ckpt"
    trainer = fit(tmp_path / "again", extra=extra(), max_epochs=2, ckpt_path=first)
    for name, value in trainer.lightning_module.state_dict().items():
        assert torch.equal(value, last["state_dict"][name]), name


@pytest.mark.parametrize("links", [True, False])
def test_every_nth_epoch_is_kept(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
    fit(tmp_path, checkpoint=Checkpoint(every_n_epochs=3, keep_every_n_epochs=2), max_epochs=5)
    folder = tmp_path / "checkpoints"
    assert sorted(os.listdir(folder)) == ["epoch-0002.ckpt", "epoch-0004.ckpt", "last.ckpt"]
    steps = [torch.load(folder / name, weights_only=True)["global_step"] for name in sorted(os.listdir(folder))]
    assert steps == [8, 16, 20]


class Measured(OnlineKNN):
    """kNN accuracies that are told after every epoch."""

    def __init__(self, *accuracies):
        super().__init__()
        self.accuracies = accuracies

    def on_train_start(self, *_): ...

    def on_train_epoch_end(self, trainer, *_):
        self.history.append((trainer.current_epoch + 1, self.accuracies[trainer.current_epoch]))

    def on_train_end(self, *_): ...


def kept(folder):
    """Steps of the checkpoints that are kept, by name."""
    paths = sorted((folder / "checkpoints").iterdir())
    return {path.stem: torch.load(path, weights_only=True)["global_step"] for path in paths}


def test_the_best_by_knn_and_the_last_ones_are_kept(tmp_path):
    settings = {"keep_best": True, "keep_every_n_epochs": 1, "keep_last": 2}
    accuracies = (30.0, 50.0, 40.0, 50.0, 45.0, 60.0)
    fit(tmp_path, checkpoint=Checkpoint(**settings), extra=[Measured(*accuracies)], max_epochs=5)
    assert kept(tmp_path) == {"best": 8, "epoch-0004": 16, "epoch-0005": 20, "last": 20}
    # A resume knows what was best, and saves what is better although none is due.
    last = tmp_path / "checkpoints" / "last.ckpt"
    rare = Checkpoint(every_n_epochs=100, keep_best=True)
    fit(tmp_path, checkpoint=rare, extra=[Measured(*accuracies)], ckpt_path=last, max_epochs=6)
    assert kept(tmp_path) == {"best": 24, "epoch-0004": 16, "epoch-0005": 20, "last": 24}
    assert torch.load(last, weights_only=True)["callbacks"]["Checkpoint"] == {"best": 60.0}


def test_the_best_is_of_the_weights_that_were_measured(tmp_path, monkeypatch):
    """A disk that was full then does not make later weights the best."""

    def save(self, checkpoint, *arguments, saving=LocalCheckpointIO.save_checkpoint, **options):
        if checkpoint["global_step"] == 4:
            raise OSError(28, "No space left on device")
        saving(self, checkpoint, *arguments, **options)

    monkeypatch.setattr(LocalCheckpointIO, "save_checkpoint", save)
    with pytest.warns(UserWarning, match="No space left"):
        fit(tmp_path, checkpoint=Checkpoint(keep_best=True, every_n_steps=1), extra=[Measured(50.0, 20.0)])
    assert kept(tmp_path) == {"best": 8, "last": 8}


@pytest.mark.parametrize("what", ["a file in the folder's place", "a folder in the file's place"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, what):
    class Block(L.Callback):
        def on_train_start(self, *_):
            folder = tmp_path / "checkpoints"
            folder.touch() if what.startswith("a file") else (folder / "last.ckpt").mkdir(parents=True)

    with (
        pytest.warns(UserWarning, match="step 4: .*training goes on"),
        pytest.raises(SaveError, match=r"step 8: .*(File exists|Is a directory).*checkpoints"),
    ):
        fit(tmp_path, extra=[Block()])
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("how", ["renamed", "replaced"])
def test_a_run_directory_that_is_gone_ends_the_run(tmp_path, how):
    run, moved = tmp_path / "run", tmp_path / "moved"

    class Move(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 2:
                run.rename(moved)
                if how == "replaced":
                    run.mkdir()

    place = rf"was renamed to {moved} .*saved there.*--resume {moved}$"
    with pytest.raises(RunFolderError, match=rf"step 3: {run} {place}"):
        fit(run, checkpoint=Checkpoint(every_n_steps=3), extra=[Move()])
    assert saved_step(moved) == 3
    assert not run.exists() or not list(run.iterdir())


def test_a_run_directory_that_was_deleted_is_made_anew_unless_another_one_has_its_place(tmp_path):
    run = tmp_path / "run"

    class Delete(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 2:
                shutil.rmtree(run)
            if trainer.global_step == 6:
                shutil.rmtree(run)
                run.mkdir()

    with (
        pytest.warns(UserWarning, match=rf"step 3: {run} was deleted .*; it is made anew"),
        pytest.raises(RunFolderError, match=rf"step 8: {run} was deleted .*cannot be made anew"),
    ):
        fit(run, checkpoint=Checkpoint(every_n_steps=3, every_n_epochs=9), extra=[Delete()])
    assert not list(run.iterdir())


def test_no_file_stays_open(tmp_path):
    before = os.listdir("/proc/self/fd")
    with pytest.raises(Stop):
        fit(tmp_path, extra=[Stop.at(3)])
    fit(tmp_path, max_epochs=1)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize(
    "name", ["every_n_epochs", "every_n_steps", "every_n_minutes", "keep_every_n_epochs", "keep_last"]
)
def test_bad_settings_are_named(name):
    with pytest.raises(ValueError, match=f"checkpoint.{name}.*-1"):
        Checkpoint(**{name: -1})


def test_an_address_is_left_to_lightning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LocalCheckpointIO(tmp_path).save_checkpoint({"step": 1}, "memory://bucket/last.ckpt")
    with fsspec.open("memory://bucket/last.ckpt", "rb") as file:
        assert torch.load(file, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == []
