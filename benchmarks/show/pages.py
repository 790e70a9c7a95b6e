"""The generated parts of README.md and docs/, from the JSON of every machine; nothing in them is written by hand."""

import os
import re
from pathlib import Path
from typing import Any

from amcl_fast.runs.files import write_file
from amcl_fast.runs.reading import naming

from .. import results
from . import plots
from .tables import TABLES, headline, peers

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
SCALE_BEGIN, SCALE_END = "<!-- scale: begin -->", "<!-- scale: end -->"
# README's cases, by the device of the newest results that have any of them.
HEADLINE = {
    "cpu": (
        "SimCLR, N = 2048",
        "NT-Xent, N = 1024",
        "MoCo, N = 256, queue 65,536",
        "Barlow Twins, d = 2048, N = 512",
    ),
    "cuda": (
        "SimCLR, N = 4096",
        "MoCo, N = 256, queue 65,536",
        "Barlow Twins, d = 8192, N = 1024",
    ),
}
_CALLED = {"cpu": "CPU", "cuda": "GPU"}
Document = dict[str, Any]


def write(folder: Path, readme: Path, page: Path, pictures: Path, rehearsal: Path) -> list[Path]:
    """Put what the results in `folder` say between the markers of the pages, and draw the plots.

    Args:
        folder: of the JSON.
        readme: gets one table of a few cases.
        page: gets all tables and plots, but for those of the section `scale`.
        pictures: folder of the plots.
        rehearsal: the page that gets the tables of `scale`, if there are any.

    Returns:
        The files that were written.

    Raises:
        ValueError: there are no results, or a page lacks the markers.
        ImportError: no matplotlib.
    """
    documents = results.load_all(folder)
    if not documents:
        raise ValueError(f"{folder} must hold the JSON of a machine; amcl-fast bench writes it")
    rehearsals = [document for document in documents if "scale" in document["sections"]]
    pages = [(readme, BEGIN, END), (page, BEGIN, END), (rehearsal, SCALE_BEGIN, SCALE_END)]
    for path, begin, end in pages if rehearsals else pages[:2]:
        check_markers(path, begin, end)
    with naming(folder):
        drawn = [plots.draw(document, pictures) for document in documents]
    put(readme, BEGIN, END, _headline(documents))
    links = [[Path(os.path.relpath(path, page.parent)).as_posix() for path in paths] for paths in drawn]
    machines = [machine(document, of) for document, of in zip(documents, links, strict=True)]
    put(page, BEGIN, END, [f"### Peers\n\n{peers()}", *machines])
    written = [readme, page, *(path for paths in drawn for path in paths)]
    if rehearsals:
        parts = ["\n\n".join([_heading(document), *_section(document, "scale")]) for document in rehearsals]
        put(rehearsal, SCALE_BEGIN, SCALE_END, parts)
        written.append(rehearsal)
    return written


def check_markers(page: Path, begin: str, end: str) -> None:
    """Raise ValueError unless a page has a place for what is drawn."""
    text = page.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page} must hold the lines {begin} and {end} once")


def put(page: Path, begin: str, end: str, parts: list[str]) -> None:
    """Put parts between the markers of a page, in place of what is there."""
    before, rest = page.read_text().split(begin)
    write_file(page, f"{before}{begin}\n\n" + "\n\n".join(parts) + f"\n\n{end}{rest.split(end)[1]}")


def _headline(documents: list[Document]) -> list[str]:
    """A table of the cases of `HEADLINE`, and when and where each device's were measured; nothing if none was."""
    rows, told = [], []
    for device, names in HEADLINE.items():
        found = [(document, _cases(document)) for document in documents if document["machine"]["device"] == device]
        found = [(document, of) for document, of in found if set(of) & set(names)]
        if not found:
            continue
        document, of = max(found, key=lambda pair: pair[0]["sections"]["operators"]["environment"]["date"])
        rows += [(_CALLED[device], of[name]) for name in names if name in of]
        about, machine = document["sections"]["operators"]["environment"], document["machine"]
        cores = f", {machine['cores']} cores" if device == "cpu" else ""
        told.append(f"{_CALLED[device]}: {machine['name']}{cores}, {about['date'][:10]}, commit {_commit(about)}.")
    return [headline(rows), "\n".join(told)] if rows else []


def _cases(document: Document) -> dict[str, dict[str, Any]]:
    return {row["case"]: row for row in document["sections"].get("operators", {"rows": []})["rows"]}


def machine(document: Document, pictures: list[str]) -> str:
    """Markdown of one machine's document, with links to its plots."""
    lines = [_heading(document)]
    for section in TABLES:
        if section != "scale":
            lines += _section(document, section)
    lines += [f"![{_alt(path)}]({path})" for path in pictures]
    return "\n\n".join(lines)


def _heading(document: Document) -> str:
    about = document["machine"]
    return f"### {about['name']}, {about['cores']} cores, {about['memory_gib']:.0f} GiB"


def _section(document: Document, section: str) -> list[str]:
    """Title and table of a section, nothing if it was not measured."""
    if section not in document["sections"]:
        return []
    title, table = TABLES[section]
    content = document["sections"][section]
    return [f"**{title}** {conditions(content['environment'])}", table(content["rows"])]


def conditions(about: dict[str, Any]) -> str:
    """When, of which commit and with what a section was measured."""
    parts = [
        about["date"][:10],
        f"commit {_commit(about)}",
        f"torch {about['torch']}",
        f"{about['threads']} threads",
        f"load {about['load']:.2f} at the start",
    ]
    if about.get("elsewhere") is not None:
        parts.append(f"{about['elsewhere']:.0%} of the processors' time spent elsewhere")
    return f"({', '.join(parts)})"


def _commit(about: dict[str, Any]) -> str:
    return about["commit"][:7] + (" with uncommitted changes" if about["dirty"] else "")


def _alt(path: str) -> str:
    return re.sub(r"[-_]", " ", Path(path).stem)
