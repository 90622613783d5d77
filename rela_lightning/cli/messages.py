"""What a parser has against its arguments: a few lines, with what exists, in place of its own report."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from rela_lightning.errors import ConfigError

_CHOICES = {
    "model": "methods",
    "method": "methods",
    "data": "data",
    "callbacks": "callbacks",
    "schedule": "schedules",
    "optimizer": "torch.optim",
    "lr_scheduler": "torch.optim.lr_scheduler",
}
"""Last part of a parser's key, and what its classes are."""
_CALLBACKS = ("ReLACallback", "OnlineLinearProbe", "KNNProbe")
_SCHEDULES = ("Switch", "Blend", "Mix", "TransportOnly", "Plateau", "AuthorsRule")
_BASES = ("ImageData", "Method", "MomentumMethod", "build_backbone", "Optimizer", "LRScheduler")
_REASONS = re.compile(
    r"[Oo]ption '(?P<option>[^']+)'|the following arguments are required: (?P<needed>.+)"
    r"|dot import path string: (?P<path>\S+)|import path format: (?P<format>\S+)"
    r"|has no attribute '(?P<attribute>[^']+)'"
    r"|No module named '(?P<module>[^']+)'|correspond to a subclass of (?P<base>\w+)"
)
"""What can be wrong with a class or an option, by the name of the group that matched."""


_ANY = "the name of a class below, or a dotted path to your own"
_WRAPPED = "\nOriginal Traceback (most recent call last):\n"  # torch's, of an error in a worker process


class Readable:
    """Mixin for parsers: one short message and exit code 2 for a mistake of the user."""

    exit_on_error: bool
    _option_string_actions: dict[str, Any]
    _subcommands_action: Any

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and leave; parsers inside parsers raise instead."""
        if not self.exit_on_error:
            super().error(message, ex)  # type: ignore[misc]
        from rela_lightning.compat import option_strings  # brings torch: not for `--help`

        below = self._subcommands_action.choices.values() if self._subcommands_action is not None else ()
        options = [option for parser in (self, *below) for option in option_strings(parser)]
        sys.stderr.write(f"rela: {explain(message, options)}\n")
        sys.exit(2)


class ReadableParser(Readable, ArgumentParser):
    """jsonargparse's parser with such messages."""


def message_of(error: Exception) -> str:
    """What an error says, without the traceback that torch wraps around those of a loader's worker processes."""
    return re.split(r"(?m)^(?:\w+\.)*\w*Error: ", str(error))[-1].rstrip() if _WRAPPED in str(error) else str(error)


def explain(message: str, options: Iterable[str] = ()) -> ConfigError:
    """The error a user can act on, from what the parser said.

    Args:
        message: The parser's message.
        options: Options that do exist, such as `--trainer.max_epochs`.
    """
    known = [option for option in options if option.startswith("--")]
    if found := re.search(r"unrecognized arguments: (.+)", message):
        return _no_option([word for word in found[1].split() if word.startswith("-")] or found[1].split(), known)
    if found := re.search(r"invalid choice: '([^']+)' \(choose from (.+)\)", message):
        return _no_command(found[1], re.findall(r"[\w-]+", found[2]))
    text = _first_tries(message)
    keys = [key for key in re.findall(r'Parser key "([^"]+)"', text) if key]
    values = re.findall(r"(?:Given|Got) value: (.+)", text)  # from the innermost outwards
    classes = re.findall(r"Problem with given class_path '([^']+)'", text)
    last = max(re.finditer(_REASONS, text), key=lambda match: match.start(), default=None)
    reason = last.lastgroup if last is not None else None
    if last is not None and reason == "option":
        name = last["option"]
        inside = re.search(r"is not accepted\. Got value: Namespace\(class_path='([^']+)'", text[last.start() :])
        owner = inside[1] if inside else classes[-1] if classes else None
        return _no_option([f"--{name}"], known) if owner is None else _no_class_option(owner, name)
    if last is not None and reason == "needed":
        if classes:
            return _missing(f"{_short(classes[-1])} needs {last['needed']}", last["needed"], classes[-1])
        names = [name.split(".", 1)[-1] for name in last["needed"].split(", ")]
        return _missing("An option is missing", ", ".join(f"--{name}" for name in names), names[0])
    if last is not None and keys:
        named = re.search(r"'class_path': '([^']+)'|class_path='([^']+)'", values[0] if values else "")
        value = last["path"] or (named and (named[1] or named[2])) or (classes[-1] if classes else values[0])
        return _no_class(keys[-1], str(value), last)
    if keys and values:
        wanted = re.findall(r"Expected an? (?!path but)([^.\n]+(?:\.\w[^.\n]*)*)", _about(keys[-1], message))
        return ConfigError(
            f"`--{'.'.join(keys).replace('.init_args.', '.')}` is out of range.",
            expected=" or ".join(dict.fromkeys(_plain(want) for want in wanted)) or None,
            found=values[0][:200],
        )
    return ConfigError(re.sub(r'^Parser key "config": ', "", message.strip())[:1500])


