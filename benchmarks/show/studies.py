"""The figures and tables of docs/study-results.md, from the study.json of studies beside the results of machines."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amcl_fast.progress import duration
from amcl_fast.runs.files import write_file
from amcl_fast.runs.reading import naming, read_json
from amcl_fast.study import augmentations_page, comparison_page, epochs_page, similarities_page

from .pages import check_markers, put
from .tables import table

BEGIN, END = "<!-- studies: begin -->", "<!-- studies: end -->"


def write(folder: Path, page: Path, pictures: Path) -> list[Path]:
    """Put every study of `folder` between the markers of the page, and draw its figures; returns what was written.

    Args:
        folder: of JSON, among which those of studies are study.json under a name of their own, such as epochs-*.json.
        page: gets tables and links to the figures of each.
        pictures: folder of the figures.

    Raises:
        ValueError: the page lacks the markers.
    """
    check_markers(page, BEGIN, END)
    parts, written = [], [page]
    for kind, shown in KINDS.items():
        for path in sorted(folder.glob(f"{kind}-*.json")):
            with naming(path):
                text, drawn = shown(read_json(path), path.stem)
            for name, content in drawn.items():
                picture = pictures / f"{name}.png"
                pictures.mkdir(parents=True, exist_ok=True)
                write_file(picture, content)
                written.append(picture)
            parts.append(text.replace("](pictures/", f"]({pictures.relative_to(page.parent).as_posix()}/"))
    put(page, BEGIN, END, parts)
    return written


def _epochs(found: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    head, *lines = epochs_page.cells(found)
    rows = found["trainings"]
    images = rows[0]["measured_images"]
    title = f"{found['framework']} on {found['dataset']}"
    parts = [
        *_begin(title, found),
        f"![kNN accuracy over epochs, a panel a backbone, a line a variant: {title}](pictures/{stem}.png)",
        table(head, lines),
    ]
    drawn = {stem: epochs_page.draw(found)}
    if found.get("measures", {}).get("differences"):
        drawn[f"{stem}-differences"] = epochs_page.draw_differences(found)["differences"]
        parts.append(_picture(title, f"{stem}-differences"))
        head, *lines = epochs_page.measures(found)
        parts.append(table(head, lines))
    pixels = "" if rows[0]["pixels"] is None else f"; raw pixels {rows[0]['pixels']:.1f} %"
    measured = f"kNN of {images['queries']:,} held-out images, by {images['bank']:,} training images{pixels}. "
    return "\n\n".join([*parts, measured + _made_with(found, stem)]), drawn


def _comparison(found: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    title = f"{found['title']}: {found['recipe']}"
    reference = found["cells"][0]["cell"]
    drawn = comparison_page.draw(found)
    (head, *lines), (above, *differences) = comparison_page.cells(found), comparison_page.differences(found)
    parts = [*_begin(title, found), table(["cell", *head[1:]], lines)]
    if "differences" in drawn:
        parts += [
            _picture(title, f"{stem}-differences"),
            table(["cell", *above[1:]], [row for row in differences if row[1] == reference]),
        ]
    kept = {f"{stem}-differences": png for name, png in drawn.items() if name == "differences"}
    return "\n\n".join([*parts, f"{' '.join(comparison_page.notes(found))} {_made_with(found, stem)}"]), kept


def _similar(found: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    of: Any = {"augmentations": augmentations_page, "similarities": similarities_page}[found["study"]]
    drawn = {name.removesuffix(".png"): png for name, png in of.draw(found).items()}
    pictures = [f"![{of.CAPTIONS[f'{name}.png']}](pictures/{stem}-{name}.png)" for name in drawn]
    lines = of.cells(found)
    rows = table(list(lines[0]), [list(line.values()) for line in lines])
    parts = [*_begin(of.title(found), found), *pictures, rows, _made_with(found, stem)]
    return "\n\n".join(parts), {f"{stem}-{name}": png for name, png in drawn.items()}


KINDS: dict[str, Callable[[dict[str, Any], str], tuple[str, dict[str, bytes]]]] = {
    "epochs": _epochs,
    **dict.fromkeys(("temperatures", "heads", "top-k"), _comparison),
    **dict.fromkeys(("augmentations", "similarities"), _similar),
}
"""By the beginning of a file's name what shows it: from study.json, and the file's name without suffix, to Markdown,
in which figures are in a folder pictures/, and the figures as PNG by their names."""


def _begin(title: str, found: dict[str, Any]) -> list[str]:
    return [f"## {title}", f"```\n{_broken(found['command'])}\n```"]


def _picture(title: str, name: str) -> str:
    return (
        "![differences of accuracy, a panel a measure, a dot a seed, the diamond their mean, the line two standard "
        f"errors to either side: {title}](pictures/{name}.png)"
    )


def _made_with(found: dict[str, Any], stem: str) -> str:
    """How long it took, on what, and where the results are."""
    about, machine = found["environment"], found["machine"]
    took = [row["seconds"] for row in found["trainings"]]
    return (
        f"A training took {duration(min(took))} to {duration(max(took))}, all of them "
        f"{duration(sum(took))}, on {machine['name']}, {machine['cores']} cores; {about['date']}, commit "
        f"{about['commit'][:7]}{' with changes' if about['dirty'] else ''}, torch {about['torch']} "
        f"([JSON](../benchmarks/results/{stem}.json))."
    )


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
