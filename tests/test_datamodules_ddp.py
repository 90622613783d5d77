"""Two gloo processes draw one share of the data each epoch."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper

from tests.ranks import succeeded
from tests.test_callback import trainer
from tests.test_datamodules import Numbered, Rows, Twice
from tests.test_methods_every import build

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("all_images")]
EPOCHS, BATCH, SHARE = 3, 30, 134  # a tenth of 1,347 digits is 134 to 135


def draw(out: Path) -> None:
    # as in older releases of Lightning, which our floor allows: a wrapped sampler is not told the epoch
    DistributedSamplerWrapper.set_epoch = torch.utils.data.DistributedSampler.set_epoch  # type: ignore[method-assign]
    rows = Rows()
    run = trainer(
        "lightning.pytorch", rows, accelerator="cpu", devices=2, strategy="ddp", max_epochs=EPOCHS, limit_val_batches=0
    )
    torch.manual_seed(0)
    run.fit(build("SimSiam"), datamodule=Numbered(data_ratio=0.1, batch_size=BATCH, views=Twice()))
    both: list[Any] = [None, None]
    torch.distributed.all_gather_object(both, rows.epochs)
    if run.is_global_zero:
        out.write_text(json.dumps(both))


def test_both_ranks_draw_one_fresh_share_each_epoch(tmp_path: Path) -> None:
    succeeded(draw, tmp_path / "rows.json")
    first, second = json.loads((tmp_path / "rows.json").read_text())
    assert [len(rows) for rows in first + second] == [2 * BATCH] * 2 * EPOCHS
    epochs = [set(a) | set(b) for a, b in zip(first, second, strict=True)]
    assert [len(rows) for rows in epochs] == [4 * BATCH] * EPOCHS, "ranks see different images"
    assert len(set().union(*epochs)) > 4 * BATCH + 2 * (EPOCHS - 1) * BATCH, "each epoch draws afresh"
    assert all(len(a & b) < SHARE // 3 for a, b in itertools.pairwise(epochs))
