import pytest
import torch
from fake_data import FakeDataModule
from running import Stop, fit, method

from amcl_fast.callbacks import MetricsFile, OnlineKNN
from amcl_fast.evaluate import encode, knn_accuracy, pixel_features


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
    measured = fit(tmp_path / "a", extra=[OnlineKNN()]).lightning_module
    plain = fit(tmp_path / "b").lightning_module
    assert measured.backbone.training
    for name, value in plain.state_dict().items():
        assert torch.equal(measured.state_dict()[name], value), name


def test_history_survives_a_resume(tmp_path):
    with pytest.raises(Stop):
        fit(tmp_path, extra=[OnlineKNN(), Stop.at(6)])
    knn = OnlineKNN()
    fit(tmp_path, extra=[knn], ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert [epoch for epoch, _ in knn.history] == [1, 2]
    assert knn.pixels is not None and knn.untrained is not None


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
