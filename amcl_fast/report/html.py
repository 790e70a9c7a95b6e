"""The parts that every page is made of. A page needs nothing beside it and trusts nothing that it shows."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
table { border-collapse: collapse; width: 100% } td, th { padding: .3rem .8rem .3rem 0; text-align: left;
vertical-align: top; border-bottom: 1px solid #e6e6e6; overflow-wrap: anywhere } th { font-weight: 600 }
td:first-child { color: #555; white-space: nowrap; width: 12rem }
.number { text-align: right; font-variant-numeric: tabular-nums; width: 7rem }
.results { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0 }
.results div { flex: 1 1 9rem; border: 1px solid #ddd; border-radius: 6px; padding: .7rem 1rem }
.results b { display: block; font-size: 1.7rem; font-weight: 600 } .results .best b { color: #0072b2 }
figure { margin: 1.2rem 0 } img { max-width: 100%; width: 46rem } figcaption { color: #555; font-size: .9rem }
.sub { color: #666; margin-top: .2rem } pre { background: #f6f6f6; padding: 1rem; overflow-x: auto }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A page of `parts` (HTML, empty ones left out); `title` is HTML as well."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_CSS}</style></head>\n<body>\n'
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def figure(png: bytes, caption: str) -> str:
    """A picture with its caption, inside the page."""
    caption = escape(caption)
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )


def table(rows: dict[str, Any]) -> str:
    """Names and values, a row each, as text."""
    cells = (f"<tr><td>{escape(str(label))}</td><td>{escape(str(value))}</td></tr>" for label, value in rows.items())
    return f"<table>{''.join(cells)}</table>"


def grid(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Rows of cells that are HTML, below a head of text."""
    top = "".join(f"<th>{escape(label)}</th>" for label in head)
    lines = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return f"<table><tr>{top}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
