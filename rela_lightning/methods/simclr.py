"""SimCLR, "A simple framework for contrastive learning" (arXiv 2002.05709), on lightly's head and loss."""

from __future__ import annotations

from typing import Any

from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn

from rela_lightning.errors import check_positive
from rela_lightning.methods.base import GATHER, Method, in_float32
from rela_lightning.methods.multiview import encode_together


class SimCLR(Method):
    """Two views of an image agree; all other views in the batch, on all devices, are told apart from them.

    The loss is NT-Xent (eq. 1): the cross-entropy of finding a view's partner among the `2N - 1` others by
    `cos(z_i, z_j) / temperature`, mean over the `2N` views of the N images of all devices. Both views go
    through the backbone in one call, so that batch norm sees them together.

    Defaults are the paper's for CIFAR-10 (B.9): temperature 0.5, head F -> F -> 128. On ImageNet: temperature
    0.1, LARS with rate 0.3 for each 256 images, weight decay 1e-6, batch 4096.

    A batch starts with two views, `([v1, v2], labels, ...)` or `(v1, v2, ...)`; what follows is ignored.

    Args:
        backbone: Name for `build_backbone`, or a module whose output pools to features `[B, F]`.
        projector_dim: Width of the head's output.
        hidden_dim: Width of its hidden layers; None for F.
        projector_layers: Linear layers of the head; 3 in SimCLR v2 (arXiv 2006.10029).
        temperature: Divides the similarities; above 0.
        options: `optimizer`, `lr_scheduler` and the others of `Method`.

    Raises:
        ConfigError: For an unknown backbone or values out of range.
        DataError: If a batch does not start with two views.

    Example:
        >>> module = SimCLR("lightly:resnet-18", cifar_stem=True, temperature=0.2)
    """

    views = "simclr"

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        projector_dim: int = 128,
        hidden_dim: int | None = None,
        projector_layers: int = 2,
        temperature: float = 0.5,
        **options: Any,
    ) -> None:
        check_positive(projector_dim=projector_dim, hidden_dim=hidden_dim, temperature=temperature)
        check_positive(projector_layers=projector_layers - 1)
        super().__init__(backbone, **options)
        width = self.feature_dim
        self.projector = SimCLRProjectionHead(width, hidden_dim or width, projector_dim, num_layers=projector_layers)
        self.criterion = NTXentLoss(temperature, gather_distributed=GATHER)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """NT-Xent of the two views."""
        views = self.two_views(batch)
        first, second = self.projector(encode_together(self, views)).chunk(2)
        return self.log_loss(in_float32(self.criterion, first, second), len(views[0]))
