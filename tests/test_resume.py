"""Going on from a checkpoint: with other classes, with pairs of equal shapes, with another batch size."""

from __future__ import annotations

import copy
import functools
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from rela_lightning import ReLACallback
from rela_lightning.errors import ConfigError
from rela_lightning.schedules import Plateau, Switch, TransportOnly
from tests.modules import byol
from tests.test_callback import Log, fit, loader, seeded, trainer


@pytest.mark.parametrize("change", ["schedule", "optimizer"])
def test_resuming_with_other_classes_is_refused_by_name(change: str, targets64: Any, tmp_path: Any) -> None:
    run = fit(seeded(byol), ReLACallback(targets64, schedule=TransportOnly()), max_epochs=1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    options: dict[str, Any] = {"schedule": TransportOnly()}
    if change == "schedule":
        options = {"schedule": Plateau()}
    else:
        options["transport_optimizer"] = functools.partial(torch.optim.SGD, lr=0.1)
    with pytest.raises(ConfigError, match="(?s)TransportOnly.*Plateau|AdamW.*SGD"):  # noqa: RUF043
        trainer("lightning.pytorch", ReLACallback(targets64, **options), max_epochs=3).fit(
            byol(), loader(), ckpt_path=tmp_path / "a.ckpt"
        )


@pytest.mark.slow
def test_pairs_are_kept_for_a_resumed_run(targets64: Any, tmp_path: Any) -> None:
    class Alike(type(byol())):
        """Two heads of one shape: only equal initial values tell whose teacher it is."""

        def __init__(self) -> None:
            super().__init__()
            self.xx, self.yy = nn.Linear(16, 4), nn.Linear(16, 4)
            self.zz = copy.deepcopy(self.yy).requires_grad_(False)

    class Shake(L.Callback):
        def on_train_end(self, trainer: Any, module: Any) -> None:
            nn.init.ones_(module.yy.weight)

    run = fit(seeded(Alike), ReLACallback(targets64, schedule=TransportOnly()), Shake(), max_epochs=1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer("lightning.pytorch", ReLACallback(targets64, schedule=TransportOnly()), max_epochs=2)
    again.fit(Alike(), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert again.current_epoch == 2


@pytest.mark.slow
def test_progress_survives_another_batch_size(targets64: Any, tmp_path: Any) -> None:
    class Save(L.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    module, log = seeded(byol), Log()
    fit(module, ReLACallback(targets64, schedule=Switch(0.6)), Save(), max_epochs=5, data=loader(batch_size=8))
    run = trainer("lightning.pytorch", ReLACallback(targets64, schedule=Switch(0.6)), log, max_epochs=5)
    run.fit(byol(), loader(batch_size=32), ckpt_path=tmp_path / "a.ckpt")
    assert [entry["rela/phase"] for entry in log.seen] == [0.0] * 2 + [2.0] * 4
