import re
from pathlib import Path

import pytest

from tests import public_api

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_names_and_parameters_change_only_on_purpose():
    """After a change on purpose: `python -m tests.public_api`, and a line in CHANGELOG.md."""
    assert public_api.described() == public_api.KEPT.read_text(encoding="utf-8")


def test_every_exported_name_has_a_page_and_a_docstring():
    named = public_api.documented()
    homes = {public_api.find(name) for name in named if not isinstance(public_api.find(name), tuple)}
    data = {"export.FORMATS", "export.Format"}
    missing = {name for name in public_api.exported() - data if public_api.find(name) not in homes}
    assert not missing
    assert not [name for name in named if not public_api.find(name).__doc__]


def test_every_public_name_but_the_errors_has_an_example():
    """Those that are code run: see test_doctests.py."""
    named = [name for name in public_api.documented() if not name.startswith("errors.")]
    assert not [name for name in named if "Example:" not in (public_api.find(name).__doc__ or "")]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_every_page_is_in_the_tables_of_contents():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {
        line.strip() for block in re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL) for line in block.split("\n")
    }
    assert {page.stem for page in PAGES if page.parent.name == "docs"} - {"index"} <= listed
