"""Callbacks and schedulers that monitor a metric of the module's own step wait while that step is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from rela_lightning.compat import SAVE_BEST
from rela_lightning.errors import ConfigError
from rela_lightning.injection.patch import Patches
from rela_lightning.schedules import Schedule

_OURS = "rela/"
_READS = ("on_train_epoch_end", "on_validation_end")


class Monitors:
    """Whoever has a `monitor`: early stopping, checkpoints of the best, plateau schedulers.

    In the transport phase the module's own step may be left out, and with it what it logs. Nobody can tell beforehand
    which metrics these are; so whoever would read a metric while it is missing is not asked, until it is
    there or the step is run. Metrics of validation are there, and are read as ever.

    Args:
        trainer: The Trainer.
        schedule: The schedule.
        left_out: Whether the module's own step is left out at the moment.

    Raises:
        ConfigError: If a callback monitors a metric of ours that ends at the switch.
    """

    def __init__(self, trainer: Any, schedule: Schedule, left_out: Callable[[], bool]) -> None:
        self._trainer, self._schedule, self._left_out = trainer, schedule, left_out
        self._told: set[str] = set()
        self._strict: list[tuple[Any, bool]] = []
        self._refuse_ours(trainer.callbacks)

    def attach(self, patches: Patches) -> None:
        """Stand between the callbacks and their metrics."""
        for callback in self._trainer.callbacks:
            if isinstance(getattr(callback, "monitor", None), str):
                hooks = [SAVE_BEST] if hasattr(callback, SAVE_BEST) else _READS
                for name in hooks:
                    patches.wrap(callback, name, self._unless_missing(callback))

    def attach_schedulers(self) -> None:
        """The same for plateau schedulers, which exist from the start of `fit` on.

        Raises:
            ConfigError: If one monitors a metric of ours that ends at the switch.
        """
        plateaus = [config for config in self._trainer.lr_scheduler_configs if config.reduce_on_plateau]
        self._refuse_ours(plateaus)
        self._strict = [(config, config.strict) for config in plateaus]

    def update(self) -> None:
        """Before a step: let schedulers do without their metric while it may be missing."""
        for config, strict in self._strict:
            config.strict = strict and not self._left_out()

    def detach(self) -> None:
        """Give schedulers their own strictness back."""
        for config, strict in self._strict:
            config.strict = strict
        self._strict = []

    def _unless_missing(self, callback: Any) -> Callable[..., Any]:
        def read(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            missing = callback.monitor is not None and callback.monitor not in self._trainer.callback_metrics
            if not (missing and self._left_out()):
                return original(*args, **kwargs)
            self._tell(type(callback).__name__, callback.monitor)
            return None

        return read

    def _tell(self, owner: str, monitor: str) -> None:
        if owner not in self._told:
            self._told.add(owner)
            rank_zero_warn(
                f"{owner} waits for {monitor!r}, which is not there while the transport phase leaves the module's "
                'own step out. step="swap_loss" runs that step for its logs; KNNProbe and OnlineLinearProbe log an '
                "accuracy in every phase."
            )

    def _refuse_ours(self, owners: Iterable[Any]) -> None:
        for owner in owners:
            monitor = getattr(owner, "monitor", None)
            if isinstance(monitor, str) and monitor.startswith(_OURS) and self._schedule.hands_over:
                raise ConfigError(
                    f"{type(owner).__name__} monitors {monitor!r}, which ends when the transport phase does: "
                    "from then on it would go by an old number.",
                    expected="a metric of the whole run, such as knn/top1 or probe/top1, or one of validation",
                    found=f"{monitor!r} with {type(self._schedule).__name__}, which hands over",
                    do="add KNNProbe() or OnlineLinearProbe(num_classes=...), which log in every phase",
                )
