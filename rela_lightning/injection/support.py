"""What the callback can attach to; everything else is refused before work is lost."""

from __future__ import annotations

import inspect
import re
from typing import Any

from rela_lightning.errors import InjectionError

_TRIED = ("SingleDeviceStrategy", "DDPStrategy")
_UNTRIED = {
    "FSDPStrategy": "parameters are sharded: the backbone's gradients and the teachers' average were never tried so",
    "DeepSpeedStrategy": "the engine owns the backward pass and the optimizer step",
    "ModelParallelStrategy": "parameters are distributed tensors",
    "XLAStrategy": "lazy tensors: never run on a TPU",
    "SingleDeviceXLAStrategy": "lazy tensors: never run on a TPU",
    "XLAFSDPStrategy": "lazy tensors and sharded parameters",
}


def check_strategy(strategy: Any, *, allow_untested: bool) -> None:
    """Refuse strategies nobody has tried, by name and with the reason.

    Raises:
        InjectionError: Unless `allow_untested`.
    """
    names = [base.__name__ for base in type(strategy).__mro__]
    reason = next((_UNTRIED[name] for name in names if name in _UNTRIED), None)
    if allow_untested or (reason is None and any(name in _TRIED for name in names)):
        return
    raise InjectionError(
        f"ReLA was never tried under {names[0]}.",
        expected="one device, or ddp in any of its forms",
        found=f"{names[0]}: {reason or 'unknown to this package'}",
        do="pass allow_untested_strategy=True to try, and compare parameters across ranks",
    )


def check_step(module: Any) -> None:
    """Refuse a training step that fetches its own batches.

    Raises:
        InjectionError: For `training_step(dataloader_iter)`.
    """
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise InjectionError(
            "This module fetches its own batches, so their indices cannot be followed.",
            expected="training_step(self, batch, batch_idx)",
            found="training_step(self, dataloader_iter)",
            do="take the batch as an argument",
        )


def check_monitors(trainer: Any, module: Any) -> None:
    """Refuse a monitor on a metric that only the training step logs, where that step is left out for a while.

    Raises:
        InjectionError: Naming the callback and the metric.
    """
    try:
        source = inspect.getsource(inspect.unwrap(type(module).training_step))
    except (OSError, TypeError):  # written in a notebook cell or generated: nothing to read
        return
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        if (
            isinstance(monitor, str)
            and not trainer.enable_validation
            and re.search(rf"[\"']{re.escape(monitor)}[\"']", source)
        ):
            raise InjectionError(
                f"{type(callback).__name__} monitors {monitor!r}, which the training step logs, and the transport "
                "phase leaves that step out.",
                expected="a metric that is there from the first epoch, such as rela/loss or one of validation",
                found=monitor,
                do='pass step="swap_loss": the step is run for its logs and its loss is replaced',
            )
