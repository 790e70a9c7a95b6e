"""What the site needs beside MkDocs' plugins: pages from the top level, files of the repository, formulas, a check.

- README.md, CONTRIBUTING.md and CHANGELOG.md are pages too. Their links, written for the repository, become the site's.
- A link from a page to a file outside docs/ takes that file into the site.
- Formulas between dollar signs become MathML when the site is built, so that no script and no font is needed.
- Every public name must stand in the reference with a docstring.
"""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages that lie at the top level, where readers of a repository look for them."""
NAMES = ROOT / "tests" / "api.txt"
"""What others rely on."""

LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)
PAGE = re.compile(r"\bdocs/([\w-]+)\.md\b")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)

log = get_plugin_logger("amcl_fast")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the top level and the files that pages link to."""
    for source, target in PAGES.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    for file in list(files.documentation_pages()):
        for target in _links(file.content_string):
            path = _outside(target, file.src_uri)
            if path and files.get_file_from_path(path) is None and (ROOT / path).is_file():
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links of the repository into the site's."""
    here = posixpath.dirname(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        path = _outside(link[2], page.file.src_uri)
        return link[0] if path is None else f"{link[1]}{posixpath.relpath(path, here or '.')}{link[3]}"

    return "".join(part if i % 2 else LINK.sub(moved, part) for i, part in enumerate(FENCE.split(markdown)))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas into MathML, and pages that docstrings name into links."""

    def mathml(formula: re.Match[str]) -> str:
        return convert(html.unescape(formula[3]).strip(), display="block" if formula[2] == "[" else "inline")

    def link(named: re.Match[str]) -> str:
        if files.get_file_from_path(f"{named[1]}.md") is None:
            log.warning(f"a docstring in {page.file.src_uri} names {named[0]}, which is no page")
        return f'<a href="../{named[1]}.html">{named[1]}</a>'

    content = FORMULA.sub(mathml, content)
    return PAGE.sub(link, content) if page.file.src_uri.startswith("api/") else content


def on_post_build(config: MkDocsConfig) -> None:
    """Warns, which is an error of a strict build, of every public name that the reference does not explain."""
    pages = "".join(path.read_text() for path in Path(config.site_dir, "api").glob("*.html"))
    shown = set(re.findall(r'id="([\w.]+)"', pages))
    for name, documented in public_names():
        if not documented:
            log.warning(f"{name} has no docstring")
        if name not in shown:
            log.warning(f"{name} is public and in no page of docs/api")


def public_names() -> list[tuple[str, bool]]:
    """Every public name, members of classes too, and whether it has a docstring; one of two modules stands in one."""
    package: Any = griffe.load("amcl_fast", search_paths=[ROOT], resolve_aliases=True)
    section = NAMES.read_text().split("# Names\n")[1].split("\n\n")[0]
    lines = [line for line in section.splitlines() if not re.match(r"[\w.]+ is ", line)]
    names = [re.split(r"[^\w.]", line, maxsplit=1)[0] for line in lines]
    return [(name, package[name.removeprefix("amcl_fast.")].has_docstring) for name in names]


def _links(markdown: str) -> list[str]:
    return [link[2] for part in FENCE.split(markdown)[::2] for link in LINK.finditer(part) if ":" not in link[2]]


def _outside(target: str, page: str) -> str | None:
    """The place in the site of what `page` calls `target`, if the repository has it elsewhere; else None."""
    if ":" in target:
        return None
    if page in PAGES.values():
        path = posixpath.normpath(target)
        return PAGES.get(path, path.removeprefix("docs/"))
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    if not path.startswith("../"):
        return None
    path = path.removeprefix("../")
    return PAGES.get(path, path)
