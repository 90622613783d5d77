"""Barlow Twins, "Self-supervised learning via redundancy reduction" (arXiv 2103.03230), on lightly's head."""

from __future__ import annotations

from typing import Any

from lightly.models.modules import BarlowTwinsProjectionHead
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from rela_lightning.errors import check_positive
from rela_lightning.methods.base import Method, in_float32


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Correlation `[D, D]` between the dimensions of two views' projections `[B, D]`, over the batch.

    Each view is standardised by its own mean and deviation (lightly's loss did so for both views at once before
    1.5.20).
    """
    first, second = (batch_norm(view, None, None, training=True) for view in (first, second))
    return first.T @ second / len(first)


def redundancy_loss(correlation: Tensor, redundancy_weight: float) -> Tensor:
    """`sum_i (1 - C_ii)^2 + redundancy_weight * sum_{i != j} C_ij^2` (eq. 1) of C `[D, D]`; scalar >= 0."""
    squares, diagonal = correlation.square(), correlation.diagonal()
    off_diagonal = squares.sum() - squares.diagonal().sum()
    return (1 - diagonal).square().sum() + redundancy_weight * off_diagonal


class BarlowTwins(Method):
    """The cross-correlation of two views' projections, over the batch, is pulled to the identity.

    The loss is `redundancy_loss` of C, the `cross_correlation` of each device's batch, averaged over the devices.

    The paper's head on ImageNet has projector_dim=8192 (150 million parameters); the default is for smaller
    backbones. It trains with LARS, rate 0.2 for each 256 images (0.0048 for biases and batch norm), weight decay
    1.5e-6, batch 2048.

    A batch starts with two views, `([v1, v2], labels, ...)` or `(v1, v2, ...)`; what follows is ignored.

    Args:
        backbone: Name for `build_backbone`, or a module whose output pools to features `[B, F]`.
        projector_dim: Width of the projector's three layers.
        redundancy_weight: Weight of the off-diagonal term, the paper's lambda.
        options: `optimizer`, `lr_scheduler` and the others of `Method`.

    Raises:
        ConfigError: For an unknown backbone or values out of range.
        DataError: If a batch does not start with two views.

    Example:
        >>> module = BarlowTwins("lightly:resnet-18", projector_dim=1024)
    """

    views = "barlow_twins"

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        projector_dim: int = 2048,
        redundancy_weight: float = 5e-3,
        **options: Any,
    ) -> None:
        check_positive(projector_dim=projector_dim, redundancy_weight=redundancy_weight)
        super().__init__(backbone, **options)
        self.projector = BarlowTwinsProjectionHead(self.feature_dim, projector_dim, projector_dim)
        self.redundancy_weight = redundancy_weight

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The redundancy-reduction loss of the two views."""
        views = self.two_views(batch)
        first, second = (self.projector(self(view)) for view in views)
        correlation = in_float32(cross_correlation, first, second)
        if self.trainer.world_size > 1:
            from torch.distributed.nn import functional as collectives  # with gradient, unlike torch.distributed

            correlation = collectives.all_reduce(correlation / self.trainer.world_size)  # type: ignore[no-untyped-call]
        return self.log_loss(redundancy_loss(correlation, self.redundancy_weight), len(views[0]))
