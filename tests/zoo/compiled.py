"""Compiled modules, and modules that recompute activations in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.case import zoo
from tests.zoo.data import two_views
from tests.zoo.networks import feature_maps
from tests.zoo.shapes import Contrast

GROUP = "Compiled and checkpointed"
TWO: dict[str, Any] = {"batch": "[[v0, v1], label]", "views": two_views}


@zoo("torch.compile'd backbone (eager)", GROUP, **TWO)
class CompiledEager(Contrast):
    backend = "eager"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.compile(self.backbone, backend=self.backend)


@zoo("torch.compile'd backbone (aot_eager)", GROUP, **TWO)
class CompiledAOT(CompiledEager):
    backend = "aot_eager"


@zoo("backbone.compile() in place", GROUP, **TWO)
class CompiledInPlace(Contrast):
    def __init__(self) -> None:
        super().__init__()
        self.backbone.compile(backend="eager")


@zoo("whole module compiled", GROUP, **TWO, finish=lambda module: torch.compile(module, backend="eager"))
class CompiledModule(Contrast):
    pass


class CheckpointedCNN(nn.Module):
    """Its body is recomputed in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = feature_maps()

    def forward(self, images: Tensor) -> Tensor:
        return checkpoint(self.body, images, use_reentrant=False).mean(dim=(2, 3))


@zoo("activation checkpointing inside the backbone", GROUP, **TWO)
class CheckpointedInside(Contrast):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = CheckpointedCNN()


@zoo("whole backbone checkpointed, non-reentrant", GROUP, **TWO)
class CheckpointedWhole(Contrast):
    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return [self.head(checkpoint(self.backbone, view, use_reentrant=False)) for view in views]


@zoo(
    "whole backbone checkpointed, reentrant",
    GROUP,
    **TWO,
    refused={"mix": "reentrant"},
    note="pass `use_reentrant=False` to torch",
)
class CheckpointedReentrant(Contrast):
    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return [self.head(checkpoint(self.backbone, view.requires_grad_(), use_reentrant=True)) for view in views]
