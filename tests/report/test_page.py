"""amcl_fast.report.page: one page that needs nothing beside it and trusts nothing it shows."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from amcl_fast.report import page as page_module
from amcl_fast.report import write_report
from amcl_fast.report.figures import draw_figures
from amcl_fast.report.words import CAPTIONS
from amcl_fast.runs.directory import write_facts, write_skipped
from tests.helpers.shots import METRICS, neighbours, run_directory, snapshot


class Page(HTMLParser):
    """Tags (with attributes) and the text of the cells of a page; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.text.append(data.strip())


@pytest.fixture
def folder(tmp_path):
    folder = run_directory(tmp_path / "demo-1", before=snapshot(), after=snapshot(19))
    (folder / "config.yaml").write_text(
        "data: {root: /data/<b>images</b>, size: 32, evaluation: /data/labelled}\n"
        "model:\n"
        "  class_path: amcl_fast.methods.SimCLR\n"
        "  init_args:\n"
        "    criterion: {class_path: amcl_fast.SimCLRLoss, init_args: {temperature: 0.2, top_k: null}}\n"
    )
    write_facts(
        folder,
        {
            "finished": True,
            "seconds": 12.5,
            "versions": {"torch": "2.11<script>"},
            "machine": {"device": "cpu"},
        },
    )
    return folder


@pytest.fixture
def no_figures(monkeypatch):
    """For tests of the words: drawing takes most of the time."""
    monkeypatch.setattr(page_module, "draw_figures", lambda run: {})


@pytest.mark.usefixtures("no_figures")
def test_results_and_settings_are_there(folder):
    path = write_report(folder)
    assert path == folder / "report" / "index.html"
    page = Page(path.read_text())
    for text in (
        "11.5 %",
        "17.2 %",
        "62.8 %",
        "1,000 (median)",
        "20.0% of the time",
        "SimCLRLoss(temperature 0.2)",
        "/data/labelled",
    ):
        assert text in page.text
    assert "Nothing: every file is an image that is used." in page.text


