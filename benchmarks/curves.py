"""Means over seeds with intervals, and what a run's accuracy at several budgets says of its cost."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
Runs = dict[float, list[Row]]
"""Runs of one variant by budget."""
Curve = list[tuple[float, float]]
"""(seconds, accuracy), rising in seconds."""
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95% interval (Student's t, 2 to 10 values); infinite for one value."""
    if len(values) < 2:
        return statistics.fmean(values), math.inf
    return statistics.fmean(values), T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def shown(values: Sequence[float], form: str = ".1f") -> str:
    """`71.2 ± 0.8`; without an interval for one value."""
    mean, half = mean_and_interval(values)
    return f"{mean:{form}}" + ("" if math.isinf(half) else f" ± {half:{form.lstrip('+')}}")


def spent(row: Row, *, labelling: bool) -> float:
    """Seconds of a run: its training, and the labelling if that counts."""
    return float(row["training_seconds"] + labelling * row["labelling_seconds"])


def curve_of(rows: Sequence[Row], *, labelling: bool) -> Curve:
    """The curve of one seed's runs.

    Args:
        rows: One run a budget.
        labelling: Whether the seconds of labelling count.
    """
    return sorted((spent(row, labelling=labelling), row["linear_top1"]) for row in rows)


def curves(runs: Runs, *, labelling: bool) -> list[Curve]:
    """A curve for each seed that was run at every budget of the variant."""
    by_seed: dict[int, list[Row]] = {}
    for row in itertools.chain.from_iterable(runs.values()):
        by_seed.setdefault(row["seed"], []).append(row)
    return [curve_of(rows, labelling=labelling) for _, rows in sorted(by_seed.items()) if len(rows) == len(runs)]


def seconds_to(curve: Curve, accuracy: float) -> tuple[str, float]:
    """Seconds at which a curve reaches an accuracy, interpolated between budgets.

    Returns:
        `("", seconds)`; `("≤", first budget)` where that is enough, `(">", last budget)` where that is not.
    """
    if curve[0][1] >= accuracy:
        return "≤", curve[0][0]
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if y0 < accuracy <= y1:
            return "", x0 + (x1 - x0) * (accuracy - y0) / (y1 - y0)
    return ">", curve[-1][0]


def accuracy_at(curve: Curve, seconds: float) -> float | None:
    """Accuracy a curve has at some seconds, interpolated between budgets; None before its first and after its last.

    A budget's last step never quite fills it: one percent beyond the last point counts as the last point.
    """
    if seconds < curve[0][0] or seconds > 1.01 * curve[-1][0]:
        return None
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if seconds <= x1:
            return y0 + (y1 - y0) * (seconds - x0) / (x1 - x0)
    return curve[-1][1]


def cost(runs: Runs, accuracy: float, *, labelling: bool) -> tuple[str, list[float]]:
    """Seconds to an accuracy, seed by seed.

    Returns:
        `(sign, seconds of each seed)`; the sign of `seconds_to`, or `≈` where it differs between seeds.
    """
    found = [seconds_to(curve, accuracy) for curve in curves(runs, labelling=labelling)]
    signs = {sign for sign, _ in found}
    return (signs.pop() if len(signs) == 1 else "≈"), [seconds for _, seconds in found]


def at(runs: Runs, seconds: float, *, labelling: bool) -> list[float]:
    """Accuracy at some seconds, seed by seed; empty where a seed has none there."""
    found = [accuracy_at(curve, seconds) for curve in curves(runs, labelling=labelling)]
    return [] if None in found else [value for value in found if value is not None]


def paired(ours: Sequence[Row], theirs: Sequence[Row], value: Callable[[Row], float]) -> list[float]:
    """Ours minus theirs for every seed that both have, in the order of seeds."""
    other = {row["seed"]: value(row) for row in theirs}
    return [value(row) - other[row["seed"]] for row in sorted(ours, key=lambda r: r["seed"]) if row["seed"] in other]
