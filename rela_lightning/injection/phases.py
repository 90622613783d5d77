"""Which phase a step is in: the schedule's weights, warm-up of the heads, and batches still on their way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rela_lightning.injection.budget import Budget
from rela_lightning.schedules import SSL_ONLY, TRANSPORT_ONLY, Schedule, Weights


class Phase(NamedTuple):
    """How a step is run."""

    weights: Weights
    warm_heads: bool = False

    @property
    def number(self) -> float:
        """0 transport, 1 mixed, 2 SSL: what is logged as `rela/phase`."""
        if self.weights == SSL_ONLY:
            return 2.0
        return 0.0 if self.weights.transport_only and not self.warm_heads else 1.0


class Phases:
    """Decides once per optimizer step, the same on all ranks.

    Args:
        schedule: The schedule.
        head_warmup: Share of the budget before the end of the transport phase in which heads are warmed.
        trainer: The Trainer.
        may_replace: Whether a transport-only step leaves the user's step out.
        ask_for_views: Called with whether the gentler views are wanted from now on.
    """

    def __init__(
        self,
        schedule: Schedule,
        head_warmup: float,
        trainer: Any,
        may_replace: Callable[[], bool],
        ask_for_views: Callable[[bool], None],
    ) -> None:
        self._schedule, self._head_warmup, self._trainer = schedule, head_warmup, trainer
        self._may_replace, self._ask_for_views = may_replace, ask_for_views
        self._budget: Budget | None = None
        self.now = Phase(schedule.weights(0.0))
        self._due = True
        self._lagging = False

    def start(self) -> None:
        """Read the plan of the run.

        Raises:
            ConfigError: If the Trainer plans no end.
        """
        self._budget = Budget(self._trainer)

    @property
    def light(self) -> bool:
        """Whether the user's step is left out, so that batches may hold the gentler views."""
        return self.now.weights.transport_only and not self.now.warm_heads and self._may_replace()

    @property
    def stepped(self) -> bool:
        """Whether an optimizer has stepped since the last decision."""
        return self._due

    def after_step(self) -> None:
        """An optimizer stepped: decide anew before the next step."""
        self._due = True

    def ask(self) -> None:
        """Ask for the views of the current phase."""
        self._ask_for_views(self.light)

    def decide(self) -> None:
        """Go by the budget spent, unless nothing was stepped since."""
        if not self._due or self._budget is None:
            return
        self._due = False
        progress, was_light = self._budget.progress(), self.light
        weights = self._schedule.weights(progress)
        ahead = self._schedule.weights(min(progress + self._head_warmup, 1.0))
        self.now = Phase(weights, weights.transport_only and not ahead.transport_only)
        self._lagging = self._lagging or (was_light and not self.light)
        self.ask()

    def of_batch(self, transport_views: bool) -> Phase:
        """The phase of a step on this batch: transport, while batches made for it arrive on any rank."""
        if self._lagging:
            self._lagging = transport_views
            if self._trainer.world_size > 1:
                self._lagging = self._trainer.strategy.reduce_boolean_decision(transport_views, all=False)
        return Phase(TRANSPORT_ONLY) if self._lagging else self.now
