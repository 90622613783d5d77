"""Optimizers as self-supervised papers set them: which parameters are decayed, and a rate that changes each step."""

from __future__ import annotations

import math
from typing import Any

from lightly.models.utils import get_weight_decay_parameters
from lightly.utils.scheduler import cosine_schedule
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rela_lightning.compat import planned_steps, steps_of_epochs
from rela_lightning.errors import ConfigError

__all__ = ["WarmupCosine", "parameter_groups", "with_scheduler"]


def parameter_groups(
    module: nn.Module, *, exclude_bias_and_norm: bool = False, bias_and_norm_lr: float | None = None
) -> list[Any]:
    """The trainable parameters of a module, in one group or in two, as an optimizer takes them.

    The second group holds biases, the parameters of normalisation layers, and whatever else has one dimension.

    Args:
        module: The module.
        exclude_bias_and_norm: No weight decay for the second group. lightly's LARS then leaves out the adaptation of
            their rate too, as SimCLR, BYOL, Barlow Twins and VICReg do.
        bias_and_norm_lr: Learning rate of the second group; None for that of the first.

    Returns:
        The parameters, where nothing sets the groups apart; else two groups as dicts, without an empty one.

    Example:
        >>> from torch import nn
        >>> weights, others = parameter_groups(nn.Linear(4, 2), exclude_bias_and_norm=True)
        >>> others["weight_decay"]
        0.0
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    apart: dict[str, float] = {"weight_decay": 0.0} if exclude_bias_and_norm else {}
    if bias_and_norm_lr is not None:
        apart["lr"] = bias_and_norm_lr
    if not apart:
        return trainable
    second = {id(parameter) for parameter in get_weight_decay_parameters([module])[1]}
    second |= {id(parameter) for parameter in trainable if parameter.ndim < 2}
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trainable if id(parameter) not in second]},
        {"params": [parameter for parameter in trainable if id(parameter) in second], **apart},
    ]
    return [group for group in groups if group["params"]]


class WarmupCosine(LRScheduler):
    """The rate rises linearly from 0, then falls by half a cosine until the end of the run, at each optimizer step.

    With w steps of warm-up and n in all, the rate at step t is `lr * t / w`, then `lr * (end + (1 - end) * (1 +
    cos(pi * (t - w) / (n - w - 1))) / 2)`: SimCLR (arXiv 2002.05709), BYOL (2006.07733), Barlow Twins (2103.03230).
    Steps are those of the optimizer: several batches each where gradients are accumulated. The length of the run is
    the trainer's and not kept in checkpoints: a run that is resumed with more epochs follows the longer curve.

    Our methods, `ReLAModule`, `LinearProbe` and `--lr_scheduler` of `rela fit` tell it the trainer; elsewhere call
    `follow`, and return `{"scheduler": ..., "interval": "step"}` from `configure_optimizers`.

    Args:
        optimizer: Whose groups, each with a rate of its own, are scheduled.
        warmup_epochs: Length of the rise, in epochs, whole or not; 0 for none. A shorter run only rises.
        end: Share of the rate at the last step, in `[0, 1]`: 0 for SimCLR and BYOL, 0.001 for Barlow Twins.

    Raises:
        ConfigError: For a value out of range, or a run without an end.

    Example:
        >>> import functools
        >>> from rela_lightning.methods import BYOL
        >>> module = BYOL("lightly:resnet-9", lr_scheduler=functools.partial(WarmupCosine, warmup_epochs=10))
    """

    def __init__(self, optimizer: Optimizer, *, warmup_epochs: float = 10.0, end: float = 0.0) -> None:
        if not (math.isfinite(warmup_epochs) and warmup_epochs >= 0):
            raise ConfigError("`warmup_epochs` is out of range.", expected="0 or more epochs", found=warmup_epochs)
        if not 0 <= end <= 1:
            raise ConfigError("`end` is out of range.", expected="a share of the rate, 0 to 1", found=end)
        self.warmup_epochs, self.end = warmup_epochs, end
        self._trainer: Any = None
        super().__init__(optimizer)

    def follow(self, trainer: Any) -> None:
        """Take the length of the run from its trainer.

        Raises:
            ConfigError: If the run has no end.
        """
        if trainer.max_epochs == -1 and trainer.max_steps == -1:
            raise _endless("max_epochs = -1 and max_steps = -1")
        self._trainer = trainer

    def get_lr(self) -> Any:  # list[float]; torch's annotation differs by release
        """Rates of the groups at this step."""
        share = self._share(self.last_epoch)
        return [base * share for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The number of the step and the rates; the lengths are those of the config."""
        own = ("warmup_epochs", "end", "_trainer")
        return {name: value for name, value in super().state_dict().items() if name not in own}

    def _share(self, step: int) -> float:
        if step == 0:  # the data, and so the length of an epoch, are not known yet
            return 0.0 if self.warmup_epochs else 1.0
        steps, warmup = self._lengths()
        if step < warmup:
            return step / warmup
        share: float = cosine_schedule(min(step, steps) - warmup, steps - warmup, 1.0, self.end)
        return share

    def _lengths(self) -> tuple[int, int]:
        """Optimizer steps of the run, and of the warm-up."""
        if self._trainer is None:
            raise ConfigError(
                "WarmupCosine does not know how long the run is.",
                do="call its `follow(trainer)` in configure_optimizers",
            )
        batches, steps = self._trainer.num_training_batches, planned_steps(self._trainer)
        if math.isinf(batches) or not 0 < steps < math.inf:
            raise _endless(f"{batches} batches an epoch")
        return int(steps), min(round(steps_of_epochs(self._trainer, self.warmup_epochs)), int(steps))


def with_scheduler(module: Any, optimizer: Optimizer, scheduler: Any = None) -> Any:
    """What `configure_optimizers` of a module returns: `WarmupCosine` goes on at each step, others at each epoch.

    Args:
        module: The LightningModule, attached to its trainer.
        optimizer: Its optimizer.
        scheduler: Of that optimizer; None for none.

    Example:
        >>> class Mine(LightningModule):  # doctest: +SKIP
        ...     def configure_optimizers(self):
        ...         optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        ...         return with_scheduler(self, optimizer, WarmupCosine(optimizer, warmup_epochs=10))
    """
    if isinstance(scheduler, WarmupCosine):
        scheduler.follow(module.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
    return LightningCLI.configure_optimizers(module, optimizer, scheduler)


def _endless(found: str) -> ConfigError:
    return ConfigError(
        "A cosine needs a run whose length is known.",
        expected="trainer.max_epochs or trainer.max_steps, and a loader that knows its length",
        found=found,
        do="set trainer.max_epochs, and trainer.limit_train_batches for a loader without length; or use another "
        "lr_scheduler",
    )
