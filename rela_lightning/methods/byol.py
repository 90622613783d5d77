"""BYOL, "Bootstrap your own latent" (arXiv 2006.07733), on lightly's heads and loss."""

from __future__ import annotations

from typing import Any

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor, nn

from rela_lightning.errors import check_positive
from rela_lightning.methods.base import in_float32
from rela_lightning.methods.momentum import MomentumMethod


class BYOL(MomentumMethod):
    """A student predicts what a slowly moving teacher sees in another view of the same image.

    The loss is lightly's `-(cos(p1, z2) + cos(p2, z1)) / 2`, in `[-1, 1]`, logged as `train_loss`. BYOL's own,
    `(2 - 2 cos(p1, z2)) + (2 - 2 cos(p2, z1))`, is `4 + 4 *` this: the same minimum, gradients four times
    as large.

    Defaults are those of the authors' code of arXiv 2405.14669: AdamW 1e-3 with weight decay 1e-2 at a constant
    rate, heads F -> 2F -> 256, momentum 0.99. BYOL on ImageNet has hidden_dim=4096 and momentum=0.996, LARS with
    rate 0.2 for each 256 images, weight decay 1.5e-6, batch 4096.

    A batch starts with two views, `([v1, v2], labels, ...)` or `(v1, v2, ...)`; what follows is ignored.

    Args:
        backbone: Name for `build_backbone`, or a module whose output pools to features `[B, F]`.
        projector_dim: Width of both heads' output.
        hidden_dim: Width of both heads' hidden layer; None for 2F.
        options: `momentum` and `momentum_end` of `MomentumMethod`; `optimizer`, `lr_scheduler` and the others of
            `Method`.

    Raises:
        ConfigError: For an unknown backbone or values out of range.
        DataError: If a batch does not start with two views.

    Example:
        >>> module = BYOL("lightly:resnet-18", cifar_stem=True)
        >>> # L.Trainer(max_epochs=200, callbacks=[ReLACallback("targets/clip-b16")]).fit(module, data)
    """

    views = "byol"

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        projector_dim: int = 256,
        hidden_dim: int | None = None,
        **options: Any,
    ) -> None:
        check_positive(projector_dim=projector_dim, hidden_dim=hidden_dim)
        super().__init__(backbone, **options)
        hidden = hidden_dim or 2 * self.feature_dim
        self.projector = BYOLProjectionHead(self.feature_dim, hidden, projector_dim)
        self.predictor = BYOLPredictionHead(projector_dim, hidden, projector_dim)
        self.add_teacher()
        self.criterion = NegativeCosineSimilarity()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Move the teacher, then the symmetric loss of the two views."""
        views = self.two_views(batch)
        self.move_teacher()
        p1, p2 = (self.predictor(self.projector(self(view))) for view in views)
        z1, z2 = (self.teach(view) for view in views)
        loss = 0.5 * (in_float32(self.criterion, p1, z2) + in_float32(self.criterion, p2, z1))
        return self.log_loss(loss, len(views[0]))
