"""VICReg, "Variance-invariance-covariance regularization" (arXiv 2105.04906), on lightly's head and loss."""

from __future__ import annotations

from typing import Any

from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor, nn

from rela_lightning.errors import check_positive
from rela_lightning.methods.base import GATHER, Method, in_float32


class VICReg(Method):
    """Two views' projections agree, keep their variance, and have no covariance between dimensions.

    The loss is `invariance_weight * s + variance_weight * (v(Z) + v(Z')) / 2 + covariance_weight * (c(Z) +
    c(Z'))`, as in the paper's code: s is the squared distance of the views, mean over batch and dimensions (the
    paper's eq. 5 sums over dimensions); v the mean over dimensions of `max(0, 1 - std)`, std unbiased with 1e-4
    added to the variance; c the sum of squared covariances off the diagonal over the number of dimensions.
    Variance and covariance are over the batches of all devices.

    The paper's head on ImageNet has projector_dim=8192; the default is for smaller backbones. It trains with
    LARS, rate 0.2 for each 256 images, weight decay 1e-6, batch 2048.

    A batch starts with two views, `([v1, v2], labels, ...)` or `(v1, v2, ...)`; what follows is ignored.

    Args:
        backbone: Name for `build_backbone`, or a module whose output pools to features `[B, F]`.
        projector_dim: Width of the projector's layers.
        projector_layers: Linear layers of the projector.
        invariance_weight: The paper's lambda.
        variance_weight: The paper's mu.
        covariance_weight: The paper's nu.
        options: `optimizer`, `lr_scheduler` and the others of `Method`.

    Raises:
        ConfigError: For an unknown backbone or values out of range.
        DataError: If a batch does not start with two views.

    Example:
        >>> module = VICReg("lightly:resnet-9", projector_dim=512)
    """

    views = "vicreg"

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        projector_dim: int = 2048,
        projector_layers: int = 3,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        **options: Any,
    ) -> None:
        check_positive(projector_dim=projector_dim, projector_layers=projector_layers - 1)
        check_positive(
            invariance_weight=invariance_weight, variance_weight=variance_weight, covariance_weight=covariance_weight
        )
        super().__init__(backbone, **options)
        self.projector = VICRegProjectionHead(self.feature_dim, projector_dim, projector_dim, projector_layers)
        self.criterion = VICRegLoss(invariance_weight, variance_weight, covariance_weight, gather_distributed=GATHER)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The three terms for the two views."""
        views = self.two_views(batch)
        first, second = (self.projector(self(view)) for view in views)
        return self.log_loss(in_float32(self.criterion, first, second), len(views[0]))
