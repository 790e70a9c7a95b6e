"""A report and a comparison in a browser: no wider than a phone, dark where the reader's system is."""

import pytest

from amcl_fast.report import write_comparison, write_report
from amcl_fast.runs.directory import write_facts
from tests.helpers.browser import CHROMIUM, Browser
from tests.helpers.shots import neighbours, run_directory, snapshot

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]

OVER = "[...document.querySelectorAll('td, th')].filter(c => c.scrollWidth > c.clientWidth).map(c => c.innerText)"
STYLE = "getComputedStyle(document.querySelector('{}')).{}"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    long = "a-run-with-a-name-that-knows-no-end-" * 3
    folders = [
        run_directory(base / name, before=snapshot(), after=snapshot(19), found=neighbours()) for name in (long, "b")
    ]
    for number, folder in enumerate(folders):
        settings = f"data: {{root: /a/path/{'of-great-length/' * 9}, batch_size: {number}}}\n"
        (folder / "config.yaml").write_text(f"{settings}setting: {{{'whose_name_is_long.' * 5}: {number}}}\n")
        write_facts(folder, {"versions": {"torch": "2.11"}, "steps_per_epoch": 5})
    return [write_report(folders[0]), write_comparison(folders)]


def test_pages_fit_a_phone_and_turn_dark(pages, tmp_path):
    with Browser(tmp_path) as browser:
        for width, dark in ((360, False), (360, True), (1280, False)):
            with browser.tab(width, dark=dark):
                for page in pages:
                    browser.open(page.as_uri())
                    across = browser.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
                    assert across == [width, width], page
                    ground = browser.evaluate(STYLE.format("body", "backgroundColor"))
                    assert ground == ("rgb(26, 26, 26)" if dark else "rgb(255, 255, 255)")
                    inverted = browser.evaluate(STYLE.format("img.chart", "filter")) != "none"
                    assert inverted == dark
                    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
                    assert browser.evaluate(OVER) == [], page
                    beside = browser.evaluate("new Set([...document.images].map(i => i.x)).size")
                    assert beside == (2 if width > 1000 else 1)
                browser.open(pages[0].as_uri())
                assert browser.evaluate(STYLE.format("img.photo", "filter")) == "none"
