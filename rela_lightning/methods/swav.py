"""SwAV, "Contrasting cluster assignments" (arXiv 2006.09882), on lightly's head and loss."""

from __future__ import annotations

from typing import Any

import torch
from lightly.loss import SwaVLoss
from lightly.models.modules import SwaVProjectionHead
from lightly.models.utils import normalize_weight
from torch import Tensor, nn
from torch.nn.functional import normalize

from rela_lightning.errors import ConfigError, check_positive
from rela_lightning.methods.base import GATHER, Method, in_float32
from rela_lightning.methods.multiview import encode_together
from rela_lightning.methods.queue import FeatureQueue


class SwAV(Method):
    """Every view predicts the clusters that the other global crop is assigned to, evenly over the batch.

    Scores are cosines to prototypes. Sinkhorn iterations turn those of each global crop, over the batches of all
    devices, into assignments; the loss is the cross-entropy of every other view's softmax at `temperature`
    against them (eq. 2 and section 3.3). Prototypes are kept at length 1.

    Defaults are the paper's, on ImageNet: head F -> 2048 -> 128, 3000 prototypes, temperature 0.1, epsilon 0.05,
    3 iterations, LARS with rate 4.8 and weight decay 1e-6, batch 4096, prototypes frozen for an epoch; with batch
    256, queue_size=3840 from epoch 15.

    A batch starts with two global crops, then any number of local ones: `([v1, v2, local, ...], labels, ...)`
    or flat; what follows is ignored.

    Args:
        backbone: Name for `build_backbone`, or a module whose output pools to features `[B, F]`.
        projector_dim: Width of the head's output.
        hidden_dim: Width of its hidden layer.
        num_prototypes: Clusters; about ten times the expected classes, fewer than there are images.
        temperature: Divides the scores of the predicting view; above 0.
        epsilon: Smoothness of the assignments, at least 0.012, as exp(1 / epsilon) must be finite in float32;
            lower, as 0.03, where the loss stays at ln(num_prototypes).
        sinkhorn_iterations: Rounds that make assignments even.
        queue_size: Earlier projections, over all devices, that take part in the assignments; 0 for none. For
            batches much smaller than `num_prototypes`.
        queue_start: Epoch from which they do.
        freeze_prototypes: Epochs at the start in which prototypes are not trained.
        options: `optimizer`, `lr_scheduler` and the others of `Method`.

    Raises:
        ConfigError: For an unknown backbone or values out of range.
        DataError: If a batch does not start with two views of a size.

    Example:
        >>> module = SwAV("lightly:resnet-9", num_prototypes=300)  # with views="swav" of a data module
    """

    views = "swav"

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        projector_dim: int = 128,
        hidden_dim: int = 2048,
        num_prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        queue_size: int = 0,
        queue_start: int = 15,
        freeze_prototypes: int = 1,
        **options: Any,
    ) -> None:
        check_positive(projector_dim=projector_dim, hidden_dim=hidden_dim, num_prototypes=num_prototypes)
        check_positive(temperature=temperature, sinkhorn_iterations=sinkhorn_iterations)
        if not epsilon >= 0.012:
            raise ConfigError("`epsilon` is out of range.", expected="at least 0.012", found=epsilon)
        if queue_size < 0:
            raise ConfigError("`queue_size` is out of range.", expected="0 for no queue, or more", found=queue_size)
        super().__init__(backbone, **options)
        self.projector = SwaVProjectionHead(self.feature_dim, hidden_dim, projector_dim)
        self.prototypes = nn.Linear(projector_dim, num_prototypes, bias=False)
        self.queue = FeatureQueue(queue_size, 2 * projector_dim) if queue_size else None  # both global crops a row
        self.criterion = SwaVLoss(temperature, sinkhorn_iterations, epsilon, sinkhorn_gather_distributed=GATHER)
        self.queue_start, self.freeze_prototypes = queue_start, freeze_prototypes

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The swapped prediction of all views."""
        views = self.crops(batch)
        normalize_weight(self.prototypes.weight)
        projected = normalize(self.projector(encode_together(self, views)), dim=1)
        scores = list(self.prototypes(projected).chunk(len(views)))
        loss = in_float32(self.criterion, scores[:2], scores[2:], self._queue_scores())
        if self.queue is not None:
            self.queue.push(self.of_all_devices(torch.cat(projected.chunk(len(views))[:2], dim=1)))
        return self.log_loss(loss.squeeze(), len(views[0]))

    def on_after_backward(self) -> None:
        """Leave the prototypes as they are in the first epochs."""
        if self.current_epoch < self.freeze_prototypes:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def _queue_scores(self) -> list[Tensor] | None:
        """Scores of the queued projections, this device's share of them; None while they are not in use."""
        if self.queue is None or self.current_epoch < self.queue_start or not self.queue.full:
            return None
        share = self.queue.rows[self.global_rank :: self.trainer.world_size]
        return [self.prototypes(features) for features in share.chunk(2, dim=1)]
