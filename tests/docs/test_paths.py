"""Pages name files, folders and modules that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
FILE = re.compile(r"(?<![\w./$-])((?:[\w-]+/)+[\w.-]+\.(?:py|md|json|yaml|yml|toml|c|cpp|hpp|inc|sh|npz|txt))\b")
FOLDER = re.compile(r"`((?:amcl_fast|benchmarks|csrc|docs|examples|kernels|tests)/(?:[\w-]+/)*)`")
LINK = re.compile(r"\]\(([^)#\s:]+)[#)]")
MODULE = re.compile(r"\bpython -m ((?:amcl_fast|benchmarks|tests)(?:\.\w+)+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page):
    text = page.read_text().replace("\n", " ")
    links = LINK.findall(text)
    for path in links:
        assert (page.parent / path).exists(), f"{page.name} links to {path}"
    for path in set(FILE.findall(text)) - {link.lstrip("./") for link in links}:
        places = (ROOT / path, ROOT / "amcl_fast" / path)  # of what lies within the package pages leave its name out
        assert any(place.exists() for place in places), f"{page.name} names {path}"
    for path in FOLDER.findall(text):
        assert (ROOT / path).is_dir(), f"{page.name} names {path}"
    for module in MODULE.findall(text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{page.name} runs {module}"


def test_every_room_has_a_place_on_the_plan():
    text = (ROOT / "docs" / "layout.md").read_text()
    top, rest = text.split("## The package")
    package, data = rest.split("## Data")
    for plan, folder in ((top, ROOT), (package, ROOT / "amcl_fast"), (data, ROOT / "amcl_fast" / "data")):
        rooms = {path.name + "/" * path.is_dir() for path in folder.iterdir() if _has_python(path)}
        cells = "".join(re.findall(r"^\| (?!in )[^|]+\|", plan, re.MULTILINE))
        named = set(re.findall(r"`([\w-]+(?:\.py|/))`", cells))
        assert rooms <= named, f"{folder}: {sorted(rooms - named)}"
        assert all((folder / name).exists() for name in named), (folder, named)


def _has_python(path: Path) -> bool:
    if path.name.startswith((".", "_")) or path.name in ("setup.py", "build", "site", "csrc"):
        return False
    return path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py")))
