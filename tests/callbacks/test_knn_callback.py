import os
import signal

import pytest
import torch

from amcl_fast.callbacks import Checkpoint, Interrupted, MetricsFile, OnlineKNN, SaveOnSignal
from amcl_fast.distributed import ElsewhereError
from amcl_fast.evaluate import ShuffledFeatures, encode, knn_accuracy, linear_probe, pixel_features
from tests.helpers.fake_data import FakeDataModule
from tests.helpers.processes import end_group, spawn, start
from tests.helpers.running import Stop, fit, method


def test_measures_baselines_once_and_the_encoder_at_its_epochs(tmp_path):
    knn = OnlineKNN(every_n_epochs=2, k=5)
    trainer = fit(tmp_path, extra=[knn], max_epochs=5)
    assert [epoch for epoch, _ in knn.history] == [2, 4, 5]
    data = FakeDataModule()
    settings = {"k": 5, "temperature": 0.1, "num_classes": data.num_classes}

    def accuracy(features):
        bank, queries = (features(loader) for loader in data.features_loaders())
        return knn_accuracy(*bank, *queries, **settings)

    assert knn.pixels == pytest.approx(accuracy(pixel_features))
    assert knn.untrained == pytest.approx(accuracy(lambda x: encode(method().backbone, x, "cpu")))
    trained = trainer.lightning_module.backbone
    assert knn.history[-1][1] == pytest.approx(accuracy(lambda x: encode(trained, x, "cpu")))


def test_training_goes_on_as_if_it_had_not_been_measured(tmp_path):
    measured = fit(tmp_path / "a", extra=[OnlineKNN(probe_epochs=2)]).lightning_module
    drawn = torch.get_rng_state()
    plain = fit(tmp_path / "b").lightning_module
    assert torch.equal(torch.get_rng_state(), drawn)
    assert measured.backbone.training
    for name, value in plain.state_dict().items():
        assert torch.equal(measured.state_dict()[name], value), name


def test_history_survives_a_resume(tmp_path):
    with pytest.raises(Stop):
        fit(tmp_path, extra=[OnlineKNN(probe_epochs=1), Stop.at(6)])
    knn, whole = OnlineKNN(probe_epochs=1), OnlineKNN(probe_epochs=1)
    fit(tmp_path, extra=[knn], ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert [epoch for epoch, _ in knn.history] == [1, 2]
    assert knn.pixels is not None and knn.untrained is not None
    fit(tmp_path / "whole", extra=[whole])
    assert (knn.history, knn.probed, knn.untrained_probe) == (whole.history, whole.probed, whole.untrained_probe)


def test_the_probe_is_that_of_the_features_after_every_epoch(tmp_path):
    knn = OnlineKNN(probe_epochs=5)
    trainer = fit(tmp_path, extra=[knn], logger=MetricsFile(tmp_path))
    assert [epoch for epoch, _ in knn.probed] == [1, 2]

    def accuracy(backbone):
        bank, queries = (encode(backbone, loader, "cpu") for loader in FakeDataModule().features_loaders())
        found = linear_probe(ShuffledFeatures(*bank, 256), *queries, num_classes=2, epochs=5, batch_size=256)
        return max(found.top1)

    expected = accuracy(method().backbone), accuracy(trainer.lightning_module.backbone)
    assert (knn.untrained_probe, knn.probed[-1][1]) == expected
    columns, *rows = (line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
    told, untrained = (
        [float(row[columns.index(name)]) for row in rows if row[columns.index(name)]]
        for name in ("probe/accuracy", "probe/untrained")
    )
    assert (told, untrained) == ([value for _, value in knn.probed], [knn.untrained_probe])
    # Another length of the training: what was measured at its end does not count twice.
    fit(tmp_path, extra=[knn], ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"), max_epochs=3)
    assert [epoch for epoch, _ in knn.probed] == [epoch for epoch, _ in knn.history] == [1, 2, 3]


@pytest.mark.parametrize("stop", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 12}, {"max_steps": 10}])
def test_a_finished_run_holds_what_was_measured_at_its_end(tmp_path, stop):
    """At the end of an epoch that was saved already, and within one."""
    knn, again = OnlineKNN(every_n_epochs=2), OnlineKNN(every_n_epochs=2)
    settings = {"max_epochs": -1, **stop}
    trainer = fit(tmp_path, extra=[knn], **settings)
    assert [epoch for epoch, _ in knn.history] == [2, 3]
    path = tmp_path / "checkpoints" / "last.ckpt"
    fit(tmp_path, extra=[again], ckpt_path=str(path), **settings)
    assert again.history == knn.history
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[name]) for name, value in trainer.lightning_module.state_dict().items())
    longer = OnlineKNN(every_n_epochs=2)
    fit(tmp_path, extra=[longer], ckpt_path=str(path), max_epochs=4)
    assert [epoch for epoch, _ in longer.history] == [2, 4]


