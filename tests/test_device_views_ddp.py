"""Two gloo processes make the views that one makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rela_lightning import ReLACallback
from rela_lightning.schedules import Switch
from tests.ranks import succeeded
from tests.test_callback import trainer
from tests.test_device_views import Photos, Seen, same_views, small

pytestmark = pytest.mark.slow


def run(targets: str, devices: int) -> dict[Any, torch.Tensor]:
    seen, strategy = Seen(), "ddp" if devices > 1 else "auto"
    callback = ReLACallback(targets, schedule=Switch(0.5), crops="free")
    fitting = trainer("lightning.pytorch", callback, seen, accelerator="cpu", devices=devices, strategy=strategy)
    torch.manual_seed(0)
    fitting.fit(small("BYOL"), datamodule=Photos(batch_size=12))
    if devices == 1:
        return seen.views
    both: list[Any] = [None, None]
    torch.distributed.all_gather_object(both, seen.views)
    assert len(both[0]) == len(both[1]) == 48, "each sees half of the photos in an epoch"
    return both[0] | both[1]


def test_both_ranks_make_the_views_that_one_process_makes(tmp_path: Path) -> None:
    from rela_lightning import build_targets
    from tests.test_device_views import prior

    build_targets(prior(), Photos().dataset("train"), tmp_path / "t", views=3)
    succeeded(see_half, tmp_path)
    together = torch.load(tmp_path / "views.pt", weights_only=True)
    alone = run(str(tmp_path / "t"), 1)
    assert len(together) == len(alone) == 96 and same_views(alone, together, exact=False)


def see_half(folder: Path) -> None:
    found = run(str(folder / "t"), 2)
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / "views.pt")
