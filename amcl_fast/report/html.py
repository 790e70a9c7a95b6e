"""The parts that every page is made of. A page needs nothing beside it and trusts nothing that it shows.

It is dark where the reader's system is, and as narrow as a phone. Charts are drawn once, for a white page: inverted by
nine tenths, and with their hues turned back, white is the dark page's own grey and blue stays blue.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_CSS = """
:root { color-scheme: light dark; --text: #222; --soft: #555; --line: #e0e0e0; --page: #fff; --box: #f6f6f6;
--best: #0072b2 }
@media (prefers-color-scheme: dark) {
:root { --text: #e4e4e4; --soft: #adadad; --line: #3c3c3c; --page: #1a1a1a; --box: #262626; --best: #56b4e9 }
.chart { filter: invert(.9) hue-rotate(180deg) } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 66rem;
margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100% } td, th { padding: .3rem .8rem .3rem 0; text-align: left;
vertical-align: top; border-bottom: 1px solid var(--line); overflow-wrap: anywhere } th { font-weight: 600 }
td:first-child { color: var(--soft); width: 12rem }
.number { text-align: right; font-variant-numeric: tabular-nums; width: 7rem }
.grid td, .grid th { overflow-wrap: break-word; min-width: 4rem; max-width: 20rem } .grid td:first-child { width: auto }
.results { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0 }
.results div { flex: 1 1 8rem; border: 1px solid var(--line); border-radius: 6px; padding: .7rem 1rem }
.results b { display: block; font-size: 1.7rem; font-weight: 600 } .results .best b { color: var(--best) }
.figures { columns: 2 26rem; column-gap: 2.4rem; margin: 1.6rem 0 }
figure { margin: 0 0 1.8rem; max-width: 32rem; break-inside: avoid } img { width: 100%; height: auto; display: block }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem }
.sub { color: var(--soft); margin-top: .2rem }
pre { background: var(--box); padding: 1rem; overflow-x: auto }
@media (max-width: 40rem) { body { margin: 1rem auto } td:first-child { width: 8rem } .number { width: auto } }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A page of `parts` (HTML, empty ones left out); `title` is HTML as well."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style></head>\n<body>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n"
    )


def figure(png: bytes, caption: str, seen: str = "", *, photographs: bool = False) -> str:
    """A picture with its caption, inside the page.

    Args:
        png: the picture.
        caption: what it is; text.
        seen: what there is to see, with its numbers, for who cannot; text, by default the caption.
        photographs: they stay as they are on a dark page.
    """
    data = base64.b64encode(png).decode()
    kind = "photo" if photographs else "chart"
    return (
        f'<figure><img class={kind} src="data:image/png;base64,{data}" alt="{escape(seen or caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def figures(parts: Iterable[str]) -> str:
    """Figures beside and below each other; nothing for none."""
    joined = "\n".join(parts)
    return f"<div class=figures>{joined}</div>" if joined else ""


def table(rows: dict[str, Any]) -> str:
    """Names and values, a row each, as text."""
    cells = (f"<tr><td>{escape(str(label))}</td><td>{escape(str(value))}</td></tr>" for label, value in rows.items())
    return f"<table>{''.join(cells)}</table>"


def grid(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Rows of cells that are HTML, below a head of text; what is too wide for the page is scrolled by itself."""
    top = "".join(f"<th>{escape(label)}</th>" for label in head)
    lines = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class=wide><table class=grid><tr>{top}</tr>{body}</table></div>"
