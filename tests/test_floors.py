"""The file of oldest releases says what pyproject.toml says."""

from __future__ import annotations

import ast
import re
import sys
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


NAMES = {"PIL": "pillow", "yaml": "PyYAML", "sklearn": "scikit-learn", "open_clip": "open_clip_torch"}
"""Packages whose module has another name."""


def test_what_is_imported_is_declared():
    """Whoever installs the package has what it imports; `pytorch_lightning` and friends only where they are there."""
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {
        re.match(r"[\w-]+", r)[0].replace("-", "_").lower()
        for r in [
            *project["dependencies"],
            *extras["plot"],
            *extras["demo"],
            *extras["export"],
            *extras["gpu"],
            *extras["hf"],
            *extras["parquet"],
        ]
    }
    found = {}
    for file in (ROOT / "rela_lightning").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            found.update(dict.fromkeys((name.partition(".")[0] for name in names), file.name))
    foreign = {name: file for name, file in found.items() if name not in sys.stdlib_module_names | {"rela_lightning"}}
    optional = {"pytorch_lightning", "lightning_fabric", "pynvml"}
    missing = {
        name: file
        for name, file in foreign.items()
        if NAMES.get(name, name).replace("-", "_").lower() not in declared | optional
    }
    assert not missing
