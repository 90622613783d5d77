"""The command `rela`, a file for each of its commands; a command's signature and docstring are its options."""

from __future__ import annotations

from rela_lightning.cli.command import COMMANDS, TRAINER, build_parser, main, with_names

__all__ = ["COMMANDS", "TRAINER", "build_parser", "main", "with_names"]
