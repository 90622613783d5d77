"""The console command `rela`: one function a command, its signature and docstring are its options."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from rela_lightning._version import __version__
from rela_lightning.cli.messages import ReadableParser
from rela_lightning.cli.short_help import full_help, short_help, wants_short_help
from rela_lightning.cli.system import Output, System, message_of, system_error
from rela_lightning.config import missing_package, own_errors
from rela_lightning.errors import ReLAError
from rela_lightning.process_group import wait_at_exit

COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("rela_lightning.cli.fit:run", "train a module, with or without ReLA"),
    "validate": ("rela_lightning.cli.fit:run", "run a module's validation"),
    "test": ("rela_lightning.cli.fit:run", "run a module's test"),
    "predict": ("rela_lightning.cli.fit:run", "run a module's prediction"),
    "finetune": ("rela_lightning.cli.finetune:run", "train what a run has learnt further, with labels"),
    "targets": ("rela_lightning.cli.targets:targets", "embed the training images once with a prior"),
    "rank": ("rela_lightning.cli.rank:rank", "priors in order before any training, without labels"),
    "probe": ("rela_lightning.cli.probe:probe", "linear and kNN accuracy of a run, a checkpoint or a prior"),
    "similarity": ("rela_lightning.cli.similarity:similarity", "how similar what models see is, each to each"),
    "embed": ("rela_lightning.cli.embed:embed", "features of images with their file names, as npy or parquet"),
    "compare": ("rela_lightning.cli.compare:compare", "two or more runs as a table, a plot and JSON"),
    "export": (
        "rela_lightning.cli.export:export",
        "the backbone alone: weights, ONNX or a hub folder",
    ),
    "demo": ("rela_lightning.demo:demo", "plain BYOL against BYOL with ReLA on real images, in minutes"),
}
"""Name of a command: (`module:function` behind it, one line of help)."""
TRAINER = ("fit", "validate", "test", "predict", "finetune")
"""Commands whose options are LightningCLI's; their function takes the command and the words that follow."""


def _function(name: str) -> Callable[..., Any]:
    module, _, function = COMMANDS[name][0].partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def build_parser(command: str | None = None) -> ReadableParser:
    """The parser of `rela`.

    Args:
        command: Command whose options are wanted. The others stay empty, so that only its module is
            imported and `rela --help` is quick.
    """
    parser = ReadableParser(
        prog="rela",
        description="Cheaper self-supervised pre-training (ReLA).",
        version=__version__,
        default_env=command is not None,
        env_prefix="RELA",
    )
    if command is not None and command not in TRAINER:
        from rela_lightning.cli.pages import forms

        parser.forms = forms(_function(command))
    commands = parser.add_subcommands(required=True, dest="command")
    for name, (_, line) in COMMANDS.items():
        options = ReadableParser(description=line)
        if name == command and name not in TRAINER:
            options.add_argument("--config", action="config", help="YAML file with any of these options.")
            options.add_function_arguments(_function(name), as_group=False, sub_configs=True)
        commands.add_subcommand(name, options, help=line)
        options.prog = f"rela {name}"
    return parser


def with_names(words: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """The bare words of a command as options: `compare A B` and `compare --runs A B` are `--runs '["A", "B"]'`.

    Those that lead go to the options in order; all of them to the first, where that is a list. Those behind the name
    of a list are its parts.

    Args:
        words: Words after the command.
        function: The function behind it.
    """
    options = inspect.signature(function).parameters
    lists = [f"--{name}" for name, option in options.items() if str(option.annotation).startswith("list")]
    first, bare = f"--{next(iter(options), '')}", _bare(words)
    if bare and first in lists:
        left = [first, *words]
    else:
        named = [f"--{name}={word}" for name, word in zip(options, bare, strict=False)]
        left = [*named, *words[len(named) :]]
    found = []
    while left:
        word = left.pop(0)
        name, _, value = word.partition("=")
        if name in lists:
            more = _bare(left)
            del left[: len(more)]
            parts = [value, *more] if value else more
            in_yaml = parts[:1] and parts[0].startswith("[")
            word = f"{name}={' '.join(parts) if in_yaml else json.dumps(parts)}"
        found.append(word)
    return found


def _bare(words: Sequence[str]) -> list[str]:
    """The words before the first that begins with a dash."""
    return list(takewhile(lambda word: not word.startswith("-"), words))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `rela`.

    Args:
        argv: Arguments after the program's name; None for those of the process.

    Returns:
        Exit code: 0, 2 for a mistake that has a message, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        SystemExit: With code 2 after the message of the parser, with 0 after `--help` and `--print_config`.
    """
    output = Output() if argv is None else None  # the process is ours
    if output is not None and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # classes of the user's own are found as from a script
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        try:
            _run(command, words)
        finally:
            if output is not None:
                output.check()
    except ReLAError as error:
        sys.stderr.write(f"rela: {message_of(error)}\n")
        return 2
    except ImportError as error:
        sys.stderr.write(f"rela: {missing_package(error)}\n")
        return 2
    except System as error:
        readable = system_error(error, words)
        if readable is None:
            raise
        sys.stderr.write(f"rela: {readable}\n")
        return 2
    except KeyboardInterrupt:
        return _stopped(command)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # how Lightning ends after Ctrl-C
            return _stopped(command)
        if type(error).__name__ == "SIGTERMException":  # Lightning's, and without a code
            return _stopped(command, 143)
        raise
    return 0


def _stopped(command: str | None, code: int = 130) -> int:
    """Say that the signal was heard, and of labelling how to go on; `rela fit` has said so itself."""
    kept = "; what is labelled is kept, the same command goes on from there" if command == "targets" else ""
    sys.stderr.write(f"rela: stopped{kept}\n")
    return code


def _help(command: str, words: list[str]) -> str | None:
    """The page that the words ask for; None where they ask for none, or for all that the parser knows."""
    if wants_short_help(words) and command in TRAINER:
        return short_help(command, COMMANDS[command][1])
    if not any(word == "-h" or "help" in word for word in words):
        return None
    from rela_lightning.cli.pages import class_page, command_page

    return command_page(command, _function(command)) if wants_short_help(words) else class_page(words)


def _run(command: str | None, words: list[str]) -> None:
    """Parse the options of a command and call its function."""
    if command is None or command not in COMMANDS:
        build_parser().parse_args(words or ["--help"])  # ends with help, version or a message
        return
    at = words.index(command) + 1
    before, after = words[:at], words[at:]
    if page := _help(command, after):
        sys.stdout.write(page)
        return
    function, after = _function(command), full_help(after)
    if command in TRAINER:
        wait_at_exit()
        function(command, after)
        return
    parser = build_parser(command)
    config = parser.parse_args([*before, *with_names(after, function)])
    from rela_lightning.cli.noise import without_noise  # brings torch: not for `--help`

    if trainer := config[command].get("trainer"):
        trainer.init_args.logger = trainer.init_args.get("logger") or False  # there is nothing to log
    with without_noise():
        with own_errors():
            parsed = parser.instantiate_classes(config)
        options = {name: value for name, value in vars(parsed[command]).items() if name != "config"}
        function(**options)
