"""Write quickstart.ipynb from quickstart.py, so that the notebook's text is reviewed and tested as code.

    python examples/make_notebook.py

A cell starts with `# %%`, one of text with `# %% [markdown]`; cells have no output.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def cell(kind: str, lines: list[str], number: int) -> dict[str, Any]:
    """A cell of format 4.5 from the lines between two marks."""
    text = "\n".join(lines).strip("\n")
    if kind == "markdown":
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    common = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
    return common if kind == "markdown" else {**common, "execution_count": None, "outputs": []}


def notebook(script: str) -> dict[str, Any]:
    """The notebook of a script in percent format.

    Args:
        script: Text of the script; what stands before its first mark is left out.
    """
    marks = list(re.finditer(r"^# %%( \[markdown\])?$", script, flags=re.MULTILINE))
    ends = [mark.start() for mark in marks[1:]] + [len(script)]
    cells = [
        cell("markdown" if mark[1] else "code", script[mark.end() : end].splitlines(), number)
        for number, (mark, end) in enumerate(zip(marks, ends, strict=True))
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", type=Path, default=HERE / "quickstart.py")
    parser.add_argument("--out", type=Path, default=HERE / "quickstart.ipynb")
    args = parser.parse_args(argv)
    content = json.dumps(notebook(args.script.read_text(encoding="utf-8")), indent=1, ensure_ascii=False)
    args.out.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
