"""A budget in seconds that a busy machine cannot change: steps times calibrated step times."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as L
import torch

KINDS = {0.0: "transport", 1.0: "mixed", 2.0: "ssl"}


def warmup_then_cosine(share: float, warmup: float) -> float:
    """Learning-rate factor at a share of the budget: a linear rise, then a cosine to zero."""
    if share < warmup:
        return max(share / warmup, 0.02)
    return 0.5 * (1.0 + math.cos(math.pi * min((share - warmup) / (1.0 - warmup), 1.0)))


class VirtualClock(L.Callback):
    """Ends a run when its steps, at their calibrated cost, have used up the budget; sets the learning rate.

    `ReLACallback` asks it by `budget_share` for the share of the budget that is spent.

    Args:
        seconds: Budget of training.
        costs: Seconds of a step of each kind: `ssl`, `transport`, `mixed`, or the one in `kind`.
        kind: The kind of every step; None reads it from what ReLACallback logs.
        callback: The ReLACallback, whose options say what a transport step is.
        warmup: Share of the budget in which the learning rate rises linearly; a cosine to zero follows.
    """

    def __init__(
        self,
        seconds: float,
        costs: dict[str, float],
        kind: str | None = None,
        callback: Any = None,
        warmup: float = 0.1,
    ) -> None:
        self.seconds = seconds
        self.costs, self.kind, self.warmup = costs, kind, warmup
        self.callback = callback
        self.elapsed, self.steps, self.switched_at = 0.0, 0, None
        self.base: list[float] = []
        self._losses: dict[int, list[torch.Tensor]] = {}

    def budget_share(self) -> float:
        """Share of the seconds that is spent, by calibration."""
        return self.elapsed / self.seconds

    def factor(self) -> float:
        """Learning-rate factor: warm-up and cosine over the budget."""
        return warmup_then_cosine(self.budget_share(), self.warmup)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Note the base learning rates; those of a run that goes on are no longer in its optimizer."""
        self.base = self.base or [group["lr"] for group in trainer.optimizers[0].param_groups]

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Set the learning rate."""
        for group, base in zip(trainer.optimizers[0].param_groups, self.base, strict=True):
            group["lr"] = base * self.factor()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step, and stop when the next one would not fit."""
        kind = self.kind or KINDS[float(trainer.callback_metrics["rela/phase"])]
        if kind == "transport" and self.callback is not None:
            kind += "" if self.callback.num_views == 2 else str(self.callback.num_views)
            small_until = 0.75 * self.callback.schedule.least_transport
            if self.callback.transport_resolution and self.budget_share() < small_until:
                kind += f"@{self.callback.transport_resolution}"
        if kind == "ssl" and self.switched_at is None:
            self.switched_at = self.elapsed
        if kind.startswith(("transport", "online")):
            percent = int(100 * self.elapsed / self.seconds)
            self._losses.setdefault(percent, []).append(trainer.callback_metrics["rela/loss"])
        self.elapsed += self.costs[kind]
        self.steps += 1
        if self.elapsed + self.costs[kind] > self.seconds:
            trainer.should_stop = True

    @property
    def transport_loss(self) -> list[float]:
        """Mean transport loss of each percent of the budget, as far as it was transport alone."""
        return [round(float(torch.stack(losses).mean()), 4) for _, losses in sorted(self._losses.items())]

    def state_dict(self) -> dict[str, Any]:
        """What a run goes on from."""
        losses = {percent: torch.stack(values) for percent, values in self._losses.items()}
        kept = {name: getattr(self, name) for name in ("elapsed", "steps", "switched_at", "base")}
        return {**kept, "losses": losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        kept = {**state_dict}
        self._losses = {percent: list(values) for percent, values in kept.pop("losses").items()}
        vars(self).update(kept)