def test_accuracies_reach_the_metrics_file(tmp_path):
    fit(tmp_path, extra=[OnlineKNN(every_n_epochs=2)], max_epochs=3, logger=MetricsFile(tmp_path))
    text = (tmp_path / "metrics.csv").read_text().splitlines()
    columns = text[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=False)) for line in text[1:]]
    assert rows[0]["knn_pixels"] and rows[0]["knn_untrained"]
    assert [row["step"] for row in rows if row.get("knn")] == ["7", "12"]


def test_bad_interval_is_named():
    with pytest.raises(ValueError, match=r"knn.every_n_epochs.*-1"):
        OnlineKNN(every_n_epochs=-1)


def test_what_cannot_be_measured_is_one_line_before_training(tmp_path, capsys):
    class Data(FakeDataModule):
        unmeasurable = "the images have no labels"

        def features_loaders(self, *args, **kwargs):
            raise AssertionError

    knn = OnlineKNN()
    trainer = fit(tmp_path, data=Data(), extra=[knn], logger=MetricsFile(tmp_path))
    assert capsys.readouterr().out == "kNN is not measured: the images have no labels\n"
    assert (knn.pixels, knn.untrained, knn.history, knn.neighbours) == (None, None, [], None)
    assert "knn" not in trainer.callback_metrics and "knn" not in (tmp_path / "metrics.csv").read_text()


def test_the_neighbours_are_no_more_than_the_bank_holds(tmp_path):
    knn = OnlineKNN()
    fit(tmp_path, extra=[knn])
    assert (knn.k, knn.neighbours) == (200, 20)
    again = OnlineKNN()
    again.load_state_dict(knn.state_dict())
    assert again.neighbours == 20
    few = OnlineKNN(k=5)
    fit(tmp_path / "few", extra=[few])
    assert few.neighbours == 5


@pytest.mark.parametrize("off", ["every_n_epochs", "bank", "queries"])
def test_a_setting_of_0_switches_it_off(tmp_path, capsys, off):
    class Data(FakeDataModule):
        def features_loaders(self, *args, **kwargs):
            raise AssertionError

    knn = OnlineKNN(**{off: 0})
    trainer = fit(tmp_path, data=Data(), extra=[knn], logger=MetricsFile(tmp_path))
    assert capsys.readouterr().out == f"kNN is off: knn.{off} is 0\n"
    assert (knn.pixels, knn.untrained, knn.history, knn.sampled) == (None, None, [], {})
    assert "knn" not in trainer.callback_metrics and "knn" not in (tmp_path / "metrics.csv").read_text()


