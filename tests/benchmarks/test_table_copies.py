"""benchmarks/table_copies.py: a table that stands on two pages is written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
OTHER = """# Page

## Costs

| a | b |
|---|---|
| old | 1 |

## Costs (all)

In seconds:

| a | b |
|---|---|
| new | 2 |

| another | c |

## Empty

## Last

| z |
|---|

## Second

### Costs

| of | the second |
|---|---|
"""


def test_a_table_is_copied_by_its_heading_and_the_rest_of_the_page_is_left(
    script: Callable[[str], Any], tmp_path: Path
) -> None:
    (tmp_path / "other.md").write_text(OTHER)
    page = (
        "Before.\n\n<!-- table: other.md, Costs (all) -->\n| stale |\n<!-- end of table -->\n\nBetween.\n"
        "<!-- table: other.md, Last -->\n<!-- end of table -->\nAfter.\n"
    )
    assert script("table_copies").with_copies(page, tmp_path) == (
        "Before.\n\n<!-- table: other.md, Costs (all) -->\n| a | b |\n|---|---|\n| new | 2 |\n<!-- end of table -->\n"
        "\nBetween.\n<!-- table: other.md, Last -->\n| z |\n|---|\n<!-- end of table -->\nAfter.\n"
    )


def test_a_heading_that_stands_twice_is_told_by_the_one_above(script: Callable[[str], Any]) -> None:
    assert script("table_copies").table_under("Second / Costs", OTHER) == "| of | the second |\n|---|---|\n"
    assert script("table_copies").table_under("Costs", OTHER) == "| a | b |\n|---|---|\n| old | 1 |\n"


@pytest.mark.parametrize("heading", ["Empty", "Nowhere", "Second / Last"])
def test_a_heading_without_a_table_is_no_silent_loss(script: Callable[[str], Any], heading: str) -> None:
    with pytest.raises(SystemExit, match=f"no table under the heading '{heading}'"):
        script("table_copies").table_under(heading, OTHER)


def test_the_copies_in_the_docs_are_those_of_today(script: Callable[[str], Any]) -> None:
    text = (DOCS / "convergence.md").read_text()
    assert text.count("<!-- table: ") == text.count("<!-- end of table -->") >= 3
    assert script("table_copies").with_copies(text, DOCS) == text
