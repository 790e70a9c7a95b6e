"""amcl_fast.report.compare: several runs on one page."""

import json

import numpy as np
import pytest

from amcl_fast.cli import main
from amcl_fast.report import compare, read_run, write_comparison
from tests.helpers.shots import METRICS, run_directory, snapshot


@pytest.fixture
def runs(tmp_path):
    """A run with an adaptive temperature, one with a constant one, one that just began."""
    perplexity = np.full((2, 16), 0.375, np.float32)
    first = run_directory(tmp_path / "simclr-1", before=snapshot(), after=snapshot(19, perplexity=perplexity))
    constant = {"tau": (0.5, 0.5), "framework": "MoCo"}
    second = run_directory(tmp_path / "moco-1", before=snapshot(**constant), after=snapshot(19, **constant))
    third = run_directory(tmp_path / "barlow-1", metrics="step,loss\n1,2.5\n")
    probe = {"top1": 71.25, "rate": 1.0, "epochs": 100, "training_images": "features computed once"}
    (first / "evaluation-cifar10.json").write_text(json.dumps({"linear": probe}))
    return [first, second, third]


def test_all_runs_are_on_the_page(runs):
    path = write_comparison(runs)
    assert path == runs[0].parent / "comparison" / "index.html"
    text = path.read_text()
    agreement = f"{np.corrcoef(snapshot(19).random_similarity)[0, 1]:.2f}"
    for cell in (
        "simclr-1 (not known to have finished)",
        "MoCo",
        "62.8",
        "71.2 (cifar10)",
        "0.300 ± 0.100",
        "0.375",
        agreement,
    ):
        assert f"<td>{cell}</td>" in text
    assert text.count("<img") == 3
    summaries = json.loads((path.parent / "summary.json").read_text())
    assert [summary["run"] for summary in summaries] == ["simclr-1", "moco-1", "barlow-1"]
    assert summaries[0]["linear"] == {"cifar10": 71.25}


def test_settings_that_differ_are_a_table(runs, tmp_path):
    texts = [
        "a: 1\nmodel: {init_args: {lr: 0.1, heads: 3}}\n",
        "a: 1\nmodel: {lr: 0.2, heads: 3}\n",
        "a: 1\nmodel: {heads: <b>}\n",
    ]
    assert "settings differ" not in write_comparison(runs).read_text()  # of runs whose settings are unknown
    for run, text in zip(runs, texts, strict=True):
        (run / "config.yaml").write_text(text)
    page = write_comparison(runs).read_text()
    assert "2 of 3 settings differ." in page
    assert "<tr><td>model.lr</td><td>0.1</td><td>0.2</td><td>–</td></tr>" in page
    assert "<tr><td>model.heads</td><td>3</td><td>3</td><td>&lt;b&gt;</td></tr>" in page
    assert 'alt="kNN accuracy at the end: simclr-1 62.75 %, moco-1 62.75 %."' in page


def test_figures_show_only_runs_that_have_the_numbers(runs, tmp_path):
    few = write_comparison([runs[2], run_directory(tmp_path / "late", metrics="step,loss\n1,3.5\n")], tmp_path / "few")
    assert {path.name for path in few.parent.iterdir()} == {"index.html", "summary.json", "loss.png"}


def test_one_temperature_per_anchor_is_one_line(tmp_path):
    def drawn(per_anchor):
        folder = run_directory(tmp_path / str(per_anchor), after=snapshot(19, per_anchor=per_anchor))
        return len(compare._temperatures([read_run(folder)]).axes[0].lines)

    assert (drawn(True), drawn(False)) == (1, 2)


def test_names_are_escaped(runs, tmp_path):
    odd = run_directory(tmp_path / "_<b>odd $x^$", metrics=METRICS)
    text = write_comparison([*runs, odd]).read_text()
    assert "&lt;b&gt;odd" in text and "<b>odd" not in text


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="got 1"):
        write_comparison(runs[:1])
    with pytest.raises(ValueError, match="must be different runs"):
        write_comparison([runs[0], runs[1], runs[0]])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_comparison([runs[0], tmp_path / "nowhere"])
    assert not (tmp_path / "comparison").exists()


@pytest.mark.slow
def test_from_the_command_line(runs, tmp_path, capsys):
    assert main(["report", *map(str, runs), "--output", str(tmp_path / "all")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "all" / "index.html")
    assert main(["report", str(runs[0])]) == 0
    assert (runs[0] / "report" / "index.html").exists()
    assert main(["report", str(runs[0]), "--output", "x"]) == 2
    assert "--output" in capsys.readouterr().err
