"""docs/study-results.md is drawn from the JSON of studies."""

import json
from pathlib import Path

import pytest

from amcl_fast.study.comparison import summary
from amcl_fast.study.epochs import Epochs
from amcl_fast.study.epochs import summary as epochs_summary
from amcl_fast.study.results import MEASURES
from benchmarks import results
from benchmarks.show import studies
from tests.helpers.studies import compared
from tests.helpers.studies import results as study

ROOT = Path(__file__).parents[3]


@pytest.fixture
def house(tmp_path):
    """A page with markers, and a folder with a study beside what is none."""
    folder = tmp_path / "results"
    folder.mkdir()
    command = (
        "amcl-fast study epochs --framework can --dataset builtin --backbones small large --variants baseline amcl"
    )
    found = study(command=f"{command} --seeds 0 1 --data pictures/mine --trainer.max_epochs 10")
    found["trainings"][0]["seconds"] = 180.0
    (folder / "epochs-can.json").write_text(json.dumps(found))
    (folder / "machine.json").write_text("{}")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "studies.md").write_text(f"# before\n\n{studies.BEGIN}\nold\n{studies.END}\nafter\n")
    return tmp_path


def write(house):
    return studies.write(house / "results", house / "docs" / "studies.md", house / "docs" / "studies")


def test_a_page_has_each_study_and_its_figure(house):
    page, picture = write(house)
    text = page.read_text()
    assert picture == house / "docs" / "studies" / "epochs-can.png" and picture.read_bytes().startswith(b"\x89PNG")
    assert text.startswith("# before\n") and text.endswith(f"{studies.END}\nafter\n") and "old" not in text
    assert "## can on builtin\n" in text and "](studies/epochs-can.png)" in text
    assert "| small | amcl | 10 | 35.0, 41.0 | 38.0 ± 3.0 | +5.0, +7.0 | +6.0 ± 1.0 |\n" in text
    # Six trainings: 180 s and five of 60 s.
    assert "A training took 60 s to 3 min, all of them 8 min, on Some Processor 1, 2 cores; 2026-01-02, commit " in text
    assert "commit 0123456, torch 2.11.0 ([JSON](../benchmarks/results/epochs-can.json))" in text
    command = text.split("```")[1].strip()
    assert max(map(len, command.splitlines())) <= 104
    joined = command.replace(" \\\n  ", " ")
    assert joined == json.loads((house / "results" / "epochs-can.json").read_text())["command"]
    first = page.read_bytes()
    write(house)
    assert page.read_bytes() == first


def test_a_comparison_has_its_tables_and_the_picture_of_its_differences(tmp_path):
    rows = compared({"a": {0: 30.0, 1: 40.0}, "b": {0: 34.0, 1: 41.0}, "c": {0: 35.0, 1: 45.0}})
    found = {
        "title": "Temperatures",
        "recipe": "demo",
        "command": "amcl-fast study temperatures --recipe demo",
        "cells": [{"cell": name, "about": name} for name in "abc"],
        **{name: study()[name] for name in ("machine", "environment")},
        **summary(list("abc"), rows),
        "trainings": rows,
    }
    text, drawn = studies._comparison(found, "temperatures-demo")
    assert list(drawn) == ["temperatures-demo-differences"]
    assert "## Temperatures: demo\n" in text and "](pictures/temperatures-demo-differences.png)" in text
    assert "| b | a | 2 | +2.50 ± 1.50 |" in text and "| c | b |" not in text
    assert "differences are of trainings of the same seed. Of 1,000 held-out images, by 5,000 training images." in text
    assert "A training took 60 s to 60 s, all of them 6 min" in text


def test_measures_of_a_study_of_epochs_have_a_picture_of_their_differences():
    found = study()
    for row in found["trainings"]:
        last = row["knn"][-1]
        row["measures"] = {**dict.fromkeys(MEASURES, last), "batch_norms": 3}
    options = Epochs("can", "builtin", ("small", "large"), ("baseline", "amcl"), (0, 1))
    text, drawn = studies._epochs({**found, **epochs_summary(options, found["trainings"])}, "epochs-can")
    assert list(drawn) == ["epochs-can", "epochs-can-differences"]
    both = ["32.00 ± 2.00"] * 4 + [""] * 4, ["38.00 ± 3.00"] * 4 + ["+6.00 ± 1.00"] * 4
    for variant, texts in zip(("baseline", "amcl"), both, strict=True):
        assert f"| small | {variant} | {' | '.join(texts)} |" in text


def test_a_page_without_a_place_is_refused(house):
    (house / "docs" / "studies.md").write_text("no markers")
    with pytest.raises(ValueError, match=r"studies.md must hold the lines <!-- studies: begin --> and"):
        write(house)


def test_the_committed_page_is_that_of_the_committed_studies(tmp_path):
    page = tmp_path / "docs" / "study-results.md"
    page.parent.mkdir()
    page.write_text((ROOT / "docs" / "study-results.md").read_text())
    written = studies.write(Path(results.__file__).parent / "results", page, page.parent / "studies")
    assert page.read_text() == (ROOT / "docs" / "study-results.md").read_text(), "amcl-fast bench --report"
    assert {path.name for path in written[1:]} == {path.name for path in (ROOT / "docs" / "studies").glob("*.png")}
