"""Contrastive methods on lightly's losses and heads."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightly.loss import (
    DCLLoss,
    DCLWLoss,
    DetConBLoss,
    DetConSLoss,
    DirectCLRLoss,
    MACLLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
)
from lightly.models.modules import (
    BYOLPredictionHead,
    DenseCLProjectionHead,
    MoCoProjectionHead,
    NNCLRPredictionHead,
    NNCLRProjectionHead,
    NNMemoryBankModule,
    SimCLRProjectionHead,
)
from lightly.models.utils import (
    batch_shuffle,
    batch_unshuffle,
    deactivate_requires_grad,
    pool_masked,
    select_most_similar,
    update_momentum,
)
from lightly.transforms import DetConSTransform, FDATransform, FDAView1Transform, FDAView2Transform, PIRLTransform
from lightly.transforms import SimCLRTransform as LightlySimCLRTransform
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as V2

from tests.zoo.case import zoo
from tests.zoo.data import SIZE, two_views
from tests.zoo.networks import DIM, cnn, feature_maps, resnet9

GROUP = "Contrastive"


class TwoCalls:
    """Both views through backbone and projector, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = cnn()
        self.projection_head = SimCLRProjectionHead(DIM, DIM, 8)
        self.criterion = NTXentLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x0, x1 = batch[0]
        loss = self.criterion(self.forward(x0), self.forward(x1))
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


@zoo("SimCLR", GROUP, batch="[[v0, v1], label]", views=lambda: LightlySimCLRTransform(input_size=SIZE))
class SimCLR(TwoCalls):
    """On lightly's own transform and smallest ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet9()
        self.projection_head = SimCLRProjectionHead(64, 32, 8)


@zoo(
    "FDA",
    GROUP,
    batch="[[v0, v1], label]",
    views=lambda: FDATransform(
        FDAView1Transform(input_size=SIZE, gaussian_blur=0.0), FDAView2Transform(input_size=SIZE, gaussian_blur=0.0)
    ),
)
class FDA(TwoCalls):
    """SimCLR on views changed in the Fourier domain."""


@zoo("DCL", GROUP, batch="[[v0, v1], label]", views=two_views)
class DCL(TwoCalls):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = DCLLoss()


@zoo("DCLW", GROUP, batch="[[v0, v1], label]", views=two_views)
class DCLW(TwoCalls):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = DCLWLoss()


@zoo("MACL", GROUP, batch="[[v0, v1], label]", views=two_views)
class MACL(TwoCalls):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = MACLLoss()


@zoo("DirectCLR", GROUP, batch="[[v0, v1], label]", views=two_views)
class DirectCLR(TwoCalls):
    """No projector: the loss is on part of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.projection_head = nn.Identity()
        self.criterion = DirectCLRLoss(loss_dim=8)


@zoo(
    "MoCo v2 (memory bank, shuffled keys)",
    GROUP,
    batch="[[query, key], label]",
    views=two_views,
    teachers=("backbone_momentum", "projection_head_momentum"),
)
class MoCo:
    def __init__(self) -> None:
        super().__init__()
        self.backbone = cnn()
        self.projection_head = MoCoProjectionHead(DIM, DIM, 8)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(temperature=0.1, memory_bank_size=(64, 8))

    @torch.no_grad()
    def keys(self, x: Tensor) -> Tensor:
        x, order = batch_shuffle(x)
        return batch_unshuffle(self.projection_head_momentum(self.backbone_momentum(x)), order)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        query, key = batch[0]
        update_momentum(self.backbone, self.backbone_momentum, m=0.99)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.99)
        return self.criterion(self.projection_head(self.backbone(query)), self.keys(key))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)


@zoo("NNCLR", GROUP, batch="[[v0, v1], label]", views=two_views)
class NNCLR:
    def __init__(self) -> None:
        super().__init__()
        self.backbone = cnn()
        self.projection_head = NNCLRProjectionHead(DIM, DIM, 8)
        self.prediction_head = NNCLRPredictionHead(8, DIM, 8)
        self.memory_bank = NNMemoryBankModule(size=(64, 8))
        self.criterion = NTXentLoss()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projection_head(self.backbone(x))
        return z.detach(), self.prediction_head(z)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x0, x1 = batch[0]
        (z0, p0), (z1, p1) = self.forward(x0), self.forward(x1)
        z0, z1 = self.memory_bank(z0, update=False), self.memory_bank(z1, update=True)
        return 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


