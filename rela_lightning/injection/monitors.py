"""Metrics that only the training step logs, in a phase that leaves that step out: whoever monitors one waits."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from rela_lightning.errors import ConfigError
from rela_lightning.injection.patch import Patches
from rela_lightning.schedules import Schedule

LOSS = "rela/loss"
_LAST = 0.999  # of the budget


class Monitors:
    """Holds back what monitors a metric that is not there, or no longer, in epochs without a step of the module.

    Nobody is told a number: early stopping loses no patience, no checkpoint counts as the best, no learning rate falls.
    Numbers that training steps logged in earlier epochs are taken out of `trainer.callback_metrics`.

    Args:
        trainer: The Trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._logged: set[str] = set()  # in training steps, ever
        self._fresh: set[str] = set()  # in this epoch
        self._inside, self._ran = False, True
        self._strict: list[tuple[Any, bool]] = []
        self._told: set[str] = set()

    def attach(self, patches: Patches, module: Any) -> None:
        """Listen to what steps log, and stand before the callbacks that monitor something."""
        patches.wrap(module, "log", self._log)
        for callback in self._trainer.callbacks:
            if isinstance(getattr(callback, "monitor", None), str):
                for hook in ("on_train_epoch_end", "on_validation_end"):
                    patches.wrap(callback, hook, _Held(self, callback))

    def attach_schedulers(self) -> None:
        """The same for schedulers that read a metric: Lightning lets those that are not `strict` skip it."""
        read = [config for config in self._trainer.lr_scheduler_configs if config.reduce_on_plateau]
        self._strict = [(config, config.strict) for config in read]

    def detach(self) -> None:
        """Give schedulers their strictness back."""
        for config, strict in self._strict:
            config.strict = strict
        self._strict = []

    def start_epoch(self) -> None:
        """No step of the module has run in this epoch."""
        self._fresh, self._ran = set(), False
        for config, _ in self._strict:
            config.strict = False

    def start_step(self) -> None:
        """A training step begins, the module's or ours."""
        self._inside = True

    def end_step(self, *, own: bool) -> None:
        """A training step is over; `own`: it was the module's."""
        self._inside = False
        if own and not self._ran:
            self._ran = True
            for config, strict in self._strict:
                config.strict = strict

    def drop_stale(self) -> None:
        """At the end of an epoch: take out what training steps have logged before, and not in this one."""
        for name in self._logged - self._fresh:
            for suffix in ("", "_step", "_epoch"):
                self._trainer.callback_metrics.pop(name + suffix, None)

    def waits(self, watcher: Any) -> bool:
        """Whether a callback has nothing to look at, because no step of the module has run."""
        if self._ran or self._trainer.sanity_checking:
            return False
        self.drop_stale()
        waits = watcher.monitor not in self._trainer.callback_metrics
        if waits and watcher.monitor not in self._told:
            self._told.add(watcher.monitor)
            warnings.warn(
                f"{type(watcher).__name__} waits for {watcher.monitor!r}: nothing has logged it yet, and the transport "
                'phase leaves the training step out. step="swap_loss" runs that step for its logs.',
                stacklevel=2,
            )
        return waits

    def _log(self, original: Any, name: str, *args: Any, **kwargs: Any) -> None:
        if self._inside:
            self._logged.add(name)
            self._fresh.add(name)
        original(name, *args, **kwargs)


class _Held:
    """A hook of a callback that monitors something, skipped while that has to wait."""

    def __init__(self, monitors: Monitors, watcher: Any) -> None:
        self._monitors, self._watcher = monitors, watcher

    def __call__(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        return None if self._monitors.waits(self._watcher) else original(*args, **kwargs)


def check_monitors(schedule: Schedule, watchers: Iterable[Any]) -> None:
    """Refuse to monitor the transport loss where it ends before training does.

    Args:
        schedule: Whether it ends.
        watchers: Callbacks, or scheduler configurations that read a metric.

    Raises:
        ConfigError: Naming the one that does.
    """
    if not schedule.adaptive and schedule.weights(_LAST).transport > 0.0:
        return
    found = next((type(watcher).__name__ for watcher in watchers if getattr(watcher, "monitor", None) == LOSS), None)
    if found is not None:
        raise ConfigError(
            f"{found} monitors {LOSS}, which ends with the transport phase.",
            expected="a metric of the whole run: one of validation or of the module's own step, or of a probe, such as "
            "knn/top1",
            found=f"{LOSS}, under {type(schedule).__name__}: the best checkpoint would always be one of the transport "
            "phase, and early stopping would end the run there",
            do="monitor another metric, or keep the transport loss to the end (Mix, TransportOnly)",
        )
