"""Methods whose teacher is a moving average of the student."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from rela_lightning.compat import planned_steps
from rela_lightning.errors import ConfigError
from rela_lightning.methods.base import Method
from rela_lightning.networks.encode import pooled


class MomentumMethod(Method):
    """Base of BYOL, DINO and MoCo: `teacher_backbone` and `teacher_projector` follow `backbone` and `projector`.

    A method builds its heads, among them `projector`, then calls `add_teacher`; each training step begins
    with `move_teacher`. The momentum rises by a cosine from `momentum` to `momentum_end` over the planned
    steps, as in BYOL (arXiv 2006.07733). It rises by the epoch, and ends an epoch short of `momentum_end`,
    for a stream that does not say how long it is, and stays at `momentum` where no end is planned.

    Args:
        backbone: See `Method`.
        momentum: Teacher momentum at the start, in `[0, 1]`.
        momentum_end: Teacher momentum at the end; None for a constant one.
        options: `optimizer`, `lr_scheduler` and the others of `Method`.

    Raises:
        ConfigError: For an unknown backbone or values out of range.

    Example:
        >>> from rela_lightning.methods import BYOL
        >>> module = BYOL("lightly:resnet-9", momentum=0.99, momentum_end=1.0)
        >>> isinstance(module, MomentumMethod)
        True
    """

    projector: nn.Module
    teacher_backbone: nn.Module
    teacher_projector: nn.Module

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        momentum: float = 0.99,
        momentum_end: float | None = 1.0,
        **options: Any,
    ) -> None:
        end = momentum if momentum_end is None else momentum_end
        if not (0 <= momentum <= 1 and 0 <= end <= 1):
            raise ConfigError("A momentum is out of range.", expected="0 to 1", found=f"{momentum}, {momentum_end}")
        super().__init__(backbone, **options)
        self.momentum, self.momentum_end = momentum, end
        self._moved_at: int | None = None

    def add_teacher(self) -> None:
        """Copy backbone and projector; the copies are not trained."""
        self.teacher_backbone = copy.deepcopy(self.backbone)
        self.teacher_projector = copy.deepcopy(self.projector)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_projector)

    def move_teacher(self) -> None:
        """One step of the moving average, once per optimizer step also where gradients are accumulated."""
        step = self.trainer.global_step
        if step == self._moved_at:
            return
        self._moved_at = step
        momentum = self._momentum_now()
        update_momentum(self.backbone, self.teacher_backbone, m=momentum)
        update_momentum(self.projector, self.teacher_projector, m=momentum)

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """The teacher's projections `[B, D]` of images `[B, C, H, W]`, without gradient."""
        projected: Tensor = self.teacher_projector(pooled(self.teacher_backbone, self.teacher_backbone(images), images))
        return projected

    def _momentum_now(self) -> float:
        step, steps, epochs = self.trainer.global_step, planned_steps(self.trainer), self.trainer.max_epochs or 0
        if math.isinf(steps) and epochs > 0:  # a stream: the epochs that are through are all there is to go by
            step, steps = self.trainer.current_epoch, epochs + 1
        if math.isinf(steps):
            return self.momentum
        momentum: float = cosine_schedule(min(step, int(steps)), int(steps), self.momentum, self.momentum_end)
        return momentum
