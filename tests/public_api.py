"""Every public name with its parameters, as one text; `python -m tests.public_api` writes it anew after a change."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).with_suffix(".txt")
PACKAGES = ("", ".data", ".export", ".methods", ".priors", ".probe", ".targets")


def documented() -> list[str]:
    """The names on the page of the API, without `rela_lightning.`."""
    text = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    return re.findall(r"^   ([A-Za-z][\w.]*)$", text, flags=re.MULTILINE)


def exported() -> set[str]:
    """What the packages say that they export."""
    found = set()
    for package in PACKAGES:
        module = importlib.import_module(f"rela_lightning{package}")
        found |= {f"{package}.{name}".lstrip(".") for name in module.__all__ if not name.startswith("__")}
    return found


def find(name: str) -> object:
    """The object of a name."""
    path, _, last = f"rela_lightning.{name}".rpartition(".")
    return getattr(importlib.import_module(path), last)


def described() -> str:
    """A line for each public name and each public method of a class: parameters, `=` after those with a default."""
    lines = []
    for name in sorted(documented()):
        found = find(name)
        lines.append(f"{name}{_parameters(found)}")
        if inspect.isclass(found):
            own = {key: value for key, value in vars(found).items() if not key.startswith("_")}
            lines += [f"{name}.{key}{_parameters(value)}" for key, value in sorted(own.items()) if callable(value)]
    return "\n".join(lines) + "\n"


def _parameters(found: object) -> str:
    try:
        signature = inspect.signature(found)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    shown, only_named = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not only_named:
            only_named = True
            shown.append("*")
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        only_named = only_named or stars == "*"
        shown.append(stars + parameter.name + ("" if parameter.default is parameter.empty else "="))
    return f"({', '.join(shown)})"


if __name__ == "__main__":
    KEPT.write_text(described(), encoding="utf-8")
