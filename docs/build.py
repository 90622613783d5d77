"""Build `site/`: README and guide as the first page, a page for each `docs/*.md`, every public name (`make docs`)."""

from __future__ import annotations

import html
import importlib
import re
import shutil
from pathlib import Path

import pdoc
import pdoc.render
from markdown_it import MarkdownIt

import rela_lightning

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "site"
RESULTS = Path("benchmarks") / "results" / "demo"
FIRST = ("README.md", "docs/index.md")
SUBMODULES = (
    "callback", "data", "diagnostics", "errors", "export", "methods", "priors", "probe", "report", "schedules",
    "targets", "transport",
)  # fmt: skip
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.5; font-family: sans-serif }}
table {{ border-collapse: collapse }} td, th {{ border: 1px solid #ccc; padding: .3rem .6rem; text-align: left }}
pre {{ background: #f6f6f6; padding: .8rem; overflow-x: auto }} img {{ max-width: 100% }}</style>
<p><a href="../rela_lightning.html">rela_lightning</a></p>
{body}"""


def read(page: str) -> str:
    """Markdown of a page, its links to other pages pointing into the site."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(r"\]\(([\w./-]+)\.md(#[\w-]+)?\)", r"](\1.html\2)", text)


def main() -> None:
    """Write the site."""
    rela_lightning.__doc__ = "\n\n".join(map(read, FIRST))
    for package in (rela_lightning, *(importlib.import_module(f"rela_lightning.{name}") for name in SUBMODULES)):
        for name in getattr(package, "__all__", ()):  # pdoc sees lazy names only once they are there
            setattr(package, name, getattr(package, name))
    pdoc.render.configure(docformat="google", footer_text=f"rela_lightning {rela_lightning.__version__}")
    pdoc.pdoc("rela_lightning", *(f"rela_lightning.{name}" for name in SUBMODULES), output_directory=SITE)
    shutil.copytree(ROOT / RESULTS, SITE / RESULTS, dirs_exist_ok=True)  # the picture in README.md
    shutil.copytree(ROOT / "docs", SITE / "docs", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "*.md"))
    for page in sorted((ROOT / "docs").glob("*.md")):
        body = MarkdownIt().enable("table").render(read(f"docs/{page.name}"))
        title = html.escape(page.stem.replace("_", " "))
        (SITE / "docs" / f"{page.stem}.html").write_text(PAGE.format(title=title, body=body), encoding="utf-8")


if __name__ == "__main__":
    main()
