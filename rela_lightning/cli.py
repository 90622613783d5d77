"""The console command `rela`: one function a subcommand, its signature and docstring are its options."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from rela_lightning._version import __version__
from rela_lightning.errors import ReLAError

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("rela_lightning.demo:demo", "plain BYOL against BYOL with ReLA on real images, in minutes"),
}
"""Name of a subcommand: (`module:function` behind it, one line of help)."""


def _function(name: str) -> Callable[..., Any]:
    module, _, function = COMMANDS[name][0].partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def build_parser(command: str | None = None) -> ArgumentParser:
    """The parser of `rela`.

    Args:
        command: Subcommand whose options are wanted. The others stay empty, so that only its module is
            imported and `rela --help` is quick.
    """
    parser = ArgumentParser(
        prog="rela", description="Cheaper self-supervised pre-training (ReLA).", version=__version__
    )
    commands = parser.add_subcommands(required=True, dest="command")
    for name, (_, line) in COMMANDS.items():
        options = ArgumentParser(description=line)
        if name == command:
            options.add_function_arguments(_function(name), as_group=False)
        commands.add_subcommand(name, options, help=line)
        options.prog = f"rela {name}"
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `rela`.

    Args:
        argv: Arguments after the program's name; None for those of the process.

    Returns:
        Exit code: 0, 2 for a mistake that has a message, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in arguments if word in COMMANDS), None)
    parsed = build_parser(command).parse_args(arguments)
    options = dict(vars(parsed[parsed.command]))
    try:
        _function(parsed.command)(**options)
    except ReLAError as error:
        sys.stderr.write(f"rela: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("rela: stopped\n")
        return 130
    return 0
