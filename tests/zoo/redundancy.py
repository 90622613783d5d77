"""Methods that keep features apart by their statistics: no negatives, no teacher."""

from __future__ import annotations

from typing import Any

import torch
from lightly.loss import (
    BarlowTwinsLoss,
    EMPSSLLoss,
    FroSSLLoss,
    LeJEPALoss,
    VICRegLLoss,
    VICRegLoss,
    VISRegLoss,
    WMSELoss,
)
from lightly.models.modules import BarlowTwinsProjectionHead, LeJEPAProjectionHead
from lightly.models.modules.heads import VicRegLLocalProjectionHead, VICRegProjectionHead
from lightly.transforms import VICRegLTransform
from torch import Tensor, nn

from tests.zoo.case import zoo
from tests.zoo.contrastive import TwoCalls
from tests.zoo.data import SIZE, Views, multi_crop, two_views
from tests.zoo.networks import DIM, cnn, feature_maps, timm_vit

GROUP = "Redundancy reduction"


@zoo("Barlow Twins", GROUP, batch="[[v0, v1], label]", views=two_views)
class BarlowTwins(TwoCalls):
    def __init__(self) -> None:
        super().__init__()
        self.projection_head = BarlowTwinsProjectionHead(DIM, DIM, DIM)
        self.criterion = BarlowTwinsLoss()


@zoo("VICReg", GROUP, batch="[[v0, v1], label]", views=two_views)
class VICReg(TwoCalls):
    def __init__(self) -> None:
        super().__init__()
        self.projection_head = VICRegProjectionHead(DIM, DIM, DIM, num_layers=2)
        self.criterion = VICRegLoss()


@zoo("FroSSL", GROUP, batch="[[v0, v1], label]", views=two_views)
class FroSSL(TwoCalls):
    def __init__(self) -> None:
        super().__init__()
        self.projection_head = VICRegProjectionHead(DIM, DIM, 4, num_layers=2)
        self.criterion = FroSSLLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.criterion([self.forward(x) for x in batch[0]])


@zoo("W-MSE", GROUP, batch="[[v0, v1], label]", views=two_views)
class WMSE:
    """All views concatenated, one call, whitened."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = cnn()
        self.projection_head = VICRegProjectionHead(DIM, DIM, 2, num_layers=2)
        self.criterion = WMSELoss(embedding_dim=2, w_size=8, eps=0.1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.criterion(self.projection_head(self.backbone(torch.cat(batch[0]))))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@zoo("EMP-SSL", GROUP, batch="[[v0, ..., v7], label]", views=lambda: Views([SIZE] * 8))
class EMPSSL:
    """Many patches of one image, in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = cnn()
        self.projection_head = VICRegProjectionHead(DIM, DIM, 8, num_layers=2)
        self.criterion = EMPSSLLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views = batch[0]
        z = self.projection_head(self.backbone(torch.cat(views)))
        return self.criterion(list(z.chunk(len(views))))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class GlobalLocal:
    """Projections of global and of local crops, stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm_vit(dynamic_img_size=True, drop_path_rate=0.1)
        self.projection_head = LeJEPAProjectionHead(32, hidden_dim=16, output_dim=8, num_layers=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        projected = [self.forward(view) for view in batch[0]]
        return self.criterion(local_proj=torch.stack(projected[2:]), global_proj=torch.stack(projected[:2]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-4, weight_decay=5e-2)


@zoo("LeJEPA (ViT)", GROUP, batch="[2 global + 2 local crops, label]", views=multi_crop)
class LeJEPA(GlobalLocal):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = LeJEPALoss(sigreg_num_vectors=16)


@zoo("VISReg (ViT)", GROUP, batch="[2 global + 2 local crops, label]", views=multi_crop)
class VISReg(GlobalLocal):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = VISRegLoss(num_slices=16)


@zoo(
    "VICRegL",
    GROUP,
    batch="[2 global + 2 local crops + 4 grids [B, h, w, 2], label]",
    views=lambda: VICRegLTransform(
        global_crop_size=SIZE, local_crop_size=SIZE // 2, n_local_views=2, global_grid_size=8, local_grid_size=4
    ),
)
class VICRegL:
    """Global and local objectives; float grids beside the views."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = feature_maps()
        self.projection_head = BarlowTwinsProjectionHead(DIM, DIM, DIM)
        self.local_projector = VicRegLLocalProjectionHead(DIM, DIM, DIM)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.criterion = VICRegLLoss(num_matches=(4, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.backbone(x)
        z = self.projection_head(self.pool(maps).flatten(start_dim=1))
        return z, self.local_projector(maps.permute(0, 2, 3, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        parts = batch[0]
        views, grids = parts[:4], parts[4:]
        features = [self.forward(view) for view in views]
        return self.criterion(features[:2], grids[:2], features[2:], grids[2:])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.006)
