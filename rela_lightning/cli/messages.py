"""What a parser has against its arguments: its innermost cause, with the nearest names, in place of its own report."""

from __future__ import annotations

import difflib
import pydoc
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from rela_lightning.config import classes, defined_in, options_of
from rela_lightning.errors import ConfigError

_OTHER = "a module of pytorch_lightning is trained by that package's own LightningCLI, with ReLACallback as here"

_UNNAMED = ("LightningDataModule", "LightningModule")
"""What the parser takes a class for that is not named yet."""


class Readable:
    """Mixin for parsers: one short message and exit code 2 for a mistake of the user."""

    exit_on_error: bool
    _option_string_actions: dict[str, Any]
    _subcommands_action: Any
    forms: Mapping[str, str] = {}
    """Options that cannot be left out, as they are typed, in order: `{"run": "RUN"}`."""

    @property
    def actions(self) -> dict[str, Any]:
        """The options that the parser knows, with what argparse keeps of each."""
        return self._option_string_actions

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and leave; parsers inside parsers raise instead."""
        if not self.exit_on_error:
            super().error(message, ex)  # type: ignore[misc]
        below = self._subcommands_action.choices.values() if self._subcommands_action is not None else ()
        options = [option for parser in (self, *below) for option in parser.actions]
        sys.stderr.write(f"rela: {explain(message, ex, options, self.forms)}\n")
        sys.exit(2)


class ReadableParser(Readable, ArgumentParser):
    """jsonargparse's parser with such messages."""


def explain(
    message: str,
    error: BaseException | None = None,
    options: Iterable[str] = (),
    forms: Mapping[str, str] = MappingProxyType({}),
) -> ConfigError:
    """The error a user can act on, from what the parser said.

    Args:
        message: The parser's message.
        error: What made the parser say so; its innermost cause counts.
        options: Options that do exist, such as `--trainer.max_epochs`.
        forms: Options that cannot be left out, as they are typed.
    """
    said = list(dict.fromkeys(_causes(error))) or [message]
    cause = said[-1]
    if found := re.search(r"invalid choice: '([^']+)' \(choose from (.+)\)", message):
        return _unknown(f"There is no command {found[1]}.", found[1], re.findall(r"[\w-]+", found[2]))
    if found := re.search(r"unrecognized arguments: (.+)|does not accept option '([^']+)'", message):
        words = [word.partition("=")[0] for word in (found[1] or f"--{found[2]}").split()]
        word = next((word for word in words if word.startswith("-")), words[0])
        known = [option for option in options if not option.endswith(("+", ".help"))]
        return _unknown(f"There is no option {word}.", word, known, do="see --help; options are written --name value")
    keys = [match[1] for text in said if (match := re.match(r'Parser key "([^"]+)"', text)) and match[1] != "config"]
    option = "--" + ".".join(keys)
    path = next((match[1] for text in reversed(said) if (match := re.search(r"class_path\W+([\w.]+)'", text))), "")
    owner = path.rpartition(".")[2]
    if found := re.fullmatch(r"Option '([^']+)' is not accepted", cause):
        others = [name for name, each in classes(option).items() if found[1] in options_of(each)]
        hint = f"`{found[1]}` is an option of {', '.join(others)}" if others else None
        if owner in _UNNAMED:
            return ConfigError(
                f"`{option}.{found[1]}` is an option of a class, and none is named before it.",
                exists=others or classes(option),
                do=f"name the class first: {option} NAME {option}.{found[1]} VALUE",
            )
        return _unknown(f"{owner} has no option `{found[1]}`.", found[1], options_of(pydoc.locate(path)), do=hint)
    if found := re.fullmatch(r"the following arguments are required: (.+)", cause):
        missing = found[1].split(", ")
        short = [name.partition(".")[2] for name in missing]
        if not keys and forms.keys() >= set(short):
            command = found[1].partition(".")[0]
            return ConfigError(
                "An option is missing.",
                expected=", ".join(forms[name] for name in short),
                do=f"rela {command} {' '.join(forms.values())} [options], or in a file by --config FILE",
            )
        names = [f"{option}.{name}" for name in missing] if keys else [f"--{name}" for name in short]
        return ConfigError(
            f"{owner} needs {found[1]}." if owner else "An option is missing.",
            expected=", ".join(names),
            exists=classes(names[0]) or None,
            do="give it on the command line, or in a file by --config FILE",
        )
    value = next(iter(re.findall(r"(?:path string: |Import path |Got value: )(.+?)(?: does|$)", cause)), path)
    if known := list(classes(option)):
        if own := re.fullmatch(r"module '([\w.]+)' has no attribute '\w+'", cause):
            known = defined_in(own[1]) or known
        reason = None if cause.startswith("Expected") else cause
        do = _OTHER if "LightningModule" in cause else None
        return _unknown(f"There is no class {value} for `{option}`.", value.rpartition(".")[2], known, reason, do)
    if not keys:
        return ConfigError(cause.strip()[:1500])
    kinds = re.search(r"Subtypes: \[(.+)\]", said[-2:][0]) or re.search(r"Expected an? (.+)\. Got", cause)
    plain = re.sub(r"<class '(\w+)'>|typing\.|Literal\[(.+?)\]", r"\1\2", kinds[1] if kinds else cause)
    return ConfigError(f"`{option}` cannot have this value.", expected=plain.replace("NoneType", "null"), found=value)


def _causes(error: BaseException | None) -> Iterator[str]:
    """What an error says, and what those behind it say, outside in."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


def _unknown(problem: str, name: str, known: list[str], found: str | None = None, do: str | None = None) -> ConfigError:
    """The error for an unknown name: the nearest ones, and all of them where they are not many."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    wanted = f"perhaps {' or '.join(near)}" if near else None
    return ConfigError(
        problem, expected=wanted, found=found, exists=None if len(known) > 40 else dict.fromkeys(known), do=do
    )
