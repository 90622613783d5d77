"""MoCo v3, "An empirical study of training self-supervised vision transformers" (arXiv 2104.02057)."""

from __future__ import annotations

from typing import Any

import torch
from lightly.models.modules import MoCoProjectionHead
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from rela_lightning.errors import check_positive
from rela_lightning.methods.base import in_float32
from rela_lightning.methods.momentum import MomentumMethod


def batch_contrast(queries: Tensor, keys: Tensor, temperature: float, first_row: int = 0) -> Tensor:
    """InfoNCE within a batch: `2 * temperature *` the cross-entropy of picking a query's own key (Algorithm 1).

    Args:
        queries: `[B, D]`.
        keys: `[N, D]`, those of all devices.
        temperature: Above 0.
        first_row: Row of `keys` that belongs to the first query.

    Returns:
        Scalar >= 0.
    """
    logits = normalize(queries, dim=1) @ normalize(keys, dim=1).T / temperature
    own = torch.arange(first_row, first_row + len(queries), device=queries.device)
    return 2 * temperature * cross_entropy(logits, own)


class MoCoV3(MomentumMethod):
    """A view's prediction is matched to the teacher's key of the other one among the keys of the batch.

    The loss is the symmetric InfoNCE of the paper's Algorithm 1 (`batch_contrast`), negatives being the other
    images of the batch on all devices: no queue, so the batch should be large.

    Defaults are the paper's heads, F -> 4096 -> 4096 -> 256 and a predictor 256 -> 4096 -> 256, all with batch
    norm. On ImageNet: momentum=0.99, temperature 0.2 for ViT and 1.0 for ResNet-50 (with projector_layers=2), batch
    4096; AdamW 1.5e-4 for each 256 images with weight decay 0.1 for ViT, LARS 0.3 for each 256 for ResNet-50, and
    the ViT's patch embedding frozen.

    A batch starts with two views, `([v1, v2], labels, ...)` or `(v1, v2, ...)`; what follows is ignored.

    Args:
        backbone: Name for `build_backbone`, or a module whose output pools to features `[B, F]`.
        projector_dim: Width of both heads' output.
        hidden_dim: Width of both heads' hidden layers.
        projector_layers: Linear layers of the projector.
        temperature: Divides the similarities; above 0.
        options: `momentum` and `momentum_end` of `MomentumMethod`; `optimizer`, `lr_scheduler` and the others of
            `Method`.

    Raises:
        ConfigError: For an unknown backbone or values out of range.
        DataError: If a batch does not start with two views.

    Example:
        >>> module = MoCoV3("lightly:resnet-9", momentum=0.99)
    """

    views = "byol"

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        projector_dim: int = 256,
        hidden_dim: int = 4096,
        projector_layers: int = 3,
        temperature: float = 0.2,
        **options: Any,
    ) -> None:
        check_positive(projector_dim=projector_dim, hidden_dim=hidden_dim, temperature=temperature)
        check_positive(projector_layers=projector_layers - 1)
        super().__init__(backbone, **options)
        self.projector = MoCoProjectionHead(
            self.feature_dim, hidden_dim, projector_dim, num_layers=projector_layers, batch_norm=True
        )
        self.predictor = MoCoProjectionHead(projector_dim, hidden_dim, projector_dim, batch_norm=True)
        self.add_teacher()
        self.temperature = temperature

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Move the teacher, then InfoNCE both ways round."""
        views = self.two_views(batch)
        self.move_teacher()
        q1, q2 = (self.predictor(self.projector(self(view))) for view in views)
        k1, k2 = (self.of_all_devices(self.teach(view)) for view in views)
        first_row = self.global_rank * len(q1)
        first = in_float32(batch_contrast, q1, k2, self.temperature, first_row)
        second = in_float32(batch_contrast, q2, k1, self.temperature, first_row)
        return self.log_loss(first + second, len(views[0]))
