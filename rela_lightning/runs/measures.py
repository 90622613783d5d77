"""What runs are measured by: accuracies where there are labels, the spread of features where there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ACCURACIES: dict[str, str] = {
    "few_label_top1": "few labels",
    "linear_top1": "linear",
    "knn_top1": "kNN",
    "top1": "classifier",
}
"""Key in `run.json`: heading. In `[0, 1]`; `top1` is that of a classifier that was trained with the backbone."""
LABEL_FREE: dict[str, str] = {
    "effective_rank": "rank",
    "feature_deviation": "deviation",
    "uniformity": "uniformity",
}
"""Key in `run.json`: heading. See `rela_lightning.diagnostics`."""
MEASURES: dict[str, str] = {**ACCURACIES, **LABEL_FREE}

OF_PROBES: tuple[str, ...] = tuple(name for name in MEASURES if name != "top1")
"""Those of a backbone that is frozen."""


def measured(run: Mapping[str, Any]) -> list[str]:
    """The measures that a run has."""
    return [name for name in MEASURES if run.get(name) is not None]


def of_any(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measures that one of the runs has, in their order."""
    return [name for name in MEASURES if any(run.get(name) is not None for run in runs)]


def in_percent(value: float | Mapping[str, float]) -> str:
    """An accuracy in `[0, 1]`, or its mean and standard deviation `{"mean", "std"}`, as `91.2` or `70.0 ± 3.1`."""
    if isinstance(value, Mapping):
        return f"{in_percent(value['mean'])} ± {in_percent(value['std'])}"
    return f"{100 * value:.1f}"


def as_text(run: Mapping[str, Any], name: str) -> str:
    """A run's measure, with half its 95% interval where that is known; `-` where it was not measured."""
    value = run.get(name)
    if value is None:
        return "-"
    if name in LABEL_FREE:
        return f"{value:.3g}"
    half = run.get("interval", {}).get(name)
    return in_percent(value) + ("" if half is None else f" ± {in_percent(half)}")
