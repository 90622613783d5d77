"""benchmarks/replay.py: the default's rule, put to curves of runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

COSTS = {"cifar10": {"step": {"byol/64": {"transport1": {"seconds": 0.1}}}}}


def run(losses: list[float], seconds: float) -> dict[str, Any]:
    return {
        "transport_loss": losses, "settings": {"batch_size": 64}, "data": "cifar10", "asked": "byol",
        "seconds_full": seconds, "budget": 1.0, "images": 64 * 160,
    }  # fmt: skip


@pytest.mark.parametrize(("epochs", "said"), [(40, ("49", "50")), (10, ("-",))])
def test_the_same_fall_is_over_in_a_long_run_and_not_in_a_short_one(
    script: Callable[[str], Any], epochs: int, said: tuple[str, ...]
) -> None:
    """A fall of .3 with a scale of four epochs of 160 steps: from window to window .030, .011, .004, .0015 an epoch."""
    losses = [0.7 + 0.3 * math.exp(-epochs * percent / 100 / 4) for percent in range(100)]
    assert script("replay").replay(run(losses, 16 * epochs), COSTS, slope=0.0025, window=0.1) in said


def test_a_curve_that_was_cut_off_says_so(script: Callable[[str], Any]) -> None:
    losses = [1.0 - percent / 100 for percent in range(40)]
    assert script("replay").replay(run(losses, 100.0), COSTS, slope=0.0025, window=0.1) == ">40"
