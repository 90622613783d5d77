"""Several views and other losses, from the command line and from YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rela_lightning import TargetStore
from rela_lightning.__main__ import main
from tests.test_cli import DIGITS, PRIOR, SMALL, record


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(name: str, *words: str) -> list[str]:
    return [
        "fit", "--model=rela_lightning.methods.BYOL", *SMALL, "--trainer.max_epochs=2", f"--name={name}",
        "--trainer.callbacks+=rela_lightning.ReLACallback", "--trainer.callbacks.targets=t",
        "--trainer.callbacks.schedule=Switch", "--trainer.callbacks.schedule.at=0.5", *words,
    ]  # fmt: skip


@pytest.mark.slow
def test_crops_and_losses_by_command_and_config(capsys):
    assert main(["targets", *PRIOR, DIGITS, "--path=t", "--views=2", "--storage_dtype=int8"]) == 0
    assert "targets of 450 images and 2 crops of each" in capsys.readouterr().out
    assert TargetStore("t").views == 2 and TargetStore("t").manifest["storage_cosine"]["mean"] > 0.99
    assert main(run("named", "--trainer.callbacks.loss=contrastive", "--trainer.callbacks.crops=nearest")) == 0
    losses = {}
    for loss in ({"cosine": 1.0, "relational": 0.5}, {
        "class_path": "rela_lightning.losses.Contrastive", "init_args": {"temperature": 0.2}
    }):  # fmt: skip
        config = yaml.safe_load(Path("runs/named/config.yaml").read_text())
        config["trainer"]["callbacks"][0]["init_args"].update(loss=loss, crops="stored")
        name = "class" if "class_path" in loss else "sum"
        Path(f"{name}.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", f"--config={name}.yaml", f"--name={name}"]) == 0
        losses[name] = yaml.safe_load(Path(f"runs/{name}/config.yaml").read_text())
        assert losses[name]["trainer"]["callbacks"][0]["init_args"]["loss"] == loss
        assert record(f"runs/{name}")["schedule"] == "Switch"


@pytest.mark.slow
def test_what_cannot_be_is_said(targets, capsys):
    assert main(run("x", "--trainer.callbacks.crops=stored")) == 2
    assert "too few crops" in capsys.readouterr().err
    assert main(run("x", "--trainer.callbacks.loss=euclid")) == 2
    assert "contrastive" in capsys.readouterr().err
