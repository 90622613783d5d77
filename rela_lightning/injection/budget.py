"""How much of the planned budget is spent."""

from __future__ import annotations

import math
from typing import Any

from rela_lightning.compat import timers
from rela_lightning.errors import ConfigError
from rela_lightning.injection.passes import Passes, counted, epochs_done

_AGREED_EVERY = 20  # decisions: with several ranks, seconds are agreed on no more often


class Budget:
    """Share of the budget spent: the largest of steps, epochs and seconds, each over its plan.

    Resuming needs no state: Lightning restores the counters (and its Timer) itself. A callback that measures a budget
    of its own (samples seen, cost, energy) has a method `budget_share() -> float`: the share of it that is spent, the
    same on all ranks.

    Args:
        trainer: The Trainer, after its data are set up.
        passes: Counts passes over its images.

    Raises:
        ConfigError: If the Trainer plans no end.
    """

    def __init__(self, trainer: Any, passes: Passes) -> None:
        self._trainer, self._passes = trainer, passes
        self._asked = 0
        self._elapsed = 0.0
        limited = timers(trainer.callbacks)
        self._timer: Any = limited[0][0] if limited else None
        self._seconds = limited[0][1] if limited else math.inf
        self._clocks = [c.budget_share for c in trainer.callbacks if callable(getattr(c, "budget_share", None))]
        self._steps = _limit(trainer.max_steps)
        self._epochs = _limit(trainer.max_epochs)
        self._of_stream = math.isinf(float(trainer.num_training_batches))
        self._by_epochs_alone = math.isinf(self._steps) and self._timer is None and not self._clocks
        if self._by_epochs_alone and math.isinf(self._epochs):
            raise ConfigError(
                "A schedule needs to know how long training will last.",
                expected="a Trainer with max_epochs, max_steps or max_time",
                found="none of them finite",
                do="pass Trainer(max_epochs=...)",
            )

    @property
    def knows_whole_epochs_only(self) -> bool:
        """Whether the data have no length, and nobody counted their images."""
        return self._of_stream and not self._passes.images

    @property
    def is_one_epoch(self) -> bool:
        """Whether one epoch is all that is planned."""
        return self._by_epochs_alone and self._epochs <= 1

    @property
    def has_three_epochs(self) -> bool:
        """Whether a third epoch is sure to begin."""
        return self._by_epochs_alone and self._epochs >= 3

    def _epochs_done(self, under_way: bool) -> float:
        if not (self._of_stream and under_way):
            return epochs_done(self._trainer)
        epochs, batches = float(self._trainer.current_epoch), counted(self._trainer).current.processed
        before = counted(self._trainer).total.processed - batches
        length = before / epochs if before and epochs else math.inf
        if self.is_one_epoch:
            length = self._passes.length
        return float(epochs + min(batches / length, 1.0))

    def _time_share(self) -> float:
        if self._timer is None:
            return 0.0
        if self._trainer.world_size == 1 or self._asked % _AGREED_EVERY == 0:
            elapsed = float(self._timer.time_elapsed("train"))
            if self._trainer.world_size > 1:
                elapsed = float(self._trainer.strategy.broadcast(elapsed))
            self._elapsed = elapsed
        self._asked += 1
        return float(self._elapsed / max(self._seconds, 1e-9))

    def progress(self, under_way: bool = False) -> float:
        """Share of the budget spent, in `[0, 1]`; the same on all ranks.

        Args:
            under_way: Whether an epoch surely is. How much of a stream's has passed is told by the length of those
                before it then; where one is all that is planned, by the number of images, as if it were a pass.
        """
        shares = (
            self._trainer.global_step / max(self._steps, 1.0),
            self._epochs_done(under_way) / max(self._epochs, 1.0),
            self._time_share(),
            *(clock() for clock in self._clocks),
        )
        return float(min(max(shares), 1.0))


def _limit(value: int | None) -> float:
    return math.inf if value is None or value < 0 else float(value)
