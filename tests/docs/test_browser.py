"""In a browser the site opens from a disk, without an error or a request elsewhere, on a phone too."""

import pytest

from tests.helpers.browser import CHROMIUM, Browser

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]

WIDE = """[...document.querySelectorAll("article *")].filter(e => e.getBoundingClientRect().right > 376)
    .slice(0, 3).map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.mark.parametrize(("width", "dark"), [(375, False), (1280, True)])
def test_every_page_opens_from_a_disk(site, browser, width, dark):
    with browser.tab(width, dark=dark):
        for page in sorted(site.rglob("*.html")):
            if page.name == "404.html":  # for servers: its links are absolute
                continue
            browser.open(page.as_uri())
            assert browser.evaluate("document.querySelector('h1').innerText"), page
            across = browser.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
            assert across[0] <= across[1] == width, (page, browser.evaluate(WIDE))
            scheme = browser.evaluate("document.body.dataset.mdColorScheme")
            assert scheme == ("slate" if dark else "default"), page
            browser.evaluate("new Promise(done => setTimeout(done, 50))")
            for kind in ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed"):
                assert browser.events[kind] == [], page
            assert [m for m in browser.events["Runtime.consoleAPICalled"] if m["type"] in ("error", "warning")] == []
            requests = [event["request"]["url"] for event in browser.events["Network.requestWillBeSent"]]
            assert all(url.startswith((site.as_uri(), "data:", "about:")) for url in requests), (page, requests)
            assert page.as_uri() in requests


def test_the_search_finds_from_a_disk(site, browser):
    with browser.tab(1280):
        browser.open((site / "index.html").as_uri())
        browser.evaluate(
            """(() => {
                const field = document.querySelector("input[name=query]")
                field.focus()
                field.value = "recommended"
                field.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true, key: "d" }))
                field.dispatchEvent(new Event("input", { bubbles: true }))
            })()"""
        )
        links = "[...document.querySelectorAll('.md-search-result__link')].map(a => a.getAttribute('href'))"
        browser.until(lambda: browser.evaluate(links))
        assert any("losses.html" in link for link in browser.evaluate(links))
