"""Messages name options as they are typed, priors by their names, and the targets that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rela_lightning.cli import main
from tests.test_cli import BYOL, DIGITS, PRIOR, in_a_folder_of_its_own  # noqa: F401


def said(words: list[str], capsys: Any) -> str:
    capsys.readouterr()
    assert main(words) == 2
    return capsys.readouterr().err


def test_another_prior_is_named_and_how_to_replace_it(targets: Path, capsys: Any) -> None:
    other = [PRIOR[0].replace("resnet-9", "resnet-18"), *PRIOR[1:]]
    text = said(["targets", *other, DIGITS, "--path=t"], capsys)
    assert "built with another prior" in text and "--overwrite true" in text and "overwrite=True" not in text
    assert "random:lightly:resnet-9 (" in text and "random:lightly:resnet-18 (" in text
    assert "Preprocess(" not in text, "it is the same"
    text = said(["targets", *other[:1], PRIOR[1].replace("32", "40"), DIGITS, "--path=t"], capsys)
    assert "image_size=(40, 40)" in text and "image_size=(32, 32)" in text


def test_where_there_are_no_targets_those_beside_are_named(targets: Path, capsys: Any) -> None:
    callback = ["--trainer.callbacks+=rela_lightning.ReLACallback", "--trainer.callbacks.targets=nowhere"]
    text = said([*BYOL, "--trainer.max_epochs=1", *callback], capsys)
    assert "no target store here" in text and "available: t\n" in text
    assert "rela targets --prior PRIOR --data DATA --path FOLDER" in text and "build_targets" not in text


def test_more_crops_are_asked_for_as_in_a_shell(targets: Path, capsys: Any) -> None:
    callback = ["--trainer.callbacks+=rela_lightning.ReLACallback", "--trainer.callbacks.targets=t"]
    text = said([*BYOL, "--trainer.max_epochs=1", *callback, "--trainer.callbacks.crops=stored"], capsys)
    assert "rela targets ... (--views 8), another" in text