def _first_tries(message: str) -> str:
    """The message with the first of the types that were tried alone, at every level."""
    lines, at = message.splitlines(), 0
    while at < len(lines):
        if lines[at].strip() != "Errors:":
            at += 1
            continue
        indent, rest = _indent(lines[at]), range(at + 1, len(lines))
        end = next((n for n in rest if lines[n].strip() and _indent(lines[n]) <= indent), len(lines))
        starts = [n for n in rest if n < end and lines[n].startswith(" " * (indent + 2) + "- ")]
        second = starts[1] if len(starts) > 1 else end
        lines = [*lines[:at], *lines[at + 1 : second], *lines[end:]]
    return "\n".join(lines)


def _about(key: str, message: str) -> str:
    """The lines of the message about one option, which may be inside those about another."""
    lines = message.splitlines()
    at = next(n for n, line in enumerate(lines) if f'Parser key "{key}"' in line)
    end = next((n for n in range(at + 1, len(lines)) if _indent(lines[n]) <= _indent(lines[at])), len(lines))
    return "\n".join(lines[at:end])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _no_command(name: str, exists: list[str]) -> ConfigError:
    near = difflib.get_close_matches(name, exists, n=2)
    return ConfigError(
        f"There is no command {name}.", expected=f"perhaps {' or '.join(near)}" if near else None, exists=exists
    )


def _no_option(names: list[str], known: list[str]) -> ConfigError:
    bare = [name.partition("=")[0] for name in names]
    near = [match for name in bare for match in difflib.get_close_matches(name, known, n=3, cutoff=0.6)]
    options = {"methods": "--model", "data": "--data"}
    near += [f"{option} {name}" for of, option in options.items() for name in bare if name in _names(of)]
    return ConfigError(
        "There is no such option." if len(bare) == 1 else "There are no such options.",
        expected=f"perhaps {' or '.join(dict.fromkeys(near))}" if near else None,
        found=" ".join(bare),
        exists=None if near or len(known) > 40 else sorted(known),
        do="see --help",
    )


def _no_class_option(path: str, name: str) -> ConfigError:
    exists = options_of(path)
    near = difflib.get_close_matches(name, exists, n=3, cutoff=0.6)
    do = None
    if "rela_lightning.methods" in path:
        others = [method for method in _names("methods") if name in options_of(f"rela_lightning.methods.{method}")]
        do = f"`{name}` is an option of {', '.join(others)}: is this a config of that method?" if others else None
    return ConfigError(
        f"{_short(path)} has no option `{name}`.",
        expected=f"perhaps {' or '.join(near)}" if near else None,
        exists=exists or None,
        do=do,
    )


def _missing(problem: str, names: str, of: str) -> ConfigError:
    do = {
        "model": f"pass for example --model {', --model '.join(_names('methods')[:3])}, or --config FILE",
        "data": f"pass for example --data {_names('data')[0]}",
    }.get(of)
    if "num_classes" in names:
        do = "pass --model.num_classes N (of a method inside another, --model.method.num_classes)"
    return ConfigError(f"{problem}.", expected=names, do=do)


def _no_class(key: str, name: str, reason: re.Match[str]) -> ConfigError:
    if reason.lastgroup == "base":
        other = name.startswith("pytorch_lightning") or "pytorch_lightning" in _trees(name)
        return ConfigError(
            f"{name} is no {reason['base']}.",
            expected=f"a subclass of lightning.pytorch's {reason['base']}, or a function annotated to return one",
            found="a class of pytorch_lightning, the other package" if other else None,
            do="train it by pytorch_lightning's own LightningCLI, with ReLACallback as here" if other else None,
        )
    choices = _names(_CHOICES.get(key.rsplit(".", 1)[-1], ""))
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], choices, n=3, cutoff=0.5)
    return ConfigError(
        f"There is no class {name} for `{key}`.",
        expected=f"perhaps {' or '.join(near)}" if near else _ANY if choices else "a dotted path to a class",
        found=f"no module named {reason['module']}" if reason["module"] else None,
        exists=choices or None,
    )


def _trees(path: str) -> str:
    """Modules of the bases of a class."""
    found = class_at(path)
    return " ".join(base.__module__ for base in inspect.getmro(found)) if inspect.isclass(found) else ""


def class_at(path: str) -> Any:
    """The class or function of a dotted path; None if there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def options_of(path: str) -> list[str]:
    """Names of the options of a class or function by its dotted path; empty if they cannot be told."""
    found = class_at(path)
    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if inspect.isclass(found) else parser.add_function_arguments
    try:
        added = add(found, "of", fail_untyped=False)
    except (ValueError, TypeError):
        return []
    return sorted({name.split(".")[1] for name in added if "." in name})


def _names(of: str) -> list[str]:
    if of in ("methods", "data"):
        exported = importlib.import_module(f"rela_lightning.{of}").__all__
        return [name for name in exported if name not in _BASES and (of == "methods" or name.endswith("Data"))]
    if of.startswith("torch.optim"):
        classes = inspect.getmembers(importlib.import_module(of), inspect.isclass)
        own = (name for name, found in classes if found.__module__.startswith(of) and name not in _BASES)
        return [name for name in own if name[0].isalpha()]
    return list({"callbacks": _CALLBACKS, "schedules": _SCHEDULES}.get(of, ()))


def _short(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _plain(kind: str) -> str:
    if kind.startswith("typing.Literal["):
        return " or ".join(re.findall(r"'([^']*)'", kind))
    return {"NoneType": "null"}.get(name := re.sub(r"<class '(.+)'>", r"\1", kind), name)
