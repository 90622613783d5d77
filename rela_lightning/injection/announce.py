"""What the callback says while it works: at the start, at each change of phase, and at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from rela_lightning.injection.phases import Phase
from rela_lightning.losses import LossSpec
from rela_lightning.schedules import Schedule

_PHASES = ("transport alone", "both objectives", "the module's own objective alone")
"""Names of the phases, by the number that is logged as `rela/phase`."""


class Mark(NamedTuple):
    """Where a phase began.

    Attributes:
        phase: Its number, as logged.
        step: Optimizer step.
        seconds: Of `time.perf_counter`.
    """

    phase: int
    step: int
    seconds: float


def plan(schedule: Schedule) -> str:
    """The phases of a schedule in words, with the share of the budget at which each begins."""
    if schedule.adaptive:
        return (
            f"transport alone until {type(schedule).__name__} finds that its loss has levelled off. A short budget may "
            "end first, and the module's own objective then never runs; Switch(at) has a fixed end"
        )
    parts, before = list[str](), -1
    for percent in range(100):
        phase = int(Phase(schedule.weights(percent / 100)).number)
        if phase != before:
            parts.append(_PHASES[phase] if not percent else f"from {percent}% of the budget {_PHASES[phase]}")
        before = phase
    return ", ".join(parts)


def bill(marks: list[Mark], end: Mark) -> str:
    """Steps and seconds of each phase, in the order in which phases came.

    Args:
        marks: Where phases began.
        end: Where training ended.
    """
    steps, seconds = dict.fromkeys(range(3), 0), dict.fromkeys(range(3), 0.0)
    for mark, following in zip(marks, [*marks[1:], end], strict=True):
        steps[mark.phase] += following.step - mark.step
        seconds[mark.phase] += following.seconds - mark.seconds
    met = dict.fromkeys(mark.phase for mark in marks)
    return "; ".join(f"{_PHASES[phase]} {steps[phase]} steps in {seconds[phase]:.1f} s" for phase in met)


class Announcer:
    """Keeps what the lines need, and says them on the first process.

    Args:
        targets: What the targets are, in words.
        loss: What pulls to them.
        labelling_seconds: What the targets cost, once.
    """

    def __init__(self, targets: str, loss: LossSpec, labelling_seconds: float) -> None:
        self._targets, self._loss, self._labelling = targets, in_words(loss), labelling_seconds
        self._marks: list[Mark] = []
        self._first: Tensor | None = None
        self._last: Tensor | None = None

    def start(self, schedule: Schedule, *, over: bool = False) -> None:
        """Say that ReLA is on, and what is planned; in a run that is resumed after transport, that it is over."""
        planned = f"transport is over, {_PHASES[2]}" if over else plan(schedule)
        rank_zero_info(f"ReLA is on: {self._loss} loss to {self._targets}; {planned}.")

    def loss(self, value: Tensor) -> None:
        """Note the transport loss of a step; it stays on its device."""
        self._last = value.detach()
        self._first = self._last if self._first is None else self._first

    def phase(self, number: float, trainer: Any, progress: float) -> None:
        """Note the phase of a step that is about to run; say where another begins."""
        phase = int(number)
        if self._marks and self._marks[-1].phase == phase:
            return
        self._marks.append(Mark(phase, trainer.global_step, time.perf_counter()))
        if len(self._marks) == 1:
            return
        fell = ""
        if phase == 2 and self._first is not None and self._last is not None:
            fell = f" The transport loss went from {float(self._first):.3f} to {float(self._last):.3f}."
        rank_zero_info(
            f"ReLA: {_PHASES[phase]} from step {trainer.global_step} on, {progress:.0%} of the budget.{fell}"
        )

    def end(self, trainer: Any) -> None:
        """Say what each phase took, and what the targets had cost."""
        if not self._marks:
            return
        end = Mark(0, trainer.global_step, time.perf_counter())
        once = f"; the targets took {self._labelling:.1f} s, once" if self._labelling else ""
        rank_zero_info(f"ReLA in this fit, validation included: {bill(self._marks, end)}{once}.")


def in_words(loss: LossSpec) -> str:
    """`cosine`, `cosine + 0.5 relational`, or the name of a callable."""
    if isinstance(loss, str):
        return loss
    if isinstance(loss, Mapping):
        return " + ".join(f"{weight:g} {name}" for name, weight in loss.items())
    if isinstance(loss, Sequence):
        return " + ".join(loss)
    return str(getattr(loss, "__name__", type(loss).__name__))
