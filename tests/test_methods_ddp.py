"""Two gloo processes train as one does on a batch of twice the size; one launch runs every method.

Batch norm is taken out, which sees each process's batch alone.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from rela_lightning.methods import BarlowTwins
from rela_lightning.methods.barlow_twins import cross_correlation, redundancy_loss
from tests.ranks import succeeded
from tests.test_methods import QUIET
from tests.test_methods_every import METHODS, Views, build

pytestmark = pytest.mark.slow
ROWS, BATCH = 64, 16


def without_norm(name: str) -> Any:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Flatten(2))
    module = build(name, Pooled(conv), optimizer=functools.partial(torch.optim.SGD, lr=0.02))
    for parent in list(module.modules()):
        for child, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm1d):
                setattr(parent, child, nn.Identity())
    return module


class Pooled(nn.Module):
    """Averages what `body` returns over positions."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).mean(dim=2)


class TwoHalves(BarlowTwins):
    """What two processes should do: each half of the batch standardised on its own."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = [self.projector(self(view)) for view in self.two_views(batch)]
        halves = [cross_correlation(z[0][half::2], z[1][half::2]) for half in range(2)]
        return redundancy_loss((halves[0] + halves[1]) / 2, self.redundancy_weight)


class InOrder(L.LightningDataModule):
    """Rows in order: the batches of two processes together are the batch of one."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def train_dataloader(self) -> DataLoader:
        data, processes = Views(ROWS, METHODS[self.name][2]), self.trainer.world_size
        sampler = DistributedSampler(data, processes, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, batch_size=BATCH // processes, sampler=sampler)


def run(name: str, **options: Any) -> Any:
    module = without_norm(name)
    if name == "BarlowTwins" and not options:
        module.__class__ = TwoHalves
    trainer = L.Trainer(**{**QUIET, "max_epochs": 2, "precision": "64-true", **options})
    trainer.fit(module, InOrder(name))
    return module


def state(module: Any) -> dict[str, Tensor]:
    return {key: value for key, value in module.state_dict().items() if "queue.rows" not in key}


def rows(module: Any) -> Tensor | None:
    """Queued rows, sorted: their order is the processes'."""
    queue = getattr(module, "queue", None)
    return None if queue is None else queue.rows[queue.rows[:, 0].argsort()]


@pytest.fixture(scope="module")
def results(tmp_path_factory: Any) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("ddp") / "results.pt"
    succeeded(train_all, out)
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_as_one(name: str, results: dict[str, Any]) -> None:
    first, second = results[name]
    assert isinstance(first, dict), first
    torch.testing.assert_close(first, second, rtol=0, atol=0, msg=lambda m: f"ranks differ: {m}")
    alone = run(name)
    expected = {**state(alone), "rows": rows(alone)}
    torch.testing.assert_close(first, {k: v for k, v in expected.items() if v is not None}, rtol=1e-6, atol=1e-8)
    start = without_norm(name).double().state_dict()
    assert not torch.equal(start["backbone.body.0.weight"], first["backbone.body.0.weight"])


def train_all(out: Path) -> None:
    results: dict[str, Any] = {}
    for name in METHODS:
        try:
            module = run(name, devices=2, strategy="ddp")
            mine: Any = {k: v for k, v in {**state(module), "rows": rows(module)}.items() if v is not None}
        except Exception as error:  # every method reports, the launch goes on
            mine = f"{type(error).__name__}: {error}"
        both: list[Any] = [None, None]
        torch.distributed.all_gather_object(both, mine)
        results[name] = both
    if torch.distributed.get_rank() == 0:
        torch.save(results, out)
