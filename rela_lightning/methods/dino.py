"""DINO, "Emerging properties in self-supervised vision transformers" (arXiv 2104.14294), on lightly's parts."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from rela_lightning.errors import check_positive
from rela_lightning.methods.base import in_float32
from rela_lightning.methods.momentum import MomentumMethod
from rela_lightning.methods.multiview import encode_together


class Prototypes(nn.Linear):
    """A linear layer without bias whose rows have length `scale`: weight normalisation that copies and pickles.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        unit: Keep every row's length at 1; else it is learnt.
    """

    def __init__(self, in_features: int, out_features: int, *, unit: bool) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = nn.Parameter(torch.ones(out_features, 1), requires_grad=not unit)

    def forward(self, features: Tensor) -> Tensor:
        """From `[B, in_features]` to `[B, out_features]`."""
        return linear(features, self.scale * normalize(self.weight, dim=1))


class DINO(MomentumMethod):
    """A student sorts every view as a teacher sorts the two large ones, by soft clusters learnt on the way.

    The loss is the cross-entropy of the student's softmax at `student_temperature` against the teacher's,
    centred and sharpened, averaged over all pairs of different views (eq. 3). The centre follows the teacher's
    mean output with momentum 0.9, over all devices.

    On ImageNet the paper has output_dim=65536, momentum=0.996, AdamW 5e-4 for each 256 images with weight decay
    rising from 0.04 to 0.4, gradients clipped at 3, batch 1024. arXiv 2405.14669 trains it without local crops.

    A batch starts with two global crops, then any number of local ones: `([v1, v2, local, ...], labels, ...)`
    or flat; what follows is ignored. Small crops need a backbone that takes several sizes (ResNets do; timm's
    ViTs with `backbone_kwargs={"dynamic_img_size": True}`).

    Args:
        backbone: Name for `build_backbone`, or a module whose output pools to features `[B, F]`.
        output_dim: Width K of the head's output.
        hidden_dim: Width of its two hidden layers.
        bottleneck_dim: Width before the last layer.
        batch_norm: Batch norm in the head, for ResNets: without it ours stayed at uniform outputs in short runs
            on small images. The paper's ViTs have none.
        norm_last_layer: Keep the rows of the last layer at length 1.
        freeze_last_layer: Epochs at the start in which the last layer is not trained.
        student_temperature: Divides the student's output; above 0.
        teacher_temperature: Divides the teacher's, after the warm-up; above 0.
        warmup_teacher_temperature: The teacher's at the start; above 0.
        warmup_teacher_epochs: Epochs in which it rises linearly.
        options: `momentum` and `momentum_end` of `MomentumMethod`; `optimizer`, `lr_scheduler` and the others of
            `Method`.

    Raises:
        ConfigError: For an unknown backbone or values out of range.
        DataError: If a batch does not start with two views of a size.

    Example:
        >>> module = DINO("lightly:resnet-9", output_dim=1024)  # with views="dino" of a data module
    """

    views = "dino"

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        output_dim: int = 4096,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        batch_norm: bool = True,
        norm_last_layer: bool = True,
        freeze_last_layer: int = 1,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_epochs: int = 30,
        **options: Any,
    ) -> None:
        check_positive(output_dim=output_dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim)
        check_positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
        check_positive(warmup_teacher_temperature=warmup_teacher_temperature)
        super().__init__(backbone, **options)
        self.min_rows = 2 if batch_norm else 1
        with warnings.catch_warnings():  # torch's old weight norm, replaced below
            warnings.simplefilter("ignore", FutureWarning)
            head = DINOProjectionHead(self.feature_dim, hidden_dim, bottleneck_dim, 1, batch_norm)
        head.last_layer = Prototypes(bottleneck_dim, output_dim, unit=norm_last_layer)
        self.projector, self.freeze_last_layer = head, freeze_last_layer
        self.add_teacher()
        self.criterion = DINOLoss(
            output_dim, warmup_teacher_temperature, teacher_temperature, warmup_teacher_epochs, student_temperature
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Move the teacher, then the cross-entropy between all pairs of views."""
        views = self.crops(batch)
        self.move_teacher()
        student = self.projector(encode_together(self, views)).chunk(len(views))
        teacher = self.teach(torch.cat(views[:2])).chunk(2)
        loss = in_float32(self.criterion, list(teacher), list(student), epoch=self.current_epoch)
        return self.log_loss(loss, len(views[0]))

    def on_after_backward(self) -> None:
        """Leave the last layer as it is in the first epochs."""
        if self.current_epoch < self.freeze_last_layer:
            self.projector.get_submodule("last_layer").zero_grad()
