"""SimSiam, "Exploring simple Siamese representation learning" (arXiv 2011.10566), on lightly's heads and loss."""

from __future__ import annotations

from typing import Any

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from torch import Tensor, nn

from rela_lightning.errors import check_positive
from rela_lightning.methods.base import Method, in_float32


class SimSiam(Method):
    """Each view predicts the other's projection, which gets no gradient: BYOL without a teacher.

    The loss is the paper's `-(cos(p1, z2) + cos(p2, z1)) / 2` (eq. 2), in `[-1, 1]`; -1 with features that do
    not differ between images is collapse.

    Defaults are the paper's heads: projector F -> 2048 -> 2048 -> 2048, predictor 2048 -> 512 -> 2048. It
    trains with SGD, momentum 0.9, rate 0.05 for each 256 images, weight decay 1e-4, batch 512.

    A batch starts with two views, `([v1, v2], labels, ...)` or `(v1, v2, ...)`; what follows is ignored.

    Args:
        backbone: Name for `build_backbone`, or a module whose output pools to features `[B, F]`.
        projector_dim: Width of the projector's layers and of the predictor's output.
        hidden_dim: Width of the predictor's hidden layer.
        options: `optimizer`, `lr_scheduler` and the others of `Method`.

    Raises:
        ConfigError: For an unknown backbone or values out of range.
        DataError: If a batch does not start with two views.

    Example:
        >>> module = SimSiam("lightly:resnet-9")
    """

    views = "simsiam"

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        projector_dim: int = 2048,
        hidden_dim: int = 512,
        **options: Any,
    ) -> None:
        check_positive(projector_dim=projector_dim, hidden_dim=hidden_dim)
        super().__init__(backbone, **options)
        self.projector = SimSiamProjectionHead(self.feature_dim, projector_dim, projector_dim)
        self.predictor = SimSiamPredictionHead(projector_dim, hidden_dim, projector_dim)
        self.criterion = NegativeCosineSimilarity()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The symmetric loss of the two views."""
        views = self.two_views(batch)
        z1, z2 = (self.projector(self(view)) for view in views)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        first, second = in_float32(self.criterion, p1, z2.detach()), in_float32(self.criterion, p2, z1.detach())
        return self.log_loss(0.5 * (first + second), len(views[0]))
