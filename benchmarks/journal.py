"""Results one line a run, so that an interrupted benchmark goes on where it stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import date, header


class Journal:
    """A file of JSON lines, each a run with what it was made on.

    Args:
        path: The file; made with the first run.
        key: Names of the values that make a run the same run.
        private: Name to write instead of a path, for the paths that may be in the command line.
    """

    def __init__(self, path: Path, key: Sequence[str], private: dict[str, Path]) -> None:
        self.path, self.key, self.private = path, tuple(key), private
        self._head = {name: value for name, value in header().items() if name not in ("seeds", "date")}

    def rows(self) -> list[dict[str, Any]]:
        """Every run so far."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def has(self, run: dict[str, Any]) -> bool:
        """Whether somebody did this run before; the file is read again, so that shards may share it."""
        return self._key(run) in {self._key(row) for row in self.rows()}

    def append(self, run: dict[str, Any]) -> None:
        """Add a run, with its date, and the commit, hardware, versions and command of the process's start."""
        head = {"date": date(), **self._head}
        head["command"] = without_paths(head["command"], self.private)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({**run, **head}) + "\n")

    def _key(self, run: dict[str, Any]) -> str:
        return json.dumps([run[name] for name in self.key], sort_keys=True)


def without_paths(command: str, private: dict[str, Path]) -> str:
    """The command line of `common.header`, with names in the place of this machine's paths.

    Args:
        command: `python <script> ...`.
        private: Path by the name that is written instead.
    """

    def shown(argument: str) -> str:
        option, equals, value = argument.rpartition("=")
        name = next((name for name, path in private.items() if value and Path(value) == path), value)
        return f"{option}{equals}{name}"

    return " ".join([*command.split(" ")[:2], *map(shown, sys.argv[1:])])
