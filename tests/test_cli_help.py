"""`--help` of the trainer's commands is one screen, quick, and true."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from typing import Any

import pytest

from rela_lightning.cli import TRAINER, main
from rela_lightning.cli.short_help import DATA, EVALUATED, GROUPS, METHODS, TUNED, wants_short_help
from rela_lightning.config import classes


@pytest.mark.parametrize("command", TRAINER)
def test_help_is_a_screen(command: str, capsys: Any) -> None:
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert 30 < len(page.splitlines()) < 60 and max(map(len, page.splitlines())) <= 120
    first = "START" if command == "finetune" else "--model NAME --data NAME"
    assert page.startswith(f"usage: rela {command} {first} [options]")
    assert all(name in page for name in (*(METHODS if command != "finetune" else ()), *DATA))
    trains = command in ("fit", "finetune")
    assert all((word in page) is trains for word in ("--resume", "--trainer.max_epochs", "--optimizer", "--name NAME"))
    assert ("--ckpt_path RUN" in page) is not trains  # what these commands look at


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("probe", "RUN [options]"),
        ("embed", "RUN PATH [options]"),
        ("compare", "RUNS ... [options]"),
        ("rank", "PRIORS ... --data DATA [options]"),
        ("targets", "--prior PRIOR --data DATA --path PATH [options]"),
    ],
)
def test_help_of_the_others_is_a_screen_and_says_what_goes_without_a_name(
    command: str, usage: str, capsys: Any
) -> None:
    assert main([command, "-h"]) == 0
    page = capsys.readouterr().out
    assert page.splitlines()[0] == f"usage: rela {command} {usage}"
    assert len(page.splitlines()) < 60 and max(map(len, page.splitlines())) <= 120
    function = importlib.import_module(f"rela_lightning.cli.{command}")
    options = list(inspect.signature(getattr(function, command)).parameters)
    named = re.findall(r"^  (?:--)?(\w+)", page, re.MULTILINE)
    assert not {name.lower() for name in options if name != "options"} - {name.lower() for name in named}
    with pytest.raises(SystemExit) as stop:
        main([command])
    assert stop.value.code == 2 and usage in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "first", "said"),
    [
        (
            ["fit", "--trainer.callbacks.help", "ReLACallback"],
            "ReLACallback: Pulls",
            ".callbacks.head_warmup ",
        ),
        (["fit", "--model.help=BYOL"], "BYOL: A student", "--model.lr_scheduler "),
        (["probe", "--data.help", "CIFAR10Data"], "CIFAR10Data: ", "(default 256)"),
        (["fit", "--model.help"], "--model NAME:", "  VICReg  "),
    ],
)
def test_help_of_a_class_is_a_screen(words: list[str], first: str, said: str, capsys: Any) -> None:
    assert main(words) == 0
    page = capsys.readouterr().out
    assert page.startswith(first) and said in page
    assert len(page.splitlines()) < 60 and max(map(len, page.splitlines())) <= 120


def test_the_whole_text_of_a_class_is_there_on_demand(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["probe", "--data.help", "DigitsData", "all"])
    page = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "at most its `max_bank` images, evenly spaced" in page


def test_every_option_named_exists(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help", "all"])
    assert stop.value.code == 0
    everything = capsys.readouterr().out
    assert len(everything.splitlines()) > 300
    groups = [*GROUPS.values(), *EVALUATED.values(), TUNED]
    named = {word for group in groups for name in group for word in re.findall(r"--[\w.]+", name)}
    named |= set(re.findall(r"--[\w.]+", " ".join(text for group in groups for text in group.values())))
    outer = {re.sub(r"^(--(?:model|data)|--trainer\.callbacks)\.(?!help).*", r"\1", name) for name in named}
    missing = [name for name in outer - {"--help"} if not re.search(rf"{re.escape(name)}\b", everything)]
    assert not missing


def test_names_are_those_that_exist() -> None:
    assert sorted(METHODS) == sorted(classes("model")) and sorted(DATA) == sorted(classes("data"))


def test_help_of_fit_needs_no_torch_and_rela_alone_is_help() -> None:
    code = (
        "import sys\nfrom rela_lightning.cli import main\nmain(['fit', '-h'])\n"
        "try: main([])\nexcept SystemExit as stop: assert stop.code == 0\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: rela fit --model" in done.stdout and "plain BYOL against BYOL" in done.stdout


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], False),
        (["--help"], True),
        (["--model", "BYOL", "-h"], True),
        (["--help", "all"], False),
        (["-h", "all"], False),
        (["--model.help", "BYOL"], False),
    ],
)
def test_who_gets_the_short_one(words: list[str], wanted: bool) -> None:
    assert wants_short_help(words) is wanted
