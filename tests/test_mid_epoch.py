"""Resuming in the middle of an epoch, with a loader that knows where it stood."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch

from rela_lightning import ReLACallback
from rela_lightning.schedules import Mix, Schedule, Switch
from tests.modules import byol, same, weights
from tests.parts import TwoViews, numbered
from tests.test_callback import fit, seeded, trainer

stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata's stateful loader")


class Still(TwoViews):
    """The same two views of an image each time, so that nothing but the order of rows can differ."""

    def __call__(self, image: Any) -> list[torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(sum(image.tobytes()) % 2**31)
            return super().__call__(image)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("schedule", [Switch(0.75), Switch(0.3), Mix()])
def test_mid_epoch_resume_is_the_uninterrupted_run(
    schedule: Schedule, workers: int, targets64: Any, tmp_path: Any
) -> None:
    rows: list[list[int]] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            rows.append(batch[1].tolist())

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 2 and not (tmp_path / "mid.ckpt").exists():
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    def data() -> Any:
        return stateful.StatefulDataLoader(numbered(64, Still()), batch_size=16, num_workers=workers)

    def callback() -> ReLACallback:
        return ReLACallback(targets64, schedule=schedule, transform=None)

    whole, resumed = seeded(byol), byol()
    fit(whole, callback(), Watch(), data=data(), max_epochs=2)
    assert len(rows) == 8
    trainer("lightning.pytorch", callback(), Watch(), max_epochs=2).fit(
        resumed, data(), ckpt_path=tmp_path / "mid.ckpt"
    )
    assert rows[8:] == rows[2:8], "the batches go on where they stood, with their own indices"
    assert same(weights(whole), weights(resumed))
