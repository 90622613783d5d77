"""How much of the planned budget is spent."""

from __future__ import annotations

import math
from typing import Any

from rela_lightning.compat import timers
from rela_lightning.errors import ConfigError


class Budget:
    """Share of the budget spent: the largest of steps, epochs and seconds, each over its plan.

    Resuming needs no state: Lightning restores the counters (and its Timer) itself. A callback that measures a budget
    of its own (samples seen, cost, energy) has a method `budget_share() -> float`: the share of it that is spent, the
    same on all ranks.

    Args:
        trainer: The Trainer, after its data are set up.
        images: Training images that have targets; None where nobody counted them.
        refresh: With several ranks, seconds are agreed on every `refresh` decisions.

    Raises:
        ConfigError: If the Trainer plans no end.
    """

    def __init__(self, trainer: Any, images: int | None = None, *, refresh: int = 20) -> None:
        self._trainer, self._images = trainer, images
        self._refresh = refresh
        self._asked = 0
        self._elapsed = 0.0
        limited = timers(trainer.callbacks)
        self._timer: Any = limited[0][0] if limited else None
        self._seconds = limited[0][1] if limited else math.inf
        self._clocks = [c.budget_share for c in trainer.callbacks if callable(getattr(c, "budget_share", None))]
        self._steps = _limit(trainer.max_steps)
        self._epochs = _limit(trainer.max_epochs)
        self._pass = _share_drawn(trainer)
        self._of_stream = math.isinf(float(trainer.num_training_batches))
        self._batch = batch_size_of(trainer.train_dataloader)
        self._by_epochs_alone = math.isinf(self._steps) and self._timer is None and not self._clocks
        if self._by_epochs_alone and math.isinf(self._epochs):
            raise ConfigError(
                "A schedule needs to know how long training will last.",
                expected="a Trainer with max_epochs, max_steps or max_time",
                found="none of them finite",
                do="pass Trainer(max_epochs=...)",
            )

    @property
    def passes_are_epochs(self) -> bool:
        """Whether whole epochs of a stream are all that is known of its passes, in the first epoch nothing."""
        return self._of_stream and not self._images

    @property
    def is_one_epoch_of_any_length(self) -> bool:
        """Whether nobody knows how much is spent before all of it is."""
        return self.passes_are_epochs and self._epochs <= 1 and self._by_epochs_alone

    @property
    def epochs(self) -> float:
        """Epochs that are planned; infinity where their number is no limit."""
        return self._epochs

    def saw(self, samples: int) -> None:
        """Learn the size of the batches that a stream makes itself.

        Args:
            samples: Images in a batch of this rank. Ranks agree on the first, as the last may be smaller.
        """
        if self._batch is None and self._of_stream and self._images:
            self._batch = int(self._trainer.strategy.broadcast(samples))

    def passes(self) -> float:
        """Passes over the training images so far, the same on all ranks.

        An epoch of the Trainer is one, unless it draws fewer images than there are, or each several times. The epoch of
        a stream may be of any length, and never end: there the images that have passed are counted, where it is
        known how many there are.
        """
        a_pass = self._batches_of_a_pass()
        if math.isinf(a_pass):
            return self._epochs_done() * self._pass
        return float(self._counted.total.processed / a_pass)

    @property
    def _counted(self) -> Any:
        return self._trainer.fit_loop.epoch_loop.batch_progress

    def _batches_of_a_pass(self) -> float:
        """Batches of each rank in which a stream shows as many images as have targets; infinity where nobody knows."""
        if not (self._of_stream and self._images and self._batch):
            return math.inf
        return self._images / float(self._batch * self._trainer.world_size)

    def _epochs_done(self, under_way: bool = False) -> float:
        """Epochs done, with the share of the current one where an epoch's length is known.

        Args:
            under_way: Whether an epoch surely is. Between two, batches are still those of the last one, which
                `current_epoch` holds already.
        """
        epochs, batches = float(self._trainer.current_epoch), self._counted.current.processed
        if not self._of_stream:
            per_epoch = float(self._trainer.num_training_batches)
            return epochs + (batches / per_epoch if batches < per_epoch else 0.0)
        if not under_way:
            return epochs
        before = self._counted.total.processed - batches
        length = before / epochs if before and epochs else math.inf
        if not epochs and self._by_epochs_alone:  # an epoch that steps will end may be far longer than a pass
            length = self._batches_of_a_pass()
        return float(epochs + min(batches / length, 1.0))

    def _time_share(self) -> float:
        if self._timer is None:
            return 0.0
        if self._trainer.world_size == 1 or self._asked % self._refresh == 0:
            elapsed = float(self._timer.time_elapsed("train"))
            if self._trainer.world_size > 1:
                elapsed = float(self._trainer.strategy.broadcast(elapsed))
            self._elapsed = elapsed
        self._asked += 1
        return float(self._elapsed / max(self._seconds, 1e-9))

    def progress(self, under_way: bool = False) -> float:
        """Share of the budget spent, in `[0, 1]`; the same on all ranks.

        Args:
            under_way: Whether an epoch surely is: how much of a stream's has passed is known from those before it,
                and in the first one, where epochs are all that is planned, from the number of images.
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


def batch_size_of(loader: Any) -> int | None:
    """Images in a batch of a loader, of one rank; None where it does not say."""
    sizes = (getattr(part, "batch_size", None) for part in (loader, getattr(loader, "batch_sampler", None)))
    return next((size for size in sizes if isinstance(size, int)), None)


def _share_drawn(trainer: Any) -> float:
    """Images drawn in an epoch over images there; 1 where either is not known."""
    size = batch_size_of(trainer.train_dataloader)
    try:
        there = len(trainer.train_dataloader.dataset)
    except (AttributeError, TypeError, NotImplementedError):  # several loaders, or a stream
        return 1.0
    batches = float(trainer.num_training_batches)
    return batches * size * trainer.world_size / there if size and there and math.isfinite(batches) else 1.0
