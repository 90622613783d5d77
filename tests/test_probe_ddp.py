"""Two processes give what one gives: the probes add up exactly, also over shards of different lengths."""

import functools

import lightning.pytorch as L
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from rela_lightning.probe import KNNProbe, LinearProbe, OnlineLinearProbe
from tests.ranks import succeeded

BUNCH = load_digits()
DATA = TensorDataset(torch.tensor(BUNCH.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(BUNCH.target))
SHARDS = ((range(600, 661), range(800, 837)), (range(661, 800), range(837, 950)))  # (bank, queries) per rank


class Still(L.LightningModule):
    """A backbone that does not move; each rank has its own, longer or shorter, validation shard."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())

    def training_step(self, batch, batch_idx):
        return self.backbone(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(Subset(DATA, range(rank, 400, world)), batch_size=40 // world)

    def val_dataloader(self):
        ranks = range(len(SHARDS)) if self.trainer.world_size == 1 else [self.trainer.global_rank]
        rows = [[row for rank in ranks for row in SHARDS[rank][part]] for part in (0, 1)]
        return [DataLoader(Subset(DATA, part), batch_size=30) for part in rows]


class Save(L.Callback):
    """Writes the checkpoint inside the spawned processes, where the callbacks' state is."""

    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


def run(devices, path):
    online = OnlineLinearProbe(10, optimizer=functools.partial(torch.optim.SGD, lr=0.5))
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[online, KNNProbe(7), Save(path)],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Still())
    head = torch.load(path, weights_only=True)["callbacks"][online.state_key]["head"]
    return {key: value.item() for key, value in trainer.callback_metrics.items()}, head


def run_and_keep(folder):
    found = run(2, str(folder / "two.ckpt"))
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / "found.pt")


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    metrics, head = run(1, str(tmp_path / "one.ckpt"))
    succeeded(run_and_keep, tmp_path)
    both, both_head = torch.load(tmp_path / "found.pt", weights_only=True)
    assert {"probe/top1", "probe/top5", "probe/train_top1", "probe/loss", "knn/top1"} <= metrics.keys()
    assert both == pytest.approx(metrics, abs=1e-6)
    torch.testing.assert_close(both_head, head)
    assert metrics["knn/top1"] > 0.5
    assert head["weight"].abs().sum() > 0


@pytest.mark.slow
def test_linear_probe_trains_under_plain_ddp():
    """No unused parameter: the frozen backbone is no part of the gradient exchange."""
    succeeded(train_linear_probe)


def train_linear_probe():
    probe = LinearProbe(Still().backbone, 10, feature_dim=128)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(Subset(DATA, range(200)), batch_size=20)
    trainer.fit(probe, loader, DataLoader(Subset(DATA, range(200, 300)), batch_size=20))
    assert 0 <= trainer.callback_metrics["probe/top1"] <= 1
