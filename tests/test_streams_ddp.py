"""Streams on two processes: each labels and trains on the shards that are its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rela_lightning import ReLACallback, TargetStore, build_targets
from rela_lightning.schedules import Switch
from tests.ranks import succeeded
from tests.streams import Shards, Training, key_of, write_shards


def trainer(*callbacks: Any, **options: Any) -> Any:
    import lightning.pytorch as L

    return L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False, callbacks=[*callbacks],
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def label_and_train(path: Path, split: str, shards: list[str]) -> None:
    """Label, then train, and say which images this rank saw with which targets."""
    from torch.utils.data import DataLoader

    from tests.modules import byol
    from tests.parts import TwoViews
    from tests.test_streams import Numbers, Spy, prior

    labelled = Shards(shards, split=split == "split")
    build_targets(prior(), labelled, path, standardise="per_dim", storage_dtype=torch.float32, trainer=trainer())
    spy, log = Spy(), Numbers()
    torch.manual_seed(0)
    module = byol()
    data = DataLoader(Shards(shards, Training(TwoViews()), shuffle=True), batch_size=8, num_workers=1)
    run = trainer(ReLACallback(path, schedule=Switch(0.5), loss=spy), log, max_epochs=2)
    run.fit(module, data)
    end = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    Path(f"{path}-{run.global_rank}.json").write_text(
        json.dumps({
            "numbers": log.numbers,
            "targets": [targets.tolist() for targets in spy.targets],
            "phases": [entry["rela/phase"] for entry in log.seen],
            "end": end.tolist(),
        })
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("split", ["split", "whole"])
def test_each_rank_streams_its_own_shards(tmp_path, split):
    from tests.test_streams import prior

    shards = write_shards(tmp_path)
    written = "".join(succeeded(label_and_train, tmp_path / "two", split, shards))
    assert ("came more than once" in written) == (split == "whole")
    store, keys = TargetStore(tmp_path / "two"), [key_of(number) for number in range(64)]
    options = {"standardise": "per_dim", "storage_dtype": torch.float32}
    alone = build_targets(prior(), Shards(shards), tmp_path / "one", **options)
    by_number = alone[alone.rows_of(keys)]
    np.testing.assert_allclose(store[store.rows_of(keys)], by_number, atol=1e-2)
    first, second = (json.loads((tmp_path / f"two-{rank}.json").read_text()) for rank in (0, 1))
    seen = [{number for batch in rank["numbers"] for number in batch} for rank in (first, second)]
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(range(64))
    for rank in (first, second):
        steps = rank["phases"].count(0.0)
        assert 0 < steps < len(rank["phases"])
        calls = len(rank["targets"]) // steps
        for numbers, targets in zip(rank["numbers"][:steps], rank["targets"][::calls], strict=True):
            found = torch.tensor(targets)
            torch.testing.assert_close(found, by_number[numbers][:, : found.shape[1]], atol=1e-2, rtol=1e-2)
    assert first["end"] == second["end"]
