"""The figures and tables of docs/studies.md, from the study.json of studies that lie beside the results of machines."""

import json
import re
from pathlib import Path
from typing import Any

from amcl_fast.progress import duration
from amcl_fast.study.epochs_page import cells, draw

from .pages import check_markers, put
from .tables import table

BEGIN, END = "<!-- studies: begin -->", "<!-- studies: end -->"


def write(folder: Path, page: Path, pictures: Path) -> list[Path]:
    """Put every study of `folder` between the markers of the page, and draw its figure; returns what was written.

    Args:
        folder: of JSON, among which those of studies are study.json under a name of their own, epochs-*.json.
        page: gets a table and a link to the figure of each.
        pictures: folder of the figures.

    Raises:
        ValueError: the page lacks the markers.
    """
    check_markers(page, BEGIN, END)
    parts, written = [], [page]
    for path in sorted(folder.glob("epochs-*.json")):
        found = json.loads(path.read_text())
        picture = pictures / f"{path.stem}.png"
        pictures.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(draw(found))
        written.append(picture)
        parts.append(study(found, picture.relative_to(page.parent).as_posix(), path.name))
    put(page, BEGIN, END, parts)
    return written


def study(found: dict[str, Any], picture: str, name: str) -> str:
    """Markdown of a study; `picture` is a link to its figure, `name` its file among the results."""
    head, *lines = cells(found)
    rows = found["trainings"]
    images, about, machine = rows[0]["measured_images"], found["environment"], found["machine"]
    took = [row["seconds"] for row in rows]
    title = f"{found['framework']} on {found['dataset']}"
    parts = [
        f"### {title}",
        f"```\n{_broken(found['command'])}\n```",
        f"![kNN accuracy over epochs, a panel a backbone, a line a variant: {title}]({picture})",
        table(head, lines),
        f"kNN of {images['queries']:,} held-out images, by {images['bank']:,} training images; raw pixels "
        f"{rows[0]['pixels']:.1f} %. A training took {duration(min(took))} to {duration(max(took))}, all of them "
        f"{duration(sum(took))}, on {machine['name']}, {machine['cores']} cores; {about['date']}, commit "
        f"{about['commit'][:7]}{' with changes' if about['dirty'] else ''}, torch {about['torch']} "
        f"([JSON](../benchmarks/results/{name})).",
    ]
    return "\n\n".join(parts)


def _broken(command: str) -> str:
    """A command, which a page has room for in lines."""
    first, *options = re.split(r" (?=--)", command)
    lines = [first]
    for option in options:
        if len(lines[-1]) + len(option) > 100:
            lines[-1] += " \\"
            lines.append(f"  {option}")
        else:
            lines[-1] += f" {option}"
    return "\n".join(lines)
