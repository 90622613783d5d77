"""Calling a benchmark as a shell would, and reading what it wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest


def call(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
    module.main()


def refused(module: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: object) -> str:
    with pytest.raises(SystemExit):
        call(module, monkeypatch, *arguments)
    return capsys.readouterr().err


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
