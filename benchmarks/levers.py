"""What may make a hand-over win or lose, one lever at a time: callbacks that act where BYOL's own loss takes over."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from images import Images
from torch import Tensor
from virtual_clock import VirtualClock, warmup_then_cosine

from rela_lightning import TargetStore
from rela_lightning.schedules import Plateau, Schedule, Weights

_CHUNK = 1000  # rows whose neighbours are looked for at a time


class AtHandOver(L.Callback):
    """Acts once, when ReLA decides that the module's own loss takes over.

    A batch that was fetched for the transport phase may still be trained on before it does.

    Args:
        rela: The callback whose phases are followed.
        clock: The run's clock, to stand before this callback in the trainer.
    """

    def __init__(self, rela: Any, clock: VirtualClock) -> None:
        self.rela, self.clock = rela, clock
        self.at: float | None = None
        """Share of the budget at the hand-over; None before it."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """See whether the phase has changed."""
        if self.at is None and not self.rela.phase.weights.transport_only:
            self.at = self.clock.budget_share()
            self.act(trainer, module)

    def act(self, trainer: Any, module: Any) -> None:
        """Do it."""


class RateFromHere(AtHandOver):
    """A learning rate of its own from the hand-over on, in place of the clock's."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Set it."""
        super().on_train_batch_start(trainer, module, batch, batch_idx)
        if self.at is not None:
            share = (self.clock.budget_share() - self.at) / (1.0 - self.at)
            for group, base in zip(trainer.optimizers[0].param_groups, self.clock.base, strict=True):
                group["lr"] = base * self.factor(share)

    def factor(self, share: float) -> float:
        """Of the base learning rate, at a share of what is left of the budget: all that the clock does, once more."""
        return warmup_then_cosine(share, self.clock.warmup)


class Rewarmed(RateFromHere):
    """The learning rate rises from zero once more, and then goes on as planned."""

    def factor(self, share: float) -> float:
        """The clock's, times a rise."""
        return self.clock.factor() * min(max(share / self.clock.warmup, 0.02), 1.0)


class Annealed(RateFromHere):
    """The learning rate falls from its base once more, at once."""

    def factor(self, share: float) -> float:
        """A cosine."""
        return warmup_then_cosine(share, 0.0)


class FreshOptimizer(AtHandOver):
    """The optimizer forgets its moments."""

    def act(self, trainer: Any, module: Any) -> None:
        """Empty its state."""
        trainer.optimizers[0].state.clear()


class SlowTeacher(AtHandOver):
    """A slower teacher: momentum .99 in place of the tuned one."""

    def act(self, trainer: Any, module: Any) -> None:
        """Set it, constant."""
        module.momentum = module.momentum_end = 0.99


class FreshTeacher(AtHandOver):
    """The teacher begins as a copy of the student, not as the average of its last steps."""

    def act(self, trainer: Any, module: Any) -> None:
        """Copy weights and statistics."""
        module.teacher_backbone.load_state_dict(module.backbone.state_dict())
        module.teacher_projector.load_state_dict(module.projector.state_dict())


class CachedTarget(AtHandOver):
    """The cached target stands where the teacher's projection stood: both views are pulled to it through the heads.

    Labels of a batch have to be its rows in the store. Targets narrower than the projections are filled up with zeros,
    which the predictor learns.
    """

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Note which images these are."""
        super().on_train_batch_start(trainer, module, batch, batch_idx)
        self.rows = batch[1]

    def act(self, trainer: Any, module: Any) -> None:
        """No teacher's forward from here on."""
        store = TargetStore(self.rela.targets)
        targets, width = store[torch.arange(len(store))].float(), module.predictor.layers[-1].out_features
        self.targets = torch.nn.functional.pad(targets, (0, width - targets.shape[1]))
        module.teach = lambda images: self.targets[self.rows]


class Anchor(Schedule):
    """Transport alone for a share of the budget, then both losses: the targets stay as an anchor.

    Args:
        at: Share of the budget that is transport alone.
        weight: Weight of the transport loss afterwards.
        decay: Whether that weight falls to zero at the end, by a cosine.
    """

    def __init__(self, at: float, weight: float = 1.0, decay: bool = False) -> None:
        self.at, self.weight, self.decay = at, weight, decay

    def weights(self, progress: float) -> Weights:
        """`(0, 1)`, then `(1, weight)`."""
        if progress < self.at:
            return Weights(0.0, 1.0)
        done = (progress - self.at) / (1.0 - self.at)
        return Weights(1.0, self.weight * (warmup_then_cosine(done, 0.0) if self.decay else 1.0))


class Fading(Plateau):
    """The default, but for what follows: both losses, the weight of the transport loss falling from 1 to 0."""

    at = 1.0
    """Share of the budget at the hand-over."""

    def update(self, loss: Tensor, progress: float, epochs: float) -> None:
        """Note when the rule fires."""
        super().update(loss, progress, epochs)
        self.at = min(self.at, progress) if self.fired else 1.0

    def weights(self, progress: float) -> Weights:
        """`(0, 1)` until the loss has levelled off, then as `Anchor(decay=True)`."""
        return Anchor(self.at, decay=True).weights(progress) if self.fired else super().weights(progress)

    def is_over(self, progress: float) -> bool:
        """Not before the end."""
        return False


class WithNeighbours(Images):
    """Two views: one of the image, one of an image whose target is among the nearest to its own.

    Args:
        images: The images, with a transform that makes views.
        store: Their targets.
        count: How many neighbours there are to choose from.
    """

    def __init__(self, images: Images, store: TargetStore, count: int = 5) -> None:
        super().__init__(images.images, images.labels, images.transform)
        self.neighbours = nearest(store[torch.arange(len(images))].float(), count)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The transform's views, the second of another image; where it makes one alone, that."""
        views, label = super().__getitem__(index)
        if isinstance(views, list) and len(views) > 1:
            row = int(self.neighbours[index, torch.randint(self.neighbours.shape[1], ())])
            views = [views[0], super().__getitem__(row)[0][1], *views[2:]]
        return views, label


def nearest(targets: Tensor, count: int) -> Tensor:
    """Rows of the `count` largest cosines to each row, itself left out: `[N, D] -> int64 [N, count]`."""
    unit = torch.nn.functional.normalize(targets, dim=1)
    found = []
    for start in range(0, len(unit), _CHUNK):
        cosines = unit[start : start + _CHUNK] @ unit.T
        cosines[torch.arange(len(cosines)), start + torch.arange(len(cosines))] = -torch.inf
        found.append(cosines.topk(count, dim=1).indices)
    return torch.cat(found)


LEVERS: dict[str, type[AtHandOver]] = {
    "rate": RateFromHere,
    "rewarmed": Rewarmed,
    "annealed": Annealed,
    "optimizer": FreshOptimizer,
    "slow": SlowTeacher,
    "teacher": FreshTeacher,
    "target": CachedTarget,
}
"""Callbacks by the name of their lever."""
