"""Help on a screen: the options of a command, or of a class that an option names, a line or two each."""

from __future__ import annotations

import inspect
import pydoc
import re
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any

from rela_lightning.cli.messages import ReadableParser
from rela_lightning.cli.short_help import PAGE, rows
from rela_lightning.config import classes, register_names

_MORE = {
    "--config FILE": "YAML with any of these options; later words change it",
    "--print_config": "all options as they would be used, as YAML; nothing is run",
    "--help all": "every option with its whole text",
}
_ALL = "`{} all` has their whole text."
_TEXT = 150
"""Letters of an option's text, two lines."""
_BARE = {"str": "{}", "list[str]": "{} ..."}
"""Kinds of options that may go without their names, and how they are typed then."""


def forms(function: Callable[..., Any]) -> dict[str, str]:
    """The options that a command cannot do without, as they are typed: the first strings bare, others by name."""
    found: dict[str, str] = {}
    bare = True
    for name, option in inspect.signature(function).parameters.items():
        if option.default is option.empty and option.kind is not option.VAR_KEYWORD:
            kind = str(option.annotation)
            bare = bare and kind in _BARE
            found[name] = (_BARE[kind] if bare else f"--{name} {{}}").format(name.upper())
    return found


def command_page(command: str, function: Callable[..., Any]) -> str:
    """The help of a command whose options are those of its function."""
    needed = forms(function)
    parser = ReadableParser(exit_on_error=False)
    parser.add_function_arguments(function, as_group=False, sub_configs=True)
    usage = " ".join(["usage: rela", command, *needed.values(), "[options]"])
    options = {needed.get(name.removeprefix("--"), name): text for name, text in _texts(parser).items()}
    if "--data" in options or "data" in needed:
        options["--data.help NAME"] = "options of a data module"
    return "\n\n".join([usage, fill(_intro(function), PAGE), rows("Options", options), rows("More", _MORE)]) + "\n"


def class_page(words: Sequence[str]) -> str | None:
    """What `--model.help BYOL` shows; None where the words ask for none, for all of it, or for a class not known."""
    for at, word in enumerate(words):
        if found := re.fullmatch(r"--([\w.]+)\.help(?:=(.+))?", word):
            option, after = found[1], [found[2], *words[at + 1 :]] if found[2] else list(words[at + 1 :])
            return None if after[1:2] == ["all"] else _class_page(option, after[0] if after else None)
    return None


def _class_page(option: str, name: str | None) -> str | None:
    register_names()
    known = classes(option)
    if name is None:
        lines = {each: _intro(owner) for each, owner in known.items()}
        return rows(f"--{option} NAME", lines) + "\n" if known else None
    owner = known.get(name) or pydoc.locate(name)
    if not callable(owner):
        return None
    parser = ReadableParser(exit_on_error=False)
    add: Any = parser.add_class_arguments if inspect.isclass(owner) else parser.add_function_arguments
    add(owner, option, fail_untyped=False)
    end = _ALL.format(f"--{option}.help {name}")
    return "\n\n".join([fill(f"{name}: {_intro(owner)}", PAGE), rows("Options", _texts(parser)), end]) + "\n"


def _texts(parser: ReadableParser) -> dict[str, str]:
    """Options of a parser, with what they do, their choices and their defaults."""
    found = {}
    for action in dict.fromkeys(parser.actions.values()):
        name = action.option_strings[0]
        if isinstance(action.help, str) and action.default != SUPPRESS and not name.endswith(".help"):
            found[name] = _text(action)
    return found


def _text(action: Any) -> str:
    choices = action.metavar.strip("{}").replace(",", ", ") if str(action.metavar).startswith("{") else ""
    facts = [] if choices in ("", "true, false") else [choices]
    if action.default is not None:
        facts.append(f"default {_value(action.default)}")
    end = f" ({'; '.join(facts)})" if facts else ""
    return _short(" ".join(action.help.split()), _TEXT - len(end)) + end


def _value(value: Any) -> str:
    """A default as it is typed; of a class its name and its options."""
    if isinstance(value, dict) and "class_path" in value:
        options = (f"{name}={each}" for name, each in (value.get("init_args") or {}).items())
        return f"{value['class_path'].rpartition('.')[2]}, {', '.join(options)}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _short(text: str, letters: int) -> str:
    """The first sentences of a text, or the first words of its first sentence."""
    kept = ""
    for sentence in re.split(r"(?<=[^.][.;]) ", text):
        if len(kept) + len(sentence) > letters:
            break
        kept = f"{kept} {sentence}".strip()
    if kept:
        return re.sub(r"(?<!\.)[.;]$", "", kept)
    return text[:letters].rpartition(" ")[0] + " ..."


def _intro(owner: Any) -> str:
    """The first paragraph of a docstring."""
    return " ".join((inspect.getdoc(owner) or "").partition("\n\n")[0].split())
