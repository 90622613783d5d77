"""The page of wrong uses and their messages: `python -m tests.wrong_uses.table docs/errors.md`."""

from __future__ import annotations

import contextlib
import html
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from rela_lightning.errors import ReLAError
from tests.wrong_uses import GROUPS, Place

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
Messages = Mapping[str, ReLAError]
_HEAD = """\
# Mistakes, and what is said of them

Every error that this library raises on purpose is a `rela_lightning.errors.ReLAError`; it says what was expected, what
was found, what is available and a hint, as far as that helps. Bad input is refused before any work is lost. A command
prints the same and ends with code 2. Below, {count} mistakes and their messages.

This page is written by `python -m tests.wrong_uses.table docs/errors.md`, and a test fails when it is out of date.
"""


def try_all(folder: Path) -> dict[str, ReLAError]:
    """What each wrong use raises, by its words; in a folder that is the current one meanwhile.

    Raises:
        AssertionError: If one of them is accepted.
    """
    place, found = Place(folder), {}
    with _inside(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for use in (use for group in GROUPS.values() for use in group):
            try:
                use.call(place)
            except ReLAError as error:
                found[use.words] = error
            else:
                raise AssertionError(f"accepted: {use.words}")
    return found


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def render(found: Messages, folder: Path) -> str:
    """The page, as Markdown; the folder is left out of the messages."""
    parts = [_HEAD.format(count=len(found))]
    for name, uses in GROUPS.items():
        parts.append(f"\n## {name}\n\n| What is wrong | Error | Message |\n|---|---|---|\n")
        for use in uses:
            error = found[use.words]
            public = next(kind.__name__ for kind in type(error).__mro__ if not kind.__name__.startswith("_"))
            kind = "exit code 2" if public == "CommandFailed" else f"`{public}`"
            parts.append(f"| {use.words} | {kind} | {_cell(str(error), folder)} |\n")
    return "".join(parts)


def _cell(message: str, folder: Path) -> str:
    shown = message.replace(f"{folder}/", "").replace(str(folder), ".")
    shown = re.sub(r"\b[0-9a-f]{16,}\b", lambda found: f"{found.group()[:6]}...", shown)
    lines = [html.escape(" ".join(line.split()), quote=False).replace("|", "\\|") for line in shown.splitlines()]
    return "<br>".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        page = render(try_all(folder), folder)
    Path(sys.argv[1]).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
