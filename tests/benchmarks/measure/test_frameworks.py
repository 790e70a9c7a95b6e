import csv
import json

import pytest

from amcl_fast.study.training import Commands
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


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Arguments of a study of two recipes, and what its trainings are told; each fails."""
    told = []
    monkeypatch.setattr(frameworks, "FRAMEWORKS", ["simclr", "moco"])
    monkeypatch.setattr(frameworks, "VARIANTS", ["baseline", "amcl"])
    monkeypatch.setattr(Commands, "run", lambda self, arguments: told.append(arguments) or 1)
    output = tmp_path / "found.json"
    command = [
        "frameworks",
        "--frameworks",
        "simclr",
        "--seeds",
        "0",
        "--folder",
        str(tmp_path / "runs"),
        "--output",
        str(output),
    ]
    monkeypatch.setattr("sys.argv", command)
    return output, told


def test_finished_runs_are_read_and_not_repeated(study, tmp_path, capsys):
    finished_run(tmp_path / "runs", "simclr-builtin-amcl", 40.0, tau=0.25)
    finished_run(tmp_path / "runs", "simclr-builtin-baseline", 30.0)
    frameworks.main()
    output, told = study
    found = json.loads(output.read_text())
    ((baseline, amcl),) = [block["runs"] for block in found["blocks"]]
    assert not told and (baseline["recipe"], baseline["seed"], baseline["knn"]) == ("simclr-builtin-baseline", 0, 30)
    assert amcl["knn"] == 40 and amcl["seconds_per_epoch"] == 2 and amcl["tau_positive_mean"] == 0.25
    assert "tau_negative_mean" not in amcl
    assert found["command"] == "amcl-fast pretrain --recipe RECIPE --seed_everything SEED --data.num_threads 1"
    assert "| `simclr-builtin-amcl` | 40.0 | 40.0 |" in capsys.readouterr().out


def test_what_others_have_measured_stays_theirs(study, tmp_path, capsys):
    output, _ = study
    common = {"seed": 0, "knn": 12.0, "seconds_per_epoch": 2.0}
    theirs = [{"recipe": f"{name}-builtin-baseline", **common} for name in ("simclr", "moco")]
    output.write_text(json.dumps({"blocks": [{"machine": "another", "environment": "older", "runs": theirs}]}))
    finished_run(tmp_path / "runs", "simclr-builtin-amcl", 40.0)
    finished_run(tmp_path / "runs", "simclr-builtin-baseline", 30.0)
    frameworks.main()
    first, second = json.loads(output.read_text())["blocks"]
    assert first == {"machine": "another", "environment": "older", "runs": theirs[1:]}
    assert [run["knn"] for run in second["runs"]] == [30, 40] and second["machine"] != "another"
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if "builtin" in line]
    assert rows == ["`simclr-builtin-baseline`", "`simclr-builtin-amcl`", "`moco-builtin-baseline`"]


def test_a_failed_training_is_an_error_and_leaves_the_results_of_before(study, tmp_path):
    finished_run(tmp_path / "runs", "simclr-builtin-amcl", 40.0)
    with pytest.raises(SystemExit, match="1 of 2 trainings failed"):
        frameworks.main()
    output, told = study
    assert told[0][:5] == ["pretrain", "--recipe", "simclr-builtin-baseline", "--seed_everything", "0"]
    assert len(told) == 1 and told[0][-2:] == ["--data.num_threads", "1"] and not output.exists()


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