def test_the_page_needs_nothing_beside_it(folder):
    text = write_report(folder).read_text()
    page = Page(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 9
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert not {"link", "script", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r'(src|href)="(?!data:)', text)


@pytest.mark.usefixtures("no_figures")
def test_everything_that_others_wrote_is_escaped(folder):
    (folder / "skipped_files.txt").write_text("/data/<img src=x>.jpg\tnot a <JPEG> & not a PNG\n")
    text = write_report(folder).read_text()
    for raw in ("<b>images", "<script>", "<img src=x>", "<JPEG>"):
        assert raw not in text
    page = Page(text)
    assert "/data/<b>images</b>" in page.text
    assert "/data/<img src=x>.jpg" in page.text and "not a <JPEG> & not a PNG" in page.text
    assert "Files and folders that were not used: 1." in page.text


@pytest.mark.usefixtures("no_figures")
def test_many_skipped_files_are_counted_and_cut(folder):
    (folder / "skipped_files.txt").write_text("".join(f"/data/{i}.jpg\tempty\n" for i in range(130)))
    page = Page(write_report(folder).read_text())
    assert "Files and folders that were not used: 130." in page.text
    assert "and 30 more, in skipped_files.txt" in page.text
    assert "/data/99.jpg" in page.text and "/data/100.jpg" not in page.text
    path = write_skipped(folder, [(f"/data/{i}.jpg", "empty file") for i in range(3000)])
    assert len(path.read_text().splitlines()) == 101
    assert "Files and folders that were not used: 3,000." in Page(write_report(folder).read_text()).text


@pytest.mark.usefixtures("no_figures")
def test_summary(folder):
    write_report(folder)
    summary = json.loads((folder / "report" / "summary.json").read_text())
    assert summary["run"] == "demo-1" and summary["finished"] is True
    assert summary["knn"] == {"pixels": 11.5, "untrained": 17.25, "trained": 62.75, "best": 62.75}
    assert (summary["loss"], summary["images_per_second"]) == (4.75, 1000)
    assert summary["wait_share"] == pytest.approx(0.2)
    assert summary["temperature"]["positive_mean"] == 0.3
    assert summary["skipped_files"] == 0 and summary["seconds"] == 12.5
    assert summary["linear"] == {}


@pytest.mark.usefixtures("no_figures")
def test_perplexity_and_agreement_are_numbers(folder):
    def written(**more):
        run_directory(folder, before=snapshot(), after=snapshot(19, **more))
        text = Page(write_report(folder).read_text()).text
        return text, json.loads((folder / "report" / "summary.json").read_text())

    text, summary = written()
    assert "perplexity" not in text and summary["perplexity"] is None and "τ of positives" in text
    expected = np.corrcoef(snapshot(19).random_similarity)[0, 1]
    assert summary["agreement"] == pytest.approx(expected, rel=1e-6)
    perplexity = np.array([[0.25] * 16, [0.75] * 16], np.float32)
    text, summary = written(perplexity=perplexity, per_anchor=True)
    assert summary["perplexity"] == 0.5
    assert {"perplexity", "0.250", "0.750", "τ of anchors"} <= set(text) and "τ of positives" not in text
    assert written(heads=1)[1]["agreement"] is None


@pytest.mark.usefixtures("no_figures")
def test_linear_probes_that_were_measured_are_shown(folder):
    probe = {"top1": 71.25, "rate": 0.3, "epochs": 100, "training_images": "features computed once"}
    (folder / "evaluation-cifar10.json").write_text(json.dumps({"linear": probe}))
    assert "71.25 % at rate 0.3, 100 epochs, features computed once" in Page(write_report(folder).read_text()).text


def test_figures_lie_beside_the_page(folder):
    write_report(folder)
    names = {path.name for path in (folder / "report").iterdir()}
    assert names == {
        "index.html",
        "summary.json",
        "knn.png",
        "embedding.png",
        "loss.png",
        "throughput.png",
        "temperature.png",
        "heads.png",
        "histograms.png",
        "agreement.png",
        "pairs.png",
    }


def test_a_run_that_goes_on_has_a_report_that_grows(tmp_path):
    folder = run_directory(tmp_path / "r", metrics="step,loss\n4,6.5\n")
    text = write_report(folder).read_text()
    assert "not known to have finished" in text and text.count("<img") == 1
    assert json.loads((folder / "report" / "summary.json").read_text())["knn"]["trained"] is None
    run_directory(folder, before=snapshot(), after=snapshot(19))
    assert write_report(folder).read_text().count("<img") == 9


def test_every_figure_says_what_is_seen_with_its_numbers(folder, monkeypatch):
    """In a run that has all of them; its axis is in epochs."""
    header, *rows = METRICS.splitlines()
    more = "lr,gradient_norm,loss_contrast,probe/accuracy"
    metrics = "\n".join(
        [f"{header},{more}", *(f"{row},{0.1 / (n + 1):.3f},{n + 2},3.5,5{n}.5" for n, row in enumerate(rows))]
    )
    metrics += "\n"
    made = {"pictures": np.zeros((2, 3, 8, 8, 3), np.uint8), "picture_names": np.array(["seen", "rebuilt"])}
    places = {"map": np.zeros((12, 2), np.float32), "map_name": "t-SNE"}
    places["perplexity"] = np.full((2, 16), 0.25, np.float32)
    run_directory(folder, before=snapshot(), after=snapshot(19, **made, **places), metrics=metrics, found=neighbours())
    write_facts(folder, {"finished": True, "steps": 19, "steps_per_epoch": 5, "epochs": 4})
    drawn = {}
    monkeypatch.setattr(page_module, "draw_figures", lambda run: drawn.setdefault("all", draw_figures(run)))
    text = write_report(folder).read_text()
    page = Page(text)
    seen = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    names = list(drawn["all"])
    assert set(names) == set(CAPTIONS) and len(seen) == len(names)
    assert all(re.search(r"\d", words) for words in seen)
    told = dict(zip(names, seen, strict=True))
    assert told["loss.png"] == "Training loss: from 6.5 at epoch 1 to 4.75 at epoch 3, between 4.75 and 6.5."
    assert "kNN accuracy: from 41.5 % at epoch 2 to 62.8 % at epoch 3.8" in told["knn.png"]
    assert "Probe, accuracy: from 50.5 %" in told["knn.png"]
    assert told["classes.png"].endswith("Worst: class 0 67 %, class 1 33 %, class 2 0 %.")
    assert "4 of 8 are of the same class. By class: class 0: 2 of 4; class 1: 2 of 4." in told["nearest.png"]
    assert "a perplexity of 0.25 in the median, 0.25 to 0.25 in nine of ten of its" in told["anchors.png"]
    assert "by t-SNE of 12 held-out images" in told["neighbourhoods.png"]
    assert "3.8 of 4 epochs, 19 optimiser steps" in text
    kinds = [attributes["class"] for tag, attributes in page.tags if tag == "img"]
    assert {name for name, kind in zip(names, kinds, strict=True) if kind == "photo"} == {
        "nearest.png",
        "pairs.png",
        "made.png",
    }


@pytest.mark.slow
def test_the_same_run_gives_the_same_page(folder):
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_what_is_no_run_directory_gets_no_report(tmp_path):
    with pytest.raises(FileNotFoundError, match="run"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_figures")
def test_how_many_images_knn_was_measured_on_is_told(folder):
    assert "held-out images, by" not in Page(write_report(folder).read_text()).text  # of an earlier version
    facts = json.loads((folder / "run.json").read_text())
    write_facts(folder, {**facts, "measured_images": {"bank": 50_000, "queries": 10_000}})
    assert "Of 10,000 held-out images, by 50,000 training images." in Page(write_report(folder).read_text()).text
    assert json.loads((folder / "report" / "summary.json").read_text())["measured_images"]["bank"] == 50_000


@pytest.mark.usefixtures("no_figures")
def test_each_figure_is_told_with_the_images_that_it_is_of(folder):
    facts = json.loads((folder / "run.json").read_text())
    before = [{"epoch": 3, "bank": 900, "queries": 90}, {"epoch": 5, "bank": 50, "queries": 10}]
    facts |= {"measured_images": {"bank": 50, "queries": 10}, "measured_before": before}
    write_facts(folder, facts)
    text = " ".join(Page(write_report(folder).read_text()).text)
    assert "Of 10 held-out images, by 50 training images. " in text
    assert "Before training and up to epoch 3: of 90 held-out images, by 900 training images." in text
    assert "epoch 5" not in text  # the same
    write_facts(folder, facts | {"measured_before": [{"epoch": 0, "bank": 900, "queries": 90}]})
    assert "Before training: of 90 held-out images" in write_report(folder).read_text()


@pytest.mark.usefixtures("no_figures")
def test_what_is_not_measured_any_more_is_told_beside_the_figures(folder):
    facts = json.loads((folder / "run.json").read_text())
    write_facts(folder, {**facts, "unmeasurable": "kNN is off: knn.bank is 0", "measured_epoch": 2})
    text = Page(write_report(folder).read_text()).text
    assert "trained encoder" in text
    assert "Not measured any more: kNN is off: knn.bank is 0. The figure of the trained encoder is of epoch 2." in text
