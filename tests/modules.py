"""SSL modules as users write them, after lightly's public API, for either Lightning namespace."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import nn

from tests.parts import TinyBackbone

NAMESPACES = ("lightning.pytorch", "pytorch_lightning")


def module_class(namespace: str) -> Any:
    return import_module(namespace).LightningModule


def byol(namespace: str = "lightning.pytorch", **options: Any) -> Any:
    """BYOL with its EMA inside the training step, as in lightly's example."""

    class BYOL(module_class(namespace)):
        def __init__(self, lr: float = 0.05, weight_decay: float = 0.0, momentum: float = 0.0) -> None:
            super().__init__()
            self.lr, self.weight_decay, self.sgd_momentum = lr, weight_decay, momentum
            self.backbone = TinyBackbone()
            self.projection_head = BYOLProjectionHead(16, 16, 8)
            self.prediction_head = BYOLPredictionHead(8, 16, 8)
            self.backbone_momentum = copy.deepcopy(self.backbone)
            self.projection_head_momentum = copy.deepcopy(self.projection_head)
            deactivate_requires_grad(self.backbone_momentum)
            deactivate_requires_grad(self.projection_head_momentum)
            self.criterion = NegativeCosineSimilarity()
            self.steps_run = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.prediction_head(self.projection_head(self.backbone(x).flatten(start_dim=1)))

        def forward_momentum(self, x: torch.Tensor) -> torch.Tensor:
            return self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.steps_run += 1
            update_momentum(self.backbone, self.backbone_momentum, m=0.9)
            update_momentum(self.projection_head, self.projection_head_momentum, m=0.9)
            (x0, x1) = batch[0]
            p0, z0, p1, z1 = self(x0), self.forward_momentum(x0), self(x1), self.forward_momentum(x1)
            loss = 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(
                self.parameters(), lr=self.lr, momentum=self.sgd_momentum, weight_decay=self.weight_decay
            )

    return BYOL(**options)


PlainBYOL = type(byol())
PlainBYOL.__qualname__ = "PlainBYOL"  # found by name, so that it pickles
PlainBYOL.__module__ = __name__


def simclr(namespace: str = "lightning.pytorch", *, manual: bool = False, name: str = "backbone") -> Any:
    """SimCLR on concatenated views; optionally with manual optimization, or a backbone of an unusual name."""

    class SimCLR(module_class(namespace)):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, TinyBackbone())
            self.head = SimCLRProjectionHead(16, 16, 8)
            self.criterion = NTXentLoss()
            self.automatic_optimization = not manual

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            z = self.head(getattr(self, name)(torch.cat(list(batch[0]))))
            loss = self.criterion(*z.chunk(2))
            if not manual:
                return {"loss": loss, "extra": 1}
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return None

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)

    return SimCLR()


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
