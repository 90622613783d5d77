"""Messages name options as they are typed, priors by their names, and the targets that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
    assert "random:lightly:resnet-9, width" in text and "random:lightly:resnet-18, width" in text
    assert "Preprocess(" not in text, "it is the same"
    text = said(["targets", *other[:1], PRIOR[1].replace("32", "40"), DIGITS, "--path=t"], capsys)
    assert "image_size=(40, 40)" in text and "image_size=(32, 32)" in text


def test_where_there_are_no_targets_those_beside_are_named(targets: Path, capsys: Any) -> None:
    callback = ["--trainer.callbacks+=rela_lightning.ReLACallback", "--trainer.callbacks.targets=nowhere"]
    text = said([*BYOL, "--trainer.max_epochs=1", *callback], capsys)
    assert "no target store here" in text and "available: t\n" in text
    assert "rela targets --prior PRIOR --data DATA --path FOLDER" in text and "build_targets" not in text


def test_without_targets_the_option_is_named(capsys: Any) -> None:
    text = said([*BYOL, "--trainer.callbacks+=rela_lightning.ReLACallback"], capsys)
    assert "--trainer.callbacks.targets targets/clip-b16" in text and "rela targets --prior PRIOR" in text
    assert "build_targets" not in text and 'ReLACallback("' not in text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["export", "plain.ckpt", "x.foo"], ["--format hub writes a folder"]),
        (["export", "plain.ckpt", "x.onnx", "--format=hub"], ["or choose --format onnx"]),
        (["targets", "lightly.d", "DigitsData", "t"], ["hint:     run:lightly.d is what that run has trained"]),
        (["targets", "plain.ckpt", "DigitsData", "t"], ["hint:     checkpoint:plain.ckpt holds its weights"]),
        (["targets", "none", "DigitsData", "t"], ["hint:     for example open_clip:ViT-B-16/openai"]),
        (["targets", "checkpoint:plain.ckpt", "DigitsData", "t"], ["--prior_kwargs '{arch: torchvision:resnet18}'"]),
        (
            ["targets", "random:lightly:resnet-9", "DigitsData", "t", "--prior_kwargs={mean: 0.5}"],
            ["found:    no image_size, no std", "example --prior_kwargs '{image_size: 32, mean: 0.5, std: 0.5}'"],
        ),
        (["targets", "random:lightly:resnet-9", "DigitsData", "lightly.d"], ["or targets that rela targets made"]),
        (["finetune", "lightly:resnet-9", "--data=DigitsData", "--data.drop_last=true", "--data.labels_per_class=1"],
         ["set a smaller --data.batch_size, or --data.drop_last false"]),
    ],
)  # fmt: skip
def test_options_are_named_as_they_are_typed(words: list[str], parts: list[str], capsys: Any) -> None:
    Path("plain.ckpt").write_bytes(b"")
    Path("lightly.d").mkdir()
    Path("lightly.d/mine.txt").touch()
    text = said(words, capsys)
    assert all(part in text for part in parts) and "load_prior" not in text and "=True" not in text


def test_labelling_by_a_trainer_is_quiet_and_ends_with_the_place_that_was_given(
    monkeypatch: Any, capsys: Any, caplog: Any, recwarn: Any
) -> None:
    monkeypatch.setenv("TORCH_HOME", "home")
    quick = ["--trainer=lightning.pytorch.Trainer", "--trainer.accelerator=cpu"]
    assert main(["targets", *PRIOR, DIGITS, "--path=memory://words/t", *quick]) == 0
    told = capsys.readouterr()
    assert told.out.endswith(": memory://words/t\n") and "Predicting" not in told.out + told.err
    assert not Path("lightning_logs").exists()
    assert "Tip" not in caplog.text and not [each for each in recwarn if "tensorboard" in str(each.message)]


def test_more_crops_are_asked_for_as_in_a_shell(targets: Path, capsys: Any) -> None:
    callback = ["--trainer.callbacks+=rela_lightning.ReLACallback", "--trainer.callbacks.targets=t"]
    text = said([*BYOL, "--trainer.max_epochs=1", *callback, "--trainer.callbacks.crops=stored"], capsys)
    assert "rela targets ... (--views 8), another" in text
