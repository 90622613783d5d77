"""Training runs that the tests of export share."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F

from rela_lightning.methods import BYOL, Supervised
from tests.parts import TinyBackbone, TwoViews, make_digits

SMALL = {"backbone": "lightly:resnet-9", "backbone_kwargs": {"width": 0.125}}
RUN = {
    "name": "byol+rela",
    "method": "BYOL",
    "prior": "timm:resnet18 | random",
    "data": {"class_path": "rela_lightning.data.DigitsData", "init_args": {"image_size": 32, "data_ratio": 0.5}},
    "seconds": 12.345,
    "labelling_seconds": 1.5,
    "steps": 2,
    "epochs": 1,
    "budget": {"max_steps": 2},
    "history": [],
    "versions": {"torch": "9.9.9"},
    "linear_top1": 0.875,
}


def train(method: L.LightningModule, folder: Path, steps: int = 2, size: int = 32, **options) -> Path:
    """A checkpoint of a method that moved, so that its teacher differs from its student."""
    loader = DataLoader(make_digits(8 * steps, TwoViews(size)), batch_size=8, collate_fn=_collate)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=bool(options), limit_val_batches=0, **options,
    )  # fmt: skip
    trainer.fit(method, loader)
    if not options:
        trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def _collate(rows):
    views, labels = zip(*rows, strict=True)
    return [torch.stack(column) for column in zip(*views, strict=True)], torch.tensor(labels)


def real_images(count: int, size: int) -> torch.Tensor:
    """Normalised photographs `[count, 3, size, size]`: crops of scikit-learn's two."""
    from sklearn.datasets import load_sample_images

    photographs = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in load_sample_images().images]
    crops = [F.crop(photographs[i % 2], 20 * i, 30 * i, 300, 300) for i in range(count)]
    resized = [F.resize(crop, [size, size], antialias=True) for crop in crops]
    return F.normalize(torch.stack(resized).float() / 255, [0.5] * 3, [0.25] * 3)


def same(found: dict[str, torch.Tensor], expected: nn.Module) -> bool:
    wanted = expected.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def small_run(folder: Path) -> tuple[L.LightningModule, Path]:
    """A trained BYOL on a small lightly ResNet, and its run folder."""
    torch.manual_seed(0)
    method = BYOL(**SMALL, projector_dim=8, hidden_dim=8)
    train(method, folder)
    return method.eval(), folder


def resnet18_run(folder: Path) -> tuple[L.LightningModule, Path]:
    """A trained classifier on torchvision's ResNet-18, and its run folder with a `run.json`."""
    torch.manual_seed(0)
    method = Supervised("resnet18", num_classes=10)
    train(method, folder)
    (folder / "run.json").write_text(json.dumps({**RUN, "checkpoint": "last.ckpt"}))
    return method.eval(), folder


class Pair(L.LightningModule):
    """A student and a teacher under names of choice."""

    def __init__(self, student: str, teacher: str) -> None:
        super().__init__()
        setattr(self, teacher, TinyBackbone().requires_grad_(False))
        setattr(self, student, TinyBackbone())
        self.head = nn.Linear(16, 2)

    def training_step(self, batch, batch_idx):
        raise NotImplementedError
