"""A run of the command that was stopped goes on bit for bit: its views are drawn as they would have been."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule

from rela_lightning.cli import main
from rela_lightning.errors import ConfigError
from rela_lightning.runs.random_state import random_state, restore
from rela_lightning.runs.resume import check_belongs

RUN = [
    "fit", "--model=BYOL", "--model.backbone=lightly:resnet-9", "--model.backbone_kwargs={width: 0.125}",
    "--data=DigitsData", "--data.batch_size=32", "--trainer.accelerator=cpu", "--trainer.max_epochs=3",
    "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]  # fmt: skip


class Stop(Callback):
    """As a kill would, at the start of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop."""
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


def saved(name: str) -> dict[str, Any]:
    return torch.load(Path("runs", name, "checkpoints", "last.ckpt"), weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_resumed_run_draws_the_same_views(epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "--name=whole"]) == 0
    stop = f"--trainer.callbacks=[{{class_path: tests.test_random_state.Stop, init_args: {{epoch: {epoch}}}}}]"
    assert main([*RUN, "--name=parts", stop]) == 130
    assert saved("parts")["global_step"] == 2 * epoch
    torch.manual_seed(7)
    assert main([*RUN, "--ckpt_path=runs/parts"]) == 0
    whole, parts = saved("whole")["state_dict"], saved("parts")["state_dict"]
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_state_comes_back_from_a_file(tmp_path: Path) -> None:
    torch.save(random_state(), tmp_path / "state.pt")
    torch.empty((), dtype=torch.int64).random_()  # what a loader draws
    expected = random.random(), np.random.rand(), torch.rand(3)
    restore(torch.load(tmp_path / "state.pt", weights_only=True))
    found = random.random(), np.random.rand(), torch.rand(3)
    assert found[:2] == expected[:2] and torch.equal(found[2], expected[2])


def test_checkpoints_with_objects_are_refused_whatever_the_module(tmp_path: Path) -> None:
    """Before 2.6, Lightning itself loads them with everything in them."""

    class Later(LightningModule):
        def configure_model(self) -> None:
            """Built later, so that the tensors are not compared."""

    torch.save({"state_dict": {}, "hyper_parameters": {"place": Stop(1)}}, tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match="without --ckpt_path"):
        check_belongs(Later(), tmp_path / "a.ckpt")
