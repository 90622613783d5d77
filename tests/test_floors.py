"""The file of oldest releases says what pyproject.toml says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = {"ruff", "mypy"}  # not needed to run anything


def test_constraints_are_the_lower_bounds():
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    bounds = dict(re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", r).groups() for r in wanted if ">=" in r)
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert set(pinned) == set(bounds) - LINT
    for name, version in pinned.items():
        assert (version + ".").startswith(bounds[name] + ".") or version == bounds[name], name
