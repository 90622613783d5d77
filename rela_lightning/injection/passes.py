"""How often the training images have been passed over."""

from __future__ import annotations

import math
from typing import Any


class Passes:
    """Passes over the training images so far, the same on all ranks.

    An epoch of the Trainer is one, unless it draws fewer images than there are, or each several times. Where targets
    are found by key, epochs say nothing of it: a stream's may be of any length, and never end. Nor do they where a
    sampler has no length. There the images that have passed are counted.

    Args:
        trainer: The Trainer.
        images: Images that have targets by key; None where targets are found otherwise.
    """

    def __init__(self, trainer: Any, images: int | None = None) -> None:
        self._trainer, self.images = trainer, images
        self.before: float | None = None
        """Passes that the run had done when it was kept; None where it did not say."""
        self._drawn = 1.0
        self._since = 0
        self._batch: int | None = None

    def start(self) -> None:
        """Count from here, now that data are set up."""
        if self.images is None and math.isinf(float(self._trainer.num_training_batches)):
            self.images = _rows_of(self._trainer.train_dataloader)
        self._drawn = _share_drawn(self._trainer)
        self._since = 0 if self.before is None else counted(self._trainer).total.processed

    def saw(self, samples: int) -> None:
        """Learn the size of a batch, once; ranks agree on it.

        Args:
            samples: Images in the batch under way, on this rank; used where its loader does not say.
        """
        if self.images and self._batch is None:
            size = batch_size_of(self._trainer.train_dataloader) or samples
            self._batch = int(self._trainer.strategy.broadcast(size))

    @property
    def length(self) -> float:
        """Batches of each rank in one pass over a stream; infinity where nobody knows."""
        if not (self.images and self._batch):
            return math.inf
        return self.images / float(self._batch * self._trainer.world_size)

    def count(self) -> float:
        """Passes, with the share of the one under way."""
        if not self.images:
            return epochs_done(self._trainer) * self._drawn
        batches = counted(self._trainer).total.processed - self._since
        return (self.before or 0.0) + float(batches / self.length)


def epochs_done(trainer: Any) -> float:
    """Epochs done, with the share of the current one where an epoch's length is known."""
    per_epoch = float(trainer.num_training_batches)
    batches = 0.0 if math.isinf(per_epoch) else float(counted(trainer).current.processed)
    # between two epochs the count is still that of the last one, which `current_epoch` holds already
    return float(trainer.current_epoch) + (batches / per_epoch if batches < per_epoch else 0.0)


def counted(trainer: Any) -> Any:
    """Lightning's count of batches: `current.processed` of this epoch, `total.processed` of all."""
    return trainer.fit_loop.epoch_loop.batch_progress


def batch_size_of(loader: Any) -> int | None:
    """Images in a batch of a loader, of one rank; None where it does not say."""
    sizes = (getattr(part, "batch_size", None) for part in (loader, getattr(loader, "batch_sampler", None)))
    return next((size for size in sizes if isinstance(size, int)), None)


def _share_drawn(trainer: Any) -> float:
    """Images drawn in an epoch over images there; 1 where either is not known."""
    size, there = batch_size_of(trainer.train_dataloader), _rows_of(trainer.train_dataloader)
    batches = float(trainer.num_training_batches)
    return batches * size * trainer.world_size / there if size and there and math.isfinite(batches) else 1.0


def _rows_of(loader: Any) -> int | None:
    """Rows of a loader's data set; None where it does not say."""
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError, NotImplementedError):  # several loaders, or a stream
        return None
