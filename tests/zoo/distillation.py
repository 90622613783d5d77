"""Methods that predict another network's output: siamese, or a teacher that follows by a moving average."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightly.loss import (
    DINOLoss,
    MMCRLoss,
    MSNLoss,
    NegativeCosineSimilarity,
    PatchKernelAlignmentLoss,
    PMSNLoss,
    TiCoLoss,
)
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    MMCRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.models.modules.heads import MSNProjectionHead, TiCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, random_token_mask, update_momentum
from lightly.transforms import DINOTransform
from torch import Tensor, nn

from tests.zoo.case import zoo
from tests.zoo.data import SIZE, Views, multi_crop, two_views
from tests.zoo.networks import DIM, VIT_DIM, cnn, masked_timm_vit, masked_torchvision_vit, resnet9

GROUP = "Siamese and teacher-student"
FOUR = [SIZE] * 4


class MomentumPair:
    """Backbone and projector, with a teacher of each."""

    width = 8

    def __init__(self) -> None:
        super().__init__()
        self.backbone = cnn()
        self.projection_head = self.projector()
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def projector(self) -> nn.Module:
        return BYOLProjectionHead(DIM, DIM, 8)

    def follow(self) -> None:
        update_momentum(self.backbone, self.backbone_momentum, m=0.99)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.99)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def forward_momentum(self, x: Tensor) -> Tensor:
        return self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


FOLLOWERS = ("backbone_momentum", "projection_head_momentum")


@zoo("BYOL", GROUP, batch="[[v0, v1], label]", views=two_views, teachers=FOLLOWERS)
class BYOL(MomentumPair):
    def __init__(self) -> None:
        super().__init__()
        self.prediction_head = BYOLPredictionHead(8, DIM, 8)
        self.criterion = NegativeCosineSimilarity()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.follow()
        x0, x1 = batch[0]
        p0, p1 = self.prediction_head(self.forward(x0)), self.prediction_head(self.forward(x1))
        z0, z1 = self.forward_momentum(x0), self.forward_momentum(x1)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


@zoo("TiCo", GROUP, batch="[[v0, v1], label]", views=two_views, teachers=FOLLOWERS)
class TiCo(MomentumPair):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = TiCoLoss()

    def projector(self) -> nn.Module:
        return TiCoProjectionHead(DIM, DIM, 8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.follow()
        x0, x1 = batch[0]
        return self.criterion(self.forward(x0), self.forward_momentum(x1))


@zoo("MMCR", GROUP, batch="[[v0, ..., v3], label]", views=lambda: Views(FOUR), teachers=FOLLOWERS)
class MMCR(MomentumPair):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = MMCRLoss()

    def projector(self) -> nn.Module:
        return MMCRProjectionHead(DIM, DIM, 8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.follow()
        online = torch.stack([self.forward(x) for x in batch[0]], dim=1)
        momentum = torch.stack([self.forward_momentum(x) for x in batch[0]], dim=1)
        return self.criterion(online, momentum)


@zoo("SimSiam", GROUP, batch="[[v0, v1], label]", views=two_views)
class SimSiam:
    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet9()
        self.projection_head = SimSiamProjectionHead(64, DIM, 8)
        self.prediction_head = SimSiamPredictionHead(8, 4, 8)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return z.detach(), self.prediction_head(z)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (z0, p0), (z1, p1) = (self.forward(x) for x in batch[0])
        return 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


@zoo("FastSiam", GROUP, batch="[[v0, ..., v3], label]", views=lambda: Views(FOUR))
class FastSiam(SimSiam):
    """Each view against the mean of the others."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pairs = [self.forward(x) for x in batch[0]]
        loss = torch.zeros(())
        for i, (_, p) in enumerate(pairs):
            others = torch.stack([z for j, (z, _) in enumerate(pairs) if j != i])
            loss = loss + self.criterion(p, others.mean(dim=0)) / len(pairs)
        return loss


