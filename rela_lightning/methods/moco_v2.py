"""MoCo v2, "Improved baselines with momentum contrastive learning" (arXiv 2003.04297), on lightly's parts."""

from __future__ import annotations

from typing import Any

import torch
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import batch_shuffle, batch_unshuffle
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from rela_lightning.errors import check_positive
from rela_lightning.methods.base import in_float32
from rela_lightning.methods.momentum import MomentumMethod
from rela_lightning.methods.queue import FeatureQueue


def queue_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE with negatives from a queue (eq. 1 of MoCo, arXiv 1911.05722).

    The cross-entropy of picking a query's key among itself and the queue by `cos / temperature`.

    Args:
        queries: `[B, D]`.
        keys: `[B, D]`, the positives.
        queue: `[K, D]`, the negatives, of length 1.
        temperature: Above 0.

    Returns:
        Scalar >= 0.
    """
    queries, keys = normalize(queries, dim=1), normalize(keys, dim=1)
    positive = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, queries @ queue.T], dim=1) / temperature
    return cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


class MoCoV2(MomentumMethod):
    """A view is matched to the teacher's key of the other one among a queue of keys of earlier batches.

    The loss is InfoNCE (`queue_loss`), the first view as the query and the second as the key, one way as in the
    paper. On several devices the keys of all go into the queue, and images change places before the teacher
    sees them, so that batch norm cannot tell which belong together.

    Defaults suit small data sets; the paper has queue_size=65536 and momentum=0.999, and like here head
    F -> 2048 -> 128 and temperature 0.2. It trains with SGD, momentum 0.9, rate 0.03 for each 256 images, weight
    decay 1e-4, batch 256.

    A batch starts with two views, `([v1, v2], labels, ...)` or `(v1, v2, ...)`; what follows is ignored.

    Args:
        backbone: Name for `build_backbone`, or a module whose output pools to features `[B, F]`.
        projector_dim: Width of the head's output.
        hidden_dim: Width of its hidden layer.
        temperature: Divides the similarities; above 0.
        queue_size: Keys held as negatives. At least a few batches, and fewer than there are images: an
            image should not meet its own key there.
        momentum: Teacher momentum at the start, in `[0, 1]`.
        momentum_end: Teacher momentum at the end; None for a constant one.
        options: `optimizer`, `lr_scheduler` and the others of `Method`.

    Raises:
        ConfigError: For an unknown backbone or values out of range.
        DataError: If a batch does not start with two views.

    Example:
        >>> module = MoCoV2("lightly:resnet-9", queue_size=4096)
    """

    views = "moco"
    min_rows = 1

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        projector_dim: int = 128,
        hidden_dim: int = 2048,
        temperature: float = 0.2,
        queue_size: int = 4096,
        momentum: float = 0.99,
        momentum_end: float | None = None,
        **options: Any,
    ) -> None:
        check_positive(projector_dim=projector_dim, hidden_dim=hidden_dim)
        check_positive(temperature=temperature, queue_size=queue_size)
        super().__init__(backbone, momentum=momentum, momentum_end=momentum_end, **options)
        self.projector = MoCoProjectionHead(self.feature_dim, hidden_dim, projector_dim)
        self.add_teacher()
        self.queue = FeatureQueue(queue_size, projector_dim)
        self.temperature = temperature

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Move the teacher, then InfoNCE against the queue, then the keys join it."""
        first, second = self.two_views(batch)
        self.move_teacher()
        queries = self.projector(self(first))
        if self.trainer.world_size > 1:
            shuffled, order = batch_shuffle(second, distributed=True)
            keys = batch_unshuffle(self.teach(shuffled), order, distributed=True)
        else:  # the order of rows makes no difference to one device
            keys = self.teach(second)
        loss = in_float32(queue_loss, queries, keys, self.queue.rows.clone(), self.temperature)
        self.queue.push(normalize(self.of_all_devices(keys), dim=1))
        return self.log_loss(loss, len(first))
