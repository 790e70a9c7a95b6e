"""The generated parts of README and docs."""

import json
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.cases import named
from benchmarks.show import pages
from tests.helpers.benchmarks.tiny import document

ROOT = Path(__file__).parents[3]


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Pages with markers and a folder with one machine's results."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    save(tmp_path, "machine", document())
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "benchmarks.md").write_text(f"# how\n\n{pages.BEGIN}\nold\n{pages.END}\n")
    (tmp_path / "README.md").write_text(f"# before\n\n{pages.BEGIN}\nold\n{pages.END}\n\nafter\n")
    (tmp_path / "scale.md").write_text(f"# rehearsal\n\n{pages.SCALE_BEGIN}\nold\n{pages.SCALE_END}\n")
    return tmp_path


def save(house, name, found):
    (house / "results" / f"{name}.json").write_text(json.dumps(found))


def write(house):
    docs = house / "docs"
    return pages.write(
        house / "results", house / "README.md", docs / "benchmarks.md", docs / "benchmarks", house / "scale.md"
    )


def test_pages_are_regenerated_the_same(house):
    pytest.importorskip("matplotlib")
    first = write(house)
    contents = [path.read_bytes() for path in first]
    assert write(house) == first
    assert [path.read_bytes() for path in first] == contents
    readme = (house / "README.md").read_text()
    assert readme.startswith("# before\n\n") and readme.endswith(f"{pages.END}\n\nafter\n") and "old" not in readme
    assert first[:2] == [house / "README.md", house / "docs" / "benchmarks.md"]
    assert [path.name for path in first[2:-1]] == [
        f"some-processor-1-2-cores-{name}.png" for name in ("speed-up", "time", "memory", "pipeline", "steps")
    ]
    text = (house / "docs" / "benchmarks.md").read_text()
    assert text.startswith("# how\n\n") and "old" not in text and "### Peers\n\n| peer | what it is |" in text
    page = (house / "scale.md").read_text()
    assert first[-1] == house / "scale.md" and "first scan" not in text
    assert page.startswith("# rehearsal\n\n") and "old" not in page
    assert "**A rehearsal at the size of ImageNet.** (2026-01-02, commit 0123456" in page
    assert "| first scan | ≤ 60 s: **missed** | 61.2 s | – |" in page
    assert "](benchmarks/some-processor-1-2-cores-speed-up.png)" in text
    assert "commit 0123456, torch 2.11.0, 2 threads, load 0.05 at the start, 1% of the processors'" in text


def measured(name, device, date, **times):
    """A machine with operators of a day; milliseconds by case."""
    found = document()
    found["machine"] |= {"name": name, "device": device}
    section = found["sections"]["operators"]
    section["environment"] = section["environment"] | {"date": f"2026-{date}T00:00:00+00:00"}
    (row,) = section["rows"]
    section["rows"] = [
        row | {"case": case, "runs": row["runs"] | {"ours": row["runs"]["ours"] | {"median_ms": ms}}}
        for case, ms in times.items()
    ]
    return found


def test_readme_has_the_newest_of_a_few_cases(house):
    pytest.importorskip("matplotlib")
    cpu, gpu = (pages.HEADLINE[device] for device in ("cpu", "cuda"))
    save(house, "a", measured("Old", "cpu", "01-01", **{cpu[0]: 1.0, cpu[1]: 2.0}))
    save(house, "b", measured("New", "cpu", "02-02", **{"another": 3.0, cpu[1]: 4.0, cpu[0]: 5.0}))
    save(house, "c", measured("Newest", "cpu", "03-03", another=6.0))
    save(house, "d", measured("GPU 1", "cuda", "01-01", **{gpu[0]: 7.0}))
    write(house)
    block = (house / "README.md").read_text().split(pages.BEGIN)[1].split(pages.END)[0]
    lines = block.strip().splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:5]] == [
        [f"| {cpu[0]}", "CPU, float32", "5"], [f"| {cpu[1]}", "CPU, float32", "4"],
        [f"| {gpu[0]}", "GPU, float32", "7"],
    ]  # fmt: skip
    assert lines[5:] == [
        "",
        "CPU: New, 2 cores, 2026-02-02, commit 0123456.",
        "GPU: GPU 1, 2026-01-01, commit 0123456.",
    ]


def test_the_headline_is_of_cases_that_there_are():
    for device, names in pages.HEADLINE.items():
        assert all(named(name).fits(device) for name in names)


def test_the_committed_pages_are_those_of_the_committed_results(tmp_path):
    pytest.importorskip("matplotlib")
    found = {}
    for name in ("README.md", "docs/benchmarks.md", "docs/imagenet.md"):
        found[name] = tmp_path / name
        found[name].parent.mkdir(exist_ok=True)
        found[name].write_text((ROOT / name).read_text())
    folder = Path(results.__file__).parent / "results"
    readme, page, rehearsal = found.values()
    written = pages.write(folder, readme, page, tmp_path / "docs" / "benchmarks", rehearsal)
    for name, path in found.items():
        assert path.read_text() == (ROOT / name).read_text(), f"{name}: amcl-fast bench --report"
    pictures = {path.name for path in written if path.suffix == ".png"}
    assert pictures == {path.name for path in (ROOT / "docs" / "benchmarks").glob("*.png")}
    block = readme.read_text().split(pages.BEGIN)[1].split(pages.END)[0]
    assert len(block.strip().splitlines()) <= 16


def test_what_is_missing_is_told(house):
    (house / "README.md").write_text("no markers")
    with pytest.raises(ValueError, match=r"README.md must hold the lines <!-- benchmarks: begin --> and"):
        write(house)
    (house / "README.md").write_text(f"{pages.BEGIN}\n{pages.END}\n")
    (house / "docs" / "benchmarks.md").write_text("no markers")
    with pytest.raises(ValueError, match=r"benchmarks.md must hold the lines <!-- benchmarks: begin --> and"):
        write(house)
    (house / "docs" / "benchmarks.md").write_text(f"{pages.BEGIN}\n{pages.END}\n")
    (house / "scale.md").write_text("no markers")
    with pytest.raises(ValueError, match=r"scale.md must hold the lines <!-- scale: begin --> and"):
        write(house)
    (house / "results" / "machine.json").unlink()
    with pytest.raises(ValueError, match="results must hold the JSON of a machine; amcl-fast bench writes it"):
        write(house)