@zoo(
    "DINO (multi-crop)",
    GROUP,
    batch="[2 global + 2 local crops, label]",
    views=lambda: DINOTransform(global_crop_size=SIZE, local_crop_size=SIZE // 2, n_local_views=2),
    called="student_backbone",
    teachers=("teacher_backbone", "teacher_head"),
)
class DINO:
    def __init__(self) -> None:
        super().__init__()
        self.student_backbone = cnn()
        self.student_head = DINOProjectionHead(DIM, DIM, 8, 32, freeze_last_layer=1)
        self.teacher_backbone = copy.deepcopy(self.student_backbone)
        self.teacher_head = DINOProjectionHead(DIM, DIM, 8, 32)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(output_dim=32, warmup_teacher_temp_epochs=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.student_head(self.student_backbone(x).flatten(start_dim=1))

    def forward_teacher(self, x: Tensor) -> Tensor:
        return self.teacher_head(self.teacher_backbone(x).flatten(start_dim=1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        update_momentum(self.student_backbone, self.teacher_backbone, m=0.99)
        update_momentum(self.student_head, self.teacher_head, m=0.99)
        views = batch[0]
        teacher = [self.forward_teacher(view) for view in views[:2]]
        student = [self.forward(view) for view in views]
        return self.criterion(teacher, student, epoch=self.current_epoch)

    def on_after_backward(self) -> None:
        self.student_head.cancel_last_layer_gradients(current_epoch=self.current_epoch)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.001)


class MaskedSiamese:
    """MSN: the network called `backbone` is the teacher; `anchor_backbone` is trained, on masked views."""

    criterion_class: Any = MSNLoss

    def __init__(self) -> None:
        super().__init__()
        self.backbone = masked_torchvision_vit()
        self.projection_head = MSNProjectionHead(VIT_DIM, 16, 8)
        self.anchor_backbone = copy.deepcopy(self.backbone)
        self.anchor_projection_head = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone)
        deactivate_requires_grad(self.projection_head)
        self.prototypes = nn.Linear(8, 16, bias=False).weight
        self.criterion = self.criterion_class()

    def encode_masked(self, anchors: Tensor) -> Tensor:
        tokens = (anchors.shape[-1] // 8) ** 2
        keep, _ = random_token_mask(size=(len(anchors), tokens), mask_ratio=0.15, device=anchors.device)
        return self.anchor_projection_head(self.anchor_backbone(images=anchors, idx_keep=keep))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        update_momentum(self.anchor_backbone, self.backbone, 0.996)
        update_momentum(self.anchor_projection_head, self.projection_head, 0.996)
        views = batch[0]
        targets = self.projection_head(self.backbone(images=views[0]))
        anchors = torch.cat([self.encode_masked(views[1]), self.encode_masked(torch.cat(views[2:]))])
        return self.criterion(anchors, targets, self.prototypes.data)

    def configure_optimizers(self) -> Any:
        student = [*self.anchor_backbone.parameters(), *self.anchor_projection_head.parameters(), self.prototypes]
        return torch.optim.AdamW(student, lr=1.5e-3)


MSN_OPTIONS: dict[str, Any] = {
    "batch": "[2 global + 2 local crops, label]",
    "views": multi_crop,
    "called": "anchor_backbone",
    "teachers": ("backbone", "projection_head"),
}


@zoo("MSN (ViT)", GROUP, **MSN_OPTIONS)
class MSN(MaskedSiamese):
    pass


@zoo("PMSN (ViT)", GROUP, **MSN_OPTIONS)
class PMSN(MaskedSiamese):
    criterion_class = PMSNLoss


@zoo(
    "PaKA (dense tokens)",
    GROUP,
    batch="[[v0], label]",
    views=lambda: Views([SIZE]),
    called="student.encode",
    teachers=("teacher",),
    needs={"mix": [{"backbone": "student.encode"}]},
    note="`student.encode(images)` is called, not `student(images)`",
)
class PaKA:
    """Patch tokens of the student follow those of the teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.student = masked_timm_vit()
        self.teacher = copy.deepcopy(self.student)
        deactivate_requires_grad(self.teacher)
        self.predictor = nn.Linear(VIT_DIM, VIT_DIM)
        self.criterion = PatchKernelAlignmentLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        update_momentum(self.student, self.teacher, m=0.99)
        images = batch[0][0]
        student = self.predictor(self.student.encode(images))[:, 1:]
        with torch.no_grad():
            teacher = self.teacher.encode(images)[:, 1:]
        return self.criterion(student, teacher)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@zoo(
    "BYOL whose teacher keeps its gradients, in no optimizer (lightly's benchmarks)",
    GROUP,
    batch="[[v0, v1], label]",
    views=two_views,
    teachers=("teacher_backbone", "teacher_projection_head"),
)
class BenchmarkBYOL(MomentumPair):
    """Nothing is frozen: the teacher is left out of configure_optimizers, and its head is a fresh one."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher_backbone, self.teacher_projection_head = copy.deepcopy(self.backbone), self.projector()
        del self.backbone_momentum, self.projection_head_momentum
        self.prediction_head = BYOLPredictionHead(8, DIM, 8)
        self.criterion = NegativeCosineSimilarity()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        update_momentum(self.backbone, self.teacher_backbone, m=0.99)
        update_momentum(self.projection_head, self.teacher_projection_head, m=0.99)
        with torch.no_grad():
            z0, z1 = (self.teacher_projection_head(self.teacher_backbone(view)) for view in batch[0])
        p0, p1 = (self.prediction_head(self(view)) for view in batch[0])
        return self.criterion(p0, z1) + self.criterion(p1, z0)

    def students(self) -> tuple[Any, ...]:
        return self.backbone, self.projection_head, self.prediction_head

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for part in self.students() for p in part.parameters()], lr=0.05)


@zoo(
    "BYOL whose teacher is a copy that an optimizer holds too",
    GROUP,
    batch="[[v0, v1], label]",
    views=two_views,
    teachers=("teacher_backbone",),
)
class EverythingOptimized(BenchmarkBYOL):
    """configure_optimizers hands over all parameters, the teacher's included; it gets no gradients there."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@zoo(
    "MoCo whose backbone is the key encoder, in no optimizer",
    GROUP,
    batch="[[query, key], label]",
    views=two_views,
    called="query_backbone",
    teachers=("backbone", "projection_head"),
)
class QueryBackbone(BenchmarkBYOL):
    """The usual name holds the teacher, and nothing is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.query_backbone, self.query_projection_head = copy.deepcopy(self.backbone), self.projector()
        del self.teacher_backbone, self.teacher_projection_head, self.prediction_head

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        update_momentum(self.query_backbone, self.backbone, m=0.99)
        update_momentum(self.query_projection_head, self.projection_head, m=0.99)
        query = self.query_projection_head(self.query_backbone(batch[0][0]))
        with torch.no_grad():
            key = self(batch[0][1])
        return self.criterion(query, key)

    def students(self) -> tuple[Any, ...]:
        return self.query_backbone, self.query_projection_head
