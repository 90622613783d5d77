"""A first look at arguments before they are parsed: what was given, not what it means."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]


def peek(words: Sequence[str]) -> dict[str, Any]:
    """Values by dotted option name, from config files and the command line, later ones over earlier ones.

    Levels named `init_args` are left out. Files that cannot be read are left to the parser.

    Args:
        words: Words after the command.
    """
    found: dict[str, Any] = {}
    for number, word in enumerate(words):
        if not word.startswith("-"):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals:
            following = words[number + 1] if number + 1 < len(words) else ""
            value = "" if following.startswith("--") else following
        for key, given in _flat(_read(value), "") if name in ("config", "c") else _flat(_value(value), name):
            if key == "model.class_path" and found.get(key) != given:  # options of another class go with it
                found = {other: kept for other, kept in found.items() if not other.startswith("model.")}
            found[key] = given
    return found


def class_of(given: Mapping[str, Any], option: str = "model") -> Any:
    """The class or function that an option names, also by a short name of `rela_lightning.methods`; None if unknown."""
    path = str(given.get(f"{option}.class_path", ""))
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module or "rela_lightning.methods"), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in sorted(value.items(), key=lambda item: item[0] != "class_path"):
            yield from _flat(inner, prefix if key == "init_args" else f"{prefix}.{key}".lstrip("."))
    elif prefix in ("model", "model.method", "data") and isinstance(value, str):
        yield f"{prefix}.class_path", value
    else:
        yield prefix.replace(".init_args.", ".").removesuffix("+"), value


def _value(text: str) -> Any:
    """A word of the command line: YAML, or the name of a YAML file."""
    if text.endswith((".yaml", ".yml", ".json")) and Path(text).is_file():
        return _read(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _read(file: str) -> Any:
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
