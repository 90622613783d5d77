"""Batches of every shape, and rows put together in every order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms.v2 import functional as V2

from tests.zoo.case import zoo
from tests.zoo.data import SIZE, Views, paint, two_views
from tests.zoo.networks import DIM, cnn

GROUP = "Batch shapes and row orders"


class Contrast:
    """SimCLR that says how it takes views from its batch, and in which order rows enter the backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = cnn()
        self.head = SimCLRProjectionHead(DIM, DIM, 8)
        self.criterion = NTXentLoss()

    def views(self, batch: Any) -> list[Tensor]:
        return list(batch[0])

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return list(self.head(self.backbone(torch.cat(views))).chunk(len(views)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.criterion(*self.embed(self.views(batch)))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


@zoo("views in a tuple", GROUP, batch="(v0, v1)", views=two_views, wrap=lambda views, label, row: tuple(views))
class InTuple(Contrast):
    def views(self, batch: Any) -> list[Tensor]:
        return list(batch)


@zoo(
    "views in a dict",
    GROUP,
    batch='{"view1", "view2", "label", "name"}',
    views=two_views,
    wrap=lambda views, label, row: {"view1": views[0], "view2": views[1], "label": label, "name": f"{row}.png"},
)
class InDict(Contrast):
    """Also returns its loss in a dict."""

    def views(self, batch: Any) -> list[Tensor]:
        return [batch["view1"], batch["view2"]]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "labels": batch["label"]}


@zoo(
    "index first, labels last",
    GROUP,
    batch="[index, [v0, v1], label]",
    views=two_views,
    wrap=lambda views, label, row: (row, views, label),
)
class IndexFirst(Contrast):
    def views(self, batch: Any) -> list[Tensor]:
        return list(batch[1])


@zoo(
    "one dict a view",
    GROUP,
    batch='{"views": [{"image", "label"}, ...]}',
    views=two_views,
    wrap=lambda views, label, row: {"views": [{"image": view, "label": label} for view in views]},
)
class ListOfDicts(Contrast):
    def views(self, batch: Any) -> list[Tensor]:
        return [view["image"] for view in batch["views"]]


@dataclass
class Sample:
    """A batch as a dataclass."""

    first: Tensor
    second: Tensor
    label: Tensor

    def to(self, device: Any, **_: Any) -> Sample:
        return Sample(self.first.to(device), self.second.to(device), self.label.to(device))


def as_dataclass(samples: Any) -> Sample:
    """Collate into a dataclass."""
    views, labels = default_collate(samples)
    return Sample(*views, labels)


@zoo(
    "a dataclass",
    GROUP,
    batch="Sample(first, second, label)",
    views=two_views,
    collate=as_dataclass,
)
class Dataclass(Contrast):
    def views(self, batch: Any) -> list[Tensor]:
        return [batch.first, batch.second]


@zoo(
    "views stacked",
    GROUP,
    batch="[[B, V, C, H, W], label]",
    views=lambda: Views([SIZE, SIZE], stack=True),
)
class Stacked(Contrast):
    """The batch reaches the backbone interleaved: a0 a1 b0 b1."""

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        interleaved = torch.stack(views, dim=1).flatten(end_dim=1)
        return list(self.head(self.backbone(interleaved)).unflatten(0, (-1, len(views))).unbind(1))

    def views(self, batch: Any) -> list[Tensor]:
        return list(batch[0].unbind(1))


@zoo("views concatenated", GROUP, batch="[[v0, v1], label]", views=two_views)
class Concatenated(Contrast):
    """One call on torch.cat of the views."""


def concatenated(samples: Any) -> Any:
    """Views one after the other, as one tensor `[2B, C, H, W]`."""
    views, labels = default_collate(samples)
    return torch.cat(views), labels


def interleaved(samples: Any) -> Any:
    """Views of one image side by side, as one tensor `[2B, C, H, W]`."""
    views, labels = default_collate(samples)
    return torch.stack(views, dim=1).flatten(end_dim=1), labels


CAT = {"row_layout": "cat"}
INTERLEAVED = {"row_layout": "interleaved"}


@zoo(
    "views concatenated by the loader",
    GROUP,
    batch="[[2B, C, H, W], label]",
    views=two_views,
    collate=concatenated,
    needs={"switch": [CAT], "mix": [CAT]},
)
class ConcatenatedBatch(Contrast):
    def views(self, batch: Any) -> list[Tensor]:
        return list(batch[0].chunk(2))


@zoo(
    "views interleaved by the loader",
    GROUP,
    batch="[[2B, C, H, W], label]",
    views=two_views,
    collate=interleaved,
    needs={"switch": [INTERLEAVED], "mix": [INTERLEAVED]},
)
class InterleavedBatch(Contrast):
    def views(self, batch: Any) -> list[Tensor]:
        return [batch[0]]

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return list(self.head(self.backbone(views[0])).unflatten(0, (-1, 2)).unbind(1))


@zoo("one call for each view", GROUP, batch="[[v0, v1], label]", views=two_views)
class SeparateCalls(Contrast):
    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return [self.head(self.backbone(view)) for view in reversed(views)]


@zoo("rows permuted in the step", GROUP, batch="[[v0, v1], label]", views=two_views)
class Permuted(Contrast):
    def embed(self, views: list[Tensor]) -> list[Tensor]:
        order = torch.randperm(2 * len(views[0]))
        z = self.head(self.backbone(torch.cat(views)[order]))
        return list(z[order.argsort()].chunk(2))


@zoo("rows permuted from the second epoch on", GROUP, batch="[[v0, v1], label]", views=two_views)
class PermutedLater(Contrast):
    def embed(self, views: list[Tensor]) -> list[Tensor]:
        rows = 2 * len(views[0])
        order = torch.randperm(rows) if self.current_epoch else torch.arange(rows)
        z = self.head(self.backbone(torch.cat(views)[order]))
        return list(z[order.argsort()].chunk(2))


def erased(views: list[Tensor]) -> list[Tensor]:
    """Noise and erasing on the device; the painted corner stays."""
    changed = []
    for view in views:
        noise = 0.1 * torch.randn_like(view)
        noise[..., :4] = 0.0
        noisy = view + noise
        noisy[:, :, 8:16, 8:16] = 0.0
        changed.append(noisy)
    return changed


@zoo("views augmented in the step, one call each", GROUP, batch="[[v0, v1], label]", views=two_views)
class AugmentedApart(SeparateCalls):
    def views(self, batch: Any) -> list[Tensor]:
        return erased(super().views(batch))


@zoo(
    "views augmented in the step, then concatenated",
    GROUP,
    batch="[[v0, v1], label]",
    views=two_views,
    needs={"mix": [CAT]},
    note="pixels no longer tell which row is which",
)
class AugmentedConcatenated(Contrast):
    def views(self, batch: Any) -> list[Tensor]:
        return erased(super().views(batch))


@zoo(
    "views augmented in the step, then interleaved",
    GROUP,
    batch="[[v0, v1], label]",
    views=two_views,
    needs={"mix": [INTERLEAVED]},
    note="pixels no longer tell which row is which",
)
class AugmentedInterleaved(Stacked):
    def views(self, batch: Any) -> list[Tensor]:
        return erased(list(batch[0]))


@zoo(
    "views made on the device (on_after_batch_transfer)",
    GROUP,
    batch="[image, label] from the loader",
    views=lambda: Views(SIZE),
)
class OnDevice(Contrast):
    """One tensor leaves the loader; the module's hook makes two views of it."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        image, label = batch
        return [erased([image])[0], erased([image])[0]], label


class Bytes:
    """The image itself, as uint8 `[3, H, W]`, its row in a corner."""

    def __call__(self, image: Any) -> Tensor:
        return paint(V2.pil_to_tensor(image).float() / 255, image).mul(255).round().to(torch.uint8)


VIEWS, SWAP = {"views": ["0"]}, {"step": "swap_loss"}


@zoo(
    "uint8 images, made float in the step",
    GROUP,
    batch="[uint8 [B, C, H, W], label]",
    views=Bytes,
    needs={"switch": [VIEWS, SWAP, CAT], "mix": [VIEWS, CAT]},
    swaps=True,
)
class UInt8(Contrast):
    def views(self, batch: Any) -> list[Tensor]:
        x = batch[0].float() / 255
        return [x, x + torch.zeros_like(x).uniform_(0, 1e-3)]


class ImageAndMask:
    """One view and a float mask of the same size, as masked-image loaders give them."""

    def __init__(self) -> None:
        self.transform = Views(SIZE)

    def __call__(self, image: Any) -> Any:
        mask = (torch.rand(1, SIZE, SIZE) > 0.5).float()
        mask[:, 0, 0] = 1.0  # the painted row stays
        return {"image": self.transform(image), "mask": mask}


@zoo(
    "image beside a float mask",
    GROUP,
    batch='[{"image", "mask" [B, 1, H, W]}, label]',
    views=ImageAndMask,
)
class FloatMask(Contrast):
    def views(self, batch: Any) -> list[Tensor]:
        parts = batch[0]
        return [parts["image"], parts["image"] * parts["mask"]]

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return [self.head(self.backbone(view)) for view in views]
