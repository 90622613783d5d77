"""Which phase a step is in: the schedule's weights, warm-up of the heads, and batches still on their way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from rela_lightning.injection.budget import Budget
from rela_lightning.schedules import SSL_ONLY, TRANSPORT_ONLY, Schedule, Weights

_LOW_RESOLUTION = 0.75  # share of the transport phase in which views may be small


class Phase(NamedTuple):
    """How a step is run."""

    weights: Weights
    warm_heads: bool = False
    low_resolution: bool = False

    @property
    def number(self) -> float:
        """0 transport, 1 mixed, 2 SSL: what is logged as `rela/phase`."""
        if self.weights.transport == 0.0:
            return 2.0
        return 0.0 if self.weights.transport_only and not self.warm_heads else 1.0


class Phases:
    """Decides once per optimizer step, the same on all ranks.

    Args:
        schedule: The schedule.
        head_warmup: Share of the budget before the end of the transport phase in which heads are warmed.
        trainer: The Trainer.
        may_replace: Whether a transport-only step leaves the user's step out.
        request: Called with whether the gentler views are wanted from now on, whether targets are, and whether a batch
            shall say which rows it holds.
    """

    def __init__(
        self,
        schedule: Schedule,
        head_warmup: float,
        trainer: Any,
        may_replace: Callable[[], bool],
        request: Callable[[bool, bool, bool], None],
    ) -> None:
        self._schedule, self._head_warmup, self._trainer = schedule, head_warmup, trainer
        self._may_replace, self._request = may_replace, request
        self._budget: Budget | None = None
        self._least_transport = 0.0
        self.progress = 0.0
        """Share of the budget spent, as far as it has ever been: a longer plan does not take it back."""
        self.now = Phase(schedule.weights(0.0))
        self.over = self._is_over()
        """Whether the transport loss is off for good."""
        self._due = True
        self._in_flight = 0

    def start(self, budget: Budget) -> None:
        """Go by a budget from now on."""
        self._budget = budget
        self._least_transport = self._schedule.least_transport

    def restore(self, weights: Weights, progress: float, over: bool) -> None:
        """Go on where a run stood; once let go, it stays let go, also where the schedule has other options now."""
        self.now, self.progress = Phase(weights), progress
        self.over = over or self._is_over()
        if self._schedule.adaptive and not self.over:  # a loss is still to be seen, under whatever plan there is now
            self.progress = 0.0
        if over and not self._is_over():
            rank_zero_warn(
                f"The run had handed over before, and {type(self._schedule).__name__} with its present options would "
                "go back to the targets: the transport phase stays over. Start afresh to have it again."
            )

    def _is_over(self) -> bool:
        return self.now.weights == SSL_ONLY and self._schedule.is_over(self.progress)

    @property
    def skips_step(self) -> bool:
        """Whether the user's step is left out, so that batches may hold the gentler views."""
        return self.now.weights.transport_only and not self.now.warm_heads and self._may_replace()

    @property
    def settled(self) -> bool:
        """Whether all ranks are through with batches that may have been made for the phase before."""
        return self._in_flight == 0

    @property
    def stepped(self) -> bool:
        """Whether an optimizer has stepped since the last decision."""
        return self._due

    def spent(self) -> float:
        """The progress up to now; the one that was last decided on is a step behind."""
        return self.progress if self._budget is None else max(self.progress, self._budget.progress())

    def after_step(self) -> None:
        """An optimizer stepped: decide anew before the next step."""
        self._due = True

    def request(self, attached: bool = True) -> None:
        """Ask for the views and targets of the current phase; for the user's own while the callback is set aside."""
        self._request(attached and self.skips_step, attached and self.now.weights.transport > 0.0, not self.over)

    def decide(self, in_flight: int = 0, *, again: bool = False) -> None:
        """Go by the budget spent, unless nothing was stepped since.

        Args:
            in_flight: Most batches that may be on their way when views change.
            again: Decide once more at the next call: the epoch's own count starts after this one.
        """
        if not self._due or self._budget is None:
            return
        self._due = again
        self.progress, was_skipped = max(self.progress, self._budget.progress(not again)), self.skips_step
        progress = self.progress
        weights = SSL_ONLY if self.over else self._schedule.weights(progress)
        warm = False
        if self._head_warmup and weights.transport_only:
            warm = not self._schedule.weights(min(progress + self._head_warmup, 1.0)).transport_only
        low = progress < _LOW_RESOLUTION * self._least_transport
        before, self.now = self.now, Phase(SSL_ONLY if weights.transport == 0.0 else weights, warm, low)
        if before.weights != SSL_ONLY == self.now.weights:
            self.over = self._is_over()
        if was_skipped and not self.skips_step:
            self._in_flight = in_flight
        self.request()

    def for_batch(self, transport_views: bool) -> Phase:
        """The phase of a step on this batch: transport, where it was made for it on any rank."""
        if self._in_flight:
            self._in_flight -= 1
            if self._trainer.world_size > 1:
                transport_views = self._trainer.strategy.reduce_boolean_decision(transport_views, all=False)
        return Phase(TRANSPORT_ONLY) if transport_views and not self.skips_step else self.now