def test_the_baselines_can_be_left_out_and_are_never_those_of_a_trained_encoder(tmp_path):
    knn, again = OnlineKNN(before_training=False), OnlineKNN()
    fit(tmp_path, extra=[knn], logger=MetricsFile(tmp_path))
    assert (knn.pixels, knn.untrained) == (None, None) and [epoch for epoch, _ in knn.history] == [1, 2]
    assert "knn_" not in (tmp_path / "metrics.csv").read_text()
    fit(tmp_path, extra=[again], ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"), max_epochs=3)
    assert (again.pixels, again.untrained) == (None, None) and len(again.history) == 3


def test_pixels_that_are_too_many_are_not_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("amcl_fast.callbacks.knn._MOST_PIXEL_BYTES", 30 * 3 * 8 * 8 * 4 - 1)
    knn = OnlineKNN()
    fit(tmp_path, extra=[knn], max_epochs=1)
    assert "raw pixels are not compared: those of 30 images take more than " in capsys.readouterr().out
    assert knn.pixels is None and knn.untrained is not None


def test_no_more_than_the_sample_is_measured(tmp_path):
    asked = []

    class Data(FakeDataModule):
        def features_loaders(self, *args, **kwargs):
            asked.append((args, kwargs))
            return super().features_loaders(*args, **kwargs)

    fit(tmp_path, data=Data(), extra=[OnlineKNN(bank=14, queries=8)], max_epochs=1)
    assert asked == [((14, 8), {"shard": 0, "num_shards": 1})] * 2


class Sampled(FakeDataModule):
    """Gives as many images as are asked for, and of the first held-out image finds out that it is bad."""

    def measured_images(self, bank=None, queries=None):
        return min(bank or 20, 20), min(queries or 10, 10)

    def features_loaders(self, bank=None, queries=None, **part):
        counts = self.measured_images(bank, queries)
        loaders = zip(super().features_loaders(**part), counts, strict=True)
        (bank, queries) = ([(images[:count], labels[:count])] for [(images, labels)], count in loaders)
        return bank, [(images[1:], labels[1:]) for images, labels in queries]


def test_what_was_measured_on_is_what_was_left(tmp_path):
    knn = OnlineKNN(bank=12, queries=6)
    fit(tmp_path, data=Sampled(), extra=[knn], max_epochs=1)
    assert knn.sampled == {"bank": 12, "queries": 5}


def test_a_resume_with_another_sample_says_so(tmp_path, capsys):
    def go_on(epochs, **settings):
        knn = OnlineKNN(**settings)
        path = tmp_path / "checkpoints" / "last.ckpt"
        fit(tmp_path, data=Sampled(), extra=[knn], max_epochs=epochs, ckpt_path=str(path) if path.exists() else None)
        return knn, capsys.readouterr().out

    knn, said = go_on(1)
    assert (knn.before, said) == ([], "")
    knn, said = go_on(2)
    assert (knn.before, said) == ([], "")
    knn, said = go_on(3, bank=12)
    assert said == (
        "kNN is now of 10 held-out images, by 12 training images, before of 10 held-out images, by 20 training images\n"
    )
    assert knn.before == [{"epoch": 2, "bank": 20, "queries": 9}] and knn.sampled == {"bank": 12, "queries": 9}
    knn, said = go_on(4, bank=0)
    assert said == "kNN is off: knn.bank is 0\n" and knn.sampled == {"bank": 12, "queries": 9}
    knn, said = go_on(5, bank=12)
    assert "now" not in said and knn.before == [{"epoch": 2, "bank": 20, "queries": 9}]


def test_a_run_of_an_earlier_version_measured_all_images(tmp_path, capsys):
    first = OnlineKNN()
    fit(tmp_path, data=Sampled(), extra=[first], max_epochs=1)
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for state in checkpoint["callbacks"].values():
        if "pixels" in state:
            for name in ("sampled", "before", "asked"):
                del state[name]
    torch.save(checkpoint, path)
    knn = OnlineKNN(queries=4)
    fit(tmp_path, data=Sampled(), extra=[knn], max_epochs=2, ckpt_path=str(path))
    assert "kNN is now of 4 held-out images, by 20 training images, before of 10 " in capsys.readouterr().out
    assert knn.before == [{"epoch": 1, "bank": 20, "queries": 10}]


def test_a_probe_without_knn_is_refused():
    with pytest.raises(ValueError, match=r"^knn.probe_epochs must be 0 where knn.bank is 0, got 3$"):
        OnlineKNN(bank=0, probe_epochs=3)


@pytest.mark.parametrize("name", ["bank", "queries", "every_n_epochs", "k", "temperature", "probe_epochs"])
def test_settings_out_of_range_are_named(name):
    with pytest.raises(ValueError, match=rf"knn.{name} .*-1"):
        OnlineKNN(**{name: -1})


class Batches(FakeDataModule):
    """Batches of one image, of which `happen` is told in one process."""

    def __init__(self, happen=lambda number: None):
        super().__init__()
        self.happen = happen
        self.number = 0

    def features_loaders(self, *args, **kwargs):
        def one_by_one(loader):
            for images, labels in loader:
                for batch in zip(images.split(1), labels.split(1), strict=True):
                    self.number += 1
                    self.happen(self.number)
                    yield batch

        bank, queries = super().features_loaders(*args, **kwargs)
        return one_by_one(bank), one_by_one(queries)


class Plain(FakeDataModule):
    """Of somebody else, which knows neither samples nor parts."""

    measured_images = property()

    def features_loaders(self):
        return super().features_loaders()


def test_a_data_module_of_others_is_measured_whole(tmp_path):
    knn, usual = OnlineKNN(), OnlineKNN()
    fit(tmp_path / "plain", data=Plain(), extra=[knn])
    fit(tmp_path / "usual", extra=[usual])
    assert (knn.history, knn.pixels, knn.untrained) == (usual.history, usual.pixels, usual.untrained)
    assert knn.sampled == {"bank": 20, "queries": 10}


def two_processes(rank, port, folder):
    start(rank, 2, port)
    settings = {"strategy": "ddp", "devices": 2}

    # A data module that knows no parts.
    knn = OnlineKNN(k=5)
    fit(folder / "whole", data=Plain(), extra=[knn], max_epochs=1, **settings)
    assert knn.sampled == {"bank": 20, "queries": 10} and len(knn.history) == 1

    # The same in both, and what one process finds.
    knn = OnlineKNN(k=5, probe_epochs=2)
    trainer = fit(folder / "plain", data=Batches(), extra=[knn], **settings)
    whole = FakeDataModule().features_loaders()
    expected = [
        knn_accuracy(*(part for loader in whole for part in features(loader)), k=5, num_classes=2)
        for features in (
            pixel_features,
            lambda loader: encode(method().backbone, loader, "cpu"),
            lambda loader: encode(trainer.lightning_module.backbone, loader, "cpu"),
        )
    ]
    assert [knn.pixels, knn.untrained, knn.history[-1][1]] == expected and len(knn.history) == 2
    assert knn.neighbours == 5 and knn.sampled == {"bank": 20, "queries": 10}
    bank, queries = (encode(trainer.lightning_module.backbone, loader, "cpu") for loader in whole)
    alone = linear_probe(ShuffledFeatures(*bank, 256), *queries, num_classes=2, epochs=2, batch_size=256)
    assert knn.probed[-1] == (2, max(alone.top1))

    # A signal that one process gets in the kNN of the first epoch; 15 batches were measured before training.
    def stop(number):
        if rank and number == 18:
            os.kill(os.getpid(), signal.SIGTERM)

    checkpoint = Checkpoint(every_n_epochs=9)
    saver = SaveOnSignal(checkpoint)
    knn = OnlineKNN(k=5)
    knn.between_batches = saver.poll
    with pytest.raises(Interrupted):
        fit(folder / "stopped", data=Batches(stop), checkpoint=checkpoint, extra=[knn, saver], **settings)
    path = folder / "stopped" / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 4 and knn.history == []
    again = OnlineKNN(k=5)
    fit(folder / "stopped", data=Batches(), extra=[again], ckpt_path=str(path), **settings)
    assert [epoch for epoch, _ in again.history] == [1, 2]

    # One process cannot read its part, and the other is told.
    def fail(number):
        if rank and number == 3:
            raise OSError("cannot be read")

    with pytest.raises(OSError if rank else ElsewhereError, match="cannot be read"):
        fit(folder / "failed", data=Batches(fail), extra=[OnlineKNN()], **settings)
    end_group()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_measure_as_one_and_stop_together(tmp_path, port):
    spawn(two_processes, args=(port, tmp_path), nprocs=2)
