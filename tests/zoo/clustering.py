"""Methods that assign views to prototypes or groups."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightly.loss import SwaVLoss
from lightly.loss.memory_bank import MemoryBankModule
from lightly.models.modules import (
    SMoGPredictionHead,
    SMoGProjectionHead,
    SMoGPrototypes,
    SwaVProjectionHead,
    SwaVPrototypes,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import SwaVTransform
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.case import zoo
from tests.zoo.data import SIZE, multi_crop, two_views
from tests.zoo.networks import DIM, cnn

GROUP = "Clustering"
BATCH = "[2 global + 2 local crops, label]"


@zoo(
    "SwAV (multi-crop)",
    GROUP,
    batch=BATCH,
    views=lambda: SwaVTransform(crop_sizes=(SIZE, SIZE // 2), crop_counts=(2, 2)),
)
class SwAV:
    def __init__(self) -> None:
        super().__init__()
        self.backbone = cnn()
        self.projection_head = SwaVProjectionHead(DIM, DIM, 8)
        self.prototypes = SwaVPrototypes(8, n_prototypes=16)
        self.criterion = SwaVLoss()

    def project(self, x: Tensor) -> Tensor:
        return F.normalize(self.projection_head(self.backbone(x).flatten(start_dim=1)), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.prototypes.normalize()
        scores = [self.prototypes(self.project(x)) for x in batch[0]]
        return self.criterion(scores[:2], scores[2:])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.001)


@zoo("SwAV with queues", GROUP, batch=BATCH, views=multi_crop)
class SwAVQueue(SwAV):
    """Views of one size in one call; a queue of earlier projections for each global crop."""

    def __init__(self) -> None:
        super().__init__()
        self.queues = nn.ModuleList([MemoryBankModule(size=(16, 8)) for _ in range(2)])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.prototypes.normalize()
        large = self.project(torch.cat(batch[0][:2])).chunk(2)
        small = self.project(torch.cat(batch[0][2:])).chunk(2)
        queued = []
        for queue, z in zip(self.queues, large, strict=True):
            _, stored = queue(z, update=True)
            with torch.no_grad():
                queued.append(self.prototypes(stored.t()))
        return self.criterion([self.prototypes(z) for z in large], [self.prototypes(z) for z in small], queued)


@zoo(
    "SMoG (teacher replaced during training)",
    GROUP,
    batch="[[v0, v1], label]",
    views=two_views,
    teachers=("backbone_momentum", "projection_head_momentum"),
)
class SMoG:
    """One view through the student, one through the teacher, which is a fresh copy every third step."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = cnn()
        self.projection_head = SMoGProjectionHead(DIM, DIM, 8)
        self.prediction_head = SMoGPredictionHead(8, DIM, 8)
        self.copy_students()
        self.memory_bank = MemoryBankModule(size=(32, 8))
        self.smog = SMoGPrototypes(F.normalize(torch.rand(6, 8), dim=1), beta=0.99)
        self.criterion = nn.CrossEntropyLoss()

    def copy_students(self) -> None:
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.global_step % 3 == 2:
            self.copy_students()
        else:
            update_momentum(self.backbone, self.backbone_momentum, 0.99)
            update_momentum(self.projection_head, self.projection_head_momentum, 0.99)
        x0, x1 = batch[0] if batch_idx % 2 else reversed(batch[0])
        z0 = self.projection_head(self.backbone(x0).flatten(start_dim=1))
        with torch.no_grad():
            z1 = self.projection_head_momentum(self.backbone_momentum(x1).flatten(start_dim=1))
        assignments = self.smog.assign_groups(z1)
        groups = self.smog.get_updated_group_features(z0)
        logits = self.smog(self.prediction_head(z0), groups, temperature=0.1)
        self.smog.set_group_features(groups)
        self.memory_bank(z0, update=True)
        return self.criterion(logits, assignments)

    def configure_optimizers(self) -> Any:
        trained = (self.backbone, self.projection_head, self.prediction_head)
        parameters = [p for part in trained for p in part.parameters()]
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-6)