@zoo(
    "DenseCL",
    GROUP,
    batch="[[query, key], label]",
    views=two_views,
    teachers=("backbone_momentum", "local_momentum", "global_momentum"),
)
class DenseCL:
    """Feature maps; two heads of one shape, each with its own teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = feature_maps()
        self.projection_head_global = DenseCLProjectionHead(DIM, DIM, 8)
        self.projection_head_local = DenseCLProjectionHead(DIM, DIM, 8)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.global_momentum = copy.deepcopy(self.projection_head_global)
        self.local_momentum = copy.deepcopy(self.projection_head_local)
        for teacher in (self.backbone_momentum, self.global_momentum, self.local_momentum):
            deactivate_requires_grad(teacher)
        self.criterion_global = NTXentLoss(memory_bank_size=(64, 8))
        self.criterion_local = NTXentLoss(memory_bank_size=(64, 8))

    @staticmethod
    def embed(x: Tensor, backbone: nn.Module, globally: nn.Module, locally: nn.Module) -> tuple[Tensor, ...]:
        maps = backbone(x)
        tokens = maps.flatten(start_dim=2).permute(0, 2, 1)
        return tokens, globally(maps.mean(dim=(2, 3))), locally(tokens)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        query, key = batch[0]
        update_momentum(self.backbone, self.backbone_momentum, m=0.996)
        update_momentum(self.projection_head_global, self.global_momentum, m=0.996)
        update_momentum(self.projection_head_local, self.local_momentum, m=0.996)
        tokens, z, dense = self.embed(query, self.backbone, self.projection_head_global, self.projection_head_local)
        with torch.no_grad():
            key_tokens, key_z, key_dense = self.embed(
                key, self.backbone_momentum, self.global_momentum, self.local_momentum
            )
        key_dense = select_most_similar(tokens, key_tokens, key_dense)
        dense_loss = self.criterion_local(dense.flatten(end_dim=1), key_dense.flatten(end_dim=1))
        return 0.5 * (self.criterion_global(z, key_z) + dense_loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


class GridMasks:
    """DetCon's two views, each an image and the mask of a 2x2 grid."""

    def __init__(self) -> None:
        self.transform = DetConSTransform(grid_size=(2, 2), input_size=SIZE, kernel_size=(3, 3))

    def __call__(self, image: Any) -> Any:
        views = self.transform(V2.to_image(image), tv_tensors.Mask(torch.zeros(1, SIZE, SIZE, dtype=torch.int64)))
        return [(x.as_subclass(Tensor), mask.as_subclass(Tensor)) for x, mask in views]


def regions(maps: Tensor, mask: Tensor) -> Tensor:
    """Mean feature of each of the four grid cells, `[B, 4, C]`."""
    small = F.interpolate(mask.float(), size=maps.shape[-2:], mode="nearest").long().squeeze(1)
    return pool_masked(maps, small, num_cls=4).permute(0, 2, 1)


@zoo("DetCon-S", GROUP, batch="[[(v0, mask), (v1, mask)], label]", views=GridMasks)
class DetConS:
    """Features pooled over the cells of a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = feature_maps()
        self.projection_head = SimCLRProjectionHead(DIM, DIM, 8)
        self.criterion = DetConSLoss(gather_distributed=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        pooled = regions(self.backbone(x), mask)
        return self.projection_head(pooled.flatten(end_dim=1)).unflatten(0, pooled.shape[:2])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x0, mask0), (x1, mask1) = batch[0]
        labels = torch.arange(4).expand(len(x0), 4)
        return self.criterion(self.forward(x0, mask0), self.forward(x1, mask1), labels, labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


@zoo(
    "DetCon-B",
    GROUP,
    batch="[[(v0, mask), (v1, mask)], label]",
    views=GridMasks,
    called="online.backbone",
    own_steps=1,
    teachers=("target.backbone", "target.projector"),
)
class DetConB:
    """Student and teacher each a ModuleDict of backbone and projector."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.ModuleDict({"backbone": feature_maps(), "projector": SimCLRProjectionHead(DIM, DIM, 8)})
        self.target = copy.deepcopy(self.online)
        deactivate_requires_grad(self.target)
        self.predictor = BYOLPredictionHead(8, DIM, 8)
        self.criterion = DetConBLoss(gather_distributed=False)

    @staticmethod
    def embed(network: Any, x: Tensor, mask: Tensor) -> Tensor:
        pooled = regions(network["backbone"](x), mask)
        return network["projector"](pooled.flatten(end_dim=1)).unflatten(0, pooled.shape[:2])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        update_momentum(self.online, self.target, m=0.99)
        labels = torch.arange(4).expand(len(batch[1]), 4)
        z = [self.embed(self.online, x, mask) for x, mask in batch[0]]
        p0, p1 = (self.predictor(zi.flatten(end_dim=1)).unflatten(0, zi.shape[:2]) for zi in z)
        with torch.no_grad():
            t0, t1 = (self.embed(self.target, x, mask) for x, mask in batch[0])
        return self.criterion(p0, p1, t0, t1, labels, labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.online.parameters(), *self.predictor.parameters()], lr=0.06)


@zoo(
    "PIRL (jigsaw)",
    GROUP,
    batch="[[image, patches [B, 4, C, h, w]], label]",
    views=lambda: PIRLTransform(input_size=SIZE, n_grid=2),
)
class PIRL:
    """The image against its shuffled patches; the patches of all images in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = cnn()
        self.image_head = nn.Linear(DIM, 8)
        self.patch_head = nn.Linear(4 * DIM, 8)
        self.criterion = NegativeCosineSimilarity()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, patches = batch[0]
        z = self.image_head(self.backbone(image))
        parts = self.backbone(patches.flatten(end_dim=1)).reshape(len(image), -1)
        return self.criterion(z, self.patch_head(parts))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)
