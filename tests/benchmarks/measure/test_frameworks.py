import csv
import json

import pytest

from benchmarks.measure import frameworks


def finished_run(folder, recipe, knn, tau=None):
    run = folder / f"{recipe}-0"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"finished": True, "training_images": 100}))
    row = {"step": 1, "knn": knn, "knn_untrained": 10, "knn_pixels": 5, "images_per_second": 50, "loss": 1}
    if tau is not None:
        row |= {"tau_positive_mean": tau, "tau_positive_std": 0.1, "tau_positive_at_bound": 0}
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)


def test_finished_runs_are_read_and_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(frameworks, "amcl_fast", lambda _: pytest.fail("it trains"))
    finished_run(tmp_path, "simclr-builtin-amcl", 40.0, tau=0.25)
    row = frameworks.train("simclr-builtin-amcl", 0, tmp_path)
    assert row["knn"] == 40 and row["seconds_per_epoch"] == 2 and row["tau_positive_mean"] == 0.25
    assert "tau_negative_mean" not in row


def test_a_failed_training_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(frameworks, "amcl_fast", lambda _: 2)
    with pytest.raises(RuntimeError, match="exit code 2"):
        frameworks.train("simclr-builtin-amcl", 0, tmp_path)


def test_the_table_has_a_row_for_each_recipe():
    common = {"seconds_per_epoch": 2.0, "tau_positive_at_bound": 0.0}
    runs = [
        {"recipe": "a", "knn": 40.0, "tau_positive_mean": 0.2, "tau_positive_std": 0.0, **common},
        {"recipe": "a", "knn": 41.0, "tau_positive_mean": 0.2, "tau_positive_std": 0.0, **common},
        {"recipe": "b", "knn": 39.0, "tau_positive_mean": 0.3, "tau_positive_std": 0.05, **common},
        {"recipe": "c", "knn": 38.0, "tau_positive_mean": 1e-5, "tau_positive_std": 0.0, **common},
    ]
    runs[-1]["tau_positive_at_bound"] = 1.0
    assert frameworks.table(runs).splitlines()[2:] == [
        "| `a` | 40.0, 41.0 | 40.5 | 0.2 | — | 2.0 |",
        "| `b` | 39.0 | 39.0 | 0.3 ± 0.05 | — | 2.0 |",
        "| `c` | 38.0 | 38.0 | 1e-05, at its bound | — | 2.0 |",
    ]
