"""The site builds without a warning, fetches nothing, and shows every public name."""

import importlib.util
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture
def hooks():
    """The site's own part of the build, docs/theme/hooks.py."""
    for package in ("griffe", "latex2mathml", "mkdocs"):
        pytest.importorskip(package, reason="the extra 'docs' is not installed")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "theme" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Assets(HTMLParser):
    """What a page fetches; `a` is for who clicks it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found = []
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        if tag != "a":
            fetched = ("src", "srcset", "href", "poster", "data")
            self.found += [value for name, value in attrs if name in fetched and value]


def test_pages_fetch_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        outside = [asset for asset in Assets(page).found if re.match(r"(https?:)?//", asset)]
        assert outside == [], page
        for asset in Assets(page).found if page.name != "404.html" else ():
            if not asset.startswith(("data:", "#")):
                assert (page.parent / asset.split("#")[0]).exists(), (page, asset)
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text()), style


def test_formulas_are_mathml(site):
    page = (site / "losses.html").read_text()
    assert page.count("<math") > 40
    assert "$" not in re.sub(r"<(pre|code).*?</\1>|<script.*?</script>", "", page, flags=re.DOTALL)
    assert "arithmatex" not in page


def test_links_of_docstrings_lead_to_their_pages(site):
    page = (site / "api" / "losses.html").read_text()
    assert 'href="../training.html">training</a>' in page
    assert not re.search(r"docs/\w+\.md", page)


def test_what_is_wrong_fails(build, tmp_path):
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "api.txt", tmp_path / "tests")
    for name in ("docs", "amcl_fast", "benchmarks/results"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "docs" / "alone.md").write_text("# Alone\n\n[no page](nowhere.md), [no heading](data.md#nowhere)\n")
    with (tmp_path / "docs" / "data.md").open("a") as page:
        page.write("\n[no file](../kernels/nowhere.py)\n")
    reference = tmp_path / "docs" / "api" / "models.md"
    reference.write_text(reference.read_text().replace("::: amcl_fast.models.KeyQueue\n", ""))
    module = tmp_path / "amcl_fast" / "models" / "heads.py"
    text = module.read_text().replace("docs/training.md", "docs/nowhere.md")
    module.write_text(text.replace('"""Predictions (n, C, d) of projections (n, C, d)."""', ""))
    reference = tmp_path / "docs" / "api" / "callbacks.md"
    reference.write_text(reference.read_text().replace("[write, flush_to_disk]", "[write]"))

    result = build(tmp_path, tmp_path / "site")
    assert result.returncode == 1
    for warning in (
        'not included in the "nav" configuration:\n  - alone.md',
        "'alone.md' contains a link 'nowhere.md'",
        "'alone.md' contains a link 'data.md#nowhere'",
        "'data.md' contains a link 'kernels/nowhere.py'",
        "amcl_fast.models.KeyQueue is public and in no page of docs/api",
        "amcl_fast.models.MultiHeadPredictor.forward has no docstring",
        "amcl_fast.callbacks.MetricsFile.flush_to_disk is public and in no page of docs/api",
        "a docstring in api/models.md names docs/nowhere.md, which is no page",
    ):
        assert warning in result.stderr, result.stderr


def test_a_public_name_without_place_or_docstring_is_a_warning(hooks, tmp_path, caplog, monkeypatch):
    (tmp_path / "api").mkdir()
    page = tmp_path / "api" / "all.html"
    found = hooks.public_names()
    names = [name for name, _ in found]
    assert {"amcl_fast.SimCLRLoss", "amcl_fast.evaluate.knn_accuracy", "amcl_fast.ops.contrast"} <= set(names)
    assert {"amcl_fast.SimCLRLoss.adaptive", "amcl_fast.report.Run.num_skipped"} <= set(names)
    assert "amcl_fast.losses.SimCLRLoss" not in names  # it is amcl_fast.SimCLRLoss
    config = type("Config", (), {"site_dir": tmp_path})

    page.write_text("".join(f'<h2 id="{name}">' for name in names))
    hooks.on_post_build(config)
    assert not caplog.records

    missing = ("amcl_fast.models.KeyQueue", "amcl_fast.models.KeyQueue.enqueue")
    page.write_text("".join(f'<h2 id="{name}">' for name in names if name not in missing))
    monkeypatch.setattr(hooks, "public_names", lambda: [*found, ("amcl_fast.bare", False)])
    hooks.on_post_build(config)
    assert [record.getMessage().split(": ")[-1] for record in caplog.records] == [
        *(f"{name} is public and in no page of docs/api" for name in missing),
        "amcl_fast.bare has no docstring",
        "amcl_fast.bare is public and in no page of docs/api",
    ]


@pytest.mark.parametrize(
    ("page", "link", "place"),
    [
        ("index.md", "docs/data.md", "data.md"),
        ("index.md", "CONTRIBUTING.md", "contributing.md"),
        ("index.md", "docs/demo/knn.png", "demo/knn.png"),
        ("data.md", "../README.md", "index.md"),
        ("imagenet.md", "../benchmarks/results/x.json", "benchmarks/results/x.json"),
        ("data.md", "runs.md", None),
        ("data.md", "https://example.org/x", None),
    ],
)
def test_links_of_the_repository_become_the_sites(hooks, page, link, place):
    assert hooks._outside(link, page) == place
