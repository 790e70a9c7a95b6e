import json

import pytest

from benchmarks.show import tables
from tests.helpers.benchmarks.tiny import document


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A README with markers and a folder with one machine's results."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "machine.json").write_text(json.dumps(document()))
    (tmp_path / "README.md").write_text(f"# before\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n")
    (tmp_path / "scale.md").write_text(f"# rehearsal\n\n{tables.SCALE_BEGIN}\nold\n{tables.SCALE_END}\n")
    return tmp_path


def write(house):
    return tables.write(house / "results", house / "README.md", house / "docs" / "benchmarks", house / "scale.md")


def test_readme_is_regenerated_the_same(house):
    pytest.importorskip("matplotlib")
    first = write(house)
    contents = [path.read_bytes() for path in first]
    assert write(house) == first
    assert [path.read_bytes() for path in first] == contents
    text = (house / "README.md").read_text()
    assert text.startswith("# before\n\n") and text.endswith(f"{tables.END}\n\nafter\n") and "old" not in text
    assert [path.name for path in first[1:-1]] == [
        f"some-processor-1-2-cores-{name}.png" for name in ("speed-up", "time", "memory", "pipeline", "steps")
    ]
    page = (house / "scale.md").read_text()
    assert first[-1] == house / "scale.md" and "first scan" not in text
    assert page.startswith("# rehearsal\n\n") and "old" not in page
    assert "**A rehearsal at the size of ImageNet.** (2026-01-02, commit 0123456" in page
    assert "| first scan | ≤ 60 s: **missed** | 61.2 s | – |" in page
    assert "](docs/benchmarks/some-processor-1-2-cores-speed-up.png)" in text
    assert "commit 0123456, torch 2.11.0, 2 threads, load 0.05 at the start, 1% of the processors'" in text


def test_operators_table():
    head, _, line = tables.operators(document()["sections"]["operators"]["rows"]).splitlines()
    assert head == (
        "| case | dtype, backend | ms (quartiles) | × dense | × compiled | × lightly | of the products | extra memory "
        "| target |"
    )
    assert line == (
        "| SimCLR | float32, native | 10 (9 – 11) | 5.0 | wrong by 3e-01 | not installed | 0.50 × "
        "| 2 MiB, 1/32 of dense | ≥ 4 × dense: met (5.00 ×); ≤ 0.4 × products: missed (0.50 ×); "
        "memory ≤ 1/20 of dense: met (1/32); ≥ 3 × compiled: missed (not measured) |"
    )


def test_pipeline_table():
    table, storages = tables.pipeline(document()["sections"]["pipeline"]["rows"]).split("\n\n")
    *_, alone, blurred = table.splitlines()
    assert alone == "| 32 px | a | 100 | – | 1.00 | – | – | – | – |"
    assert blurred == "| 32 px | ab | 100 | 100 | 1.50 | 6.00 | 4.0 | +0.50 | – |"
    assert storages.splitlines()[2:] == [
        "| files, 224 px, abcde | 116 | 100 | 8.00 | 1.00 |",
        "| shards, 256 px, 224 px, abcde | 31 | 100 | 5.00 | 1.60 |",
    ]


def test_training_and_scaling_tables():
    assert tables.training(document()["sections"]["training"]["rows"]).splitlines()[-1] == (
        "| `demo` | 400 | 100 | 1.0% | 9.0% | 90.0% |"
    )
    assert tables.scaling(document()["sections"]["scaling"]["rows"]).splitlines()[-1] == (
        "| N | 256 – 512 | 2.00 | 2.00 | 2.00 | 1.00 | 1.00 |"
    )


def test_losses_table():
    assert tables.losses(document()["sections"]["losses"]["rows"]).splitlines()[-1] == (
        "| InfoNCE | 57 | 0.30 | 2.00 | – | 0.50 | – | 2.50 | – |"
    )


def test_line_for_the_terminal():
    (row,) = document()["sections"]["operators"]["rows"]
    assert tables.operator_line(row).startswith("10 (9 – 11) ms; 5.0 dense; wrong by 3e-01 compiled; not installed")


def test_what_is_missing_is_told(house):
    (house / "README.md").write_text("no markers")
    with pytest.raises(ValueError, match=r"README.md must hold the lines <!-- benchmarks: begin --> and"):
        write(house)
    (house / "README.md").write_text(f"{tables.BEGIN}\n{tables.END}\n")
    (house / "scale.md").write_text("no markers")
    with pytest.raises(ValueError, match=r"scale.md must hold the lines <!-- scale: begin --> and"):
        write(house)
    (house / "results" / "machine.json").unlink()
    with pytest.raises(ValueError, match="results must hold the JSON of a machine; amcl-fast bench writes it"):
        write(house)
