"""Callbacks and schedulers that monitor a metric wait while nobody logs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from rela_lightning.compat import SAVE_BEST
from rela_lightning.errors import ConfigError
from rela_lightning.injection.patch import Patches
from rela_lightning.schedules import Schedule

_OURS = "rela/"
_READS = ("on_train_epoch_end", "on_validation_end")
_LAST_STEP = 0.999  # of the budget: a loss that fades out until 1 is logged in each step before


class Logging(NamedTuple):
    """What is logged at the moment."""

    own: bool
    """Whether the module's own step is run, and logs what it logs."""
    transport: bool
    """Whether there is a transport loss."""


class Monitors:
    """Whoever has a `monitor`: early stopping, checkpoints of the best, plateau schedulers.

    In the transport phase the module's own step may be left out, and with it what it logs. Nobody can tell beforehand
    which metrics these are; so whoever would read a metric that is missing, or is still the one from before the phase
    (with a schedule that goes back to transport), is not asked until it is logged again or the step is run. Metrics of
    validation are there, and are read as ever. The same holds for `rela/loss` in phases without it.

    Args:
        trainer: The Trainer.
        module: The user's module.
        schedule: The schedule.
        logging: Tells what is logged at the moment.

    Raises:
        ConfigError: If a callback monitors a metric of ours that ends before the run does.
    """

    def __init__(self, trainer: Any, module: Any, schedule: Schedule, logging: Callable[[], Logging]) -> None:
        self._trainer, self._module, self._schedule, self._logging = trainer, module, schedule, logging
        self._warned: set[str] = set()
        self._strict: list[tuple[Any, bool]] = []
        self._now: Logging | None = None
        self._before: dict[str, Any] = {}  # metrics from before the phase: an object that is still there is old
        self._mid_epoch = False  # whether the phase began in the current epoch, whose end still brings metrics of both
        self._refuse_ours(trainer.callbacks)

    def attach(self, patches: Patches) -> None:
        """Stand between the callbacks and their metrics."""
        for callback in self._trainer.callbacks:
            if isinstance(getattr(callback, "monitor", None), str):
                hooks = [SAVE_BEST] if hasattr(callback, SAVE_BEST) else _READS
                for name in hooks:
                    patches.wrap(callback, name, self._unless_old(callback))

    def attach_schedulers(self, patches: Patches) -> None:
        """The same for plateau schedulers, which exist from the start of `fit` on.

        Raises:
            ConfigError: If one monitors a metric of ours that ends before the run does.
        """
        plateaus = [config for config in self._trainer.lr_scheduler_configs if config.reduce_on_plateau]
        self._refuse_ours(plateaus)
        self._strict = [(config, config.strict) for config in plateaus]
        if plateaus:
            patches.wrap(self._module, "lr_scheduler_step", self._step_unless_old)

    def start_epoch(self) -> None:
        """At the start of an epoch."""
        self.update()
        if self._mid_epoch:
            self._before, self._mid_epoch = dict(self._trainer.callback_metrics), False

    def update(self) -> None:
        """Before a step: note the metrics of a phase that is over; let schedulers do without theirs meanwhile."""
        now = self._logging()
        if now == self._now:
            return
        if self._now is not None:
            self._before, self._mid_epoch = dict(self._trainer.callback_metrics), True
        self._now = now
        for config, strict in self._strict:
            config.strict = strict and now.own

    def detach(self) -> None:
        """Give schedulers their own strictness back."""
        for config, strict in self._strict:
            config.strict = strict
        self._strict = []

    def _is_old(self, monitor: str) -> bool:
        """Whether nobody logs a metric, and what there is of it is from before the phase, or nothing."""
        now = self._logging()
        if now.transport if monitor.startswith(_OURS) else now.own:
            return False
        value = self._trainer.callback_metrics.get(monitor)
        return value is None or value is self._before.get(monitor)

    def _unless_old(self, callback: Any) -> Callable[..., Any]:
        def read(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if callback.monitor is None or not self._is_old(callback.monitor):
                return original(*args, **kwargs)
            self._warn_once(type(callback).__name__, callback.monitor)
            return None

        return read

    def _step_unless_old(self, original: Callable[..., Any], scheduler: Any, metric: Any) -> Any:
        monitors = [config.monitor for config, _ in self._strict if config.scheduler is scheduler]
        return None if monitors and self._is_old(monitors[0]) else original(scheduler, metric)

    def _warn_once(self, owner: str, monitor: str) -> None:
        if owner not in self._warned:
            self._warned.add(owner)
            rank_zero_warn(
                f"{owner} waits for {monitor!r}, which is not logged while "
                + (
                    "there is no transport loss. "
                    if monitor.startswith(_OURS)
                    else "the transport phase leaves the module's own step out. "
                    'step="swap_loss" runs that step for its logs; '
                )
                + "KNNProbe and OnlineLinearProbe log an accuracy in every phase."
            )

    @property
    def _ours_end(self) -> bool:
        """Whether the transport loss ends before the run does, as far as can be known."""
        return self._schedule.adaptive or self._schedule.is_over(_LAST_STEP)

    def _refuse_ours(self, owners: Iterable[Any]) -> None:
        for owner in owners:
            monitor = getattr(owner, "monitor", None)
            if isinstance(monitor, str) and monitor.startswith(_OURS) and self._ours_end:
                raise ConfigError(
                    f"{type(owner).__name__} monitors {monitor!r}, which ends when the transport phase does: "
                    "from then on it would go by an old number.",
                    expected="a metric of the whole run, such as knn/top1 or probe/top1, or one of validation",
                    found=f"{monitor!r} with {type(self._schedule).__name__}, which hands over",
                    do="add KNNProbe() or OnlineLinearProbe(num_classes=...), which log in every phase",
                )
