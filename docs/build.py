"""Build `site/`: README and guide as the first page, then every public name from its docstring (`make docs`)."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pdoc
import pdoc.render

import rela_lightning

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "site"
RESULTS = Path("benchmarks") / "results" / "demo"
PAGES = ("README.md", "docs/index.md")
SUBMODULES = ("callback", "data", "errors", "methods", "priors", "probe", "report", "schedules", "targets", "transport")


def main() -> None:
    """Write the site."""
    rela_lightning.__doc__ = "\n\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    for package in (rela_lightning, *(importlib.import_module(f"rela_lightning.{name}") for name in SUBMODULES)):
        for name in getattr(package, "__all__", ()):  # pdoc sees lazy names only once they are there
            setattr(package, name, getattr(package, name))
    pdoc.render.configure(docformat="google", footer_text=f"rela_lightning {rela_lightning.__version__}")
    pdoc.pdoc("rela_lightning", *(f"rela_lightning.{name}" for name in SUBMODULES), output_directory=SITE)
    shutil.copytree(ROOT / RESULTS, SITE / RESULTS, dirs_exist_ok=True)  # the picture in README.md


if __name__ == "__main__":
    main()
