"""Tables that stand on two pages: a page names the other page and the heading, a script copies what is there.

    <!-- table: crossover.md, BYOL, CIFAR-10 / A part of 960 s against all of it -->
    | ... |
    <!-- end of table -->

The table is the first below the last of these headings, each looked for after the one before.
"""

from __future__ import annotations

import re
from pathlib import Path

_PLACE = re.compile(r"(<!-- table: (?P<page>\S+), (?P<heading>.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def table_under(heading: str, text: str) -> str:
    """The first table after a heading, its lines each with their end.

    Args:
        heading: Its words; after those of headings above it, with ` / ` between.
        text: The page.

    Raises:
        SystemExit: If there is no such heading, or no table before the next one.
    """
    path = ".*?".join(rf"^#+ {re.escape(words)}$" for words in heading.split(" / "))
    section = re.search(rf"{path}(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
    rows = re.search(r"(?:^\|.*\n)+", section[1] if section else "", re.MULTILINE)
    if rows is None:
        raise SystemExit(f"There is no table under the heading {heading!r}: was the heading changed?")
    return rows[0]


def with_copies(text: str, folder: Path) -> str:
    """A page, each table between two comments as it is on the page that the first names.

    Args:
        text: The page, as Markdown.
        folder: Where the other pages are.
    """
    return _PLACE.sub(
        lambda place: place[1] + table_under(place["heading"], (folder / place["page"]).read_text()) + place[4], text
    )
