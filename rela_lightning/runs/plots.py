"""Probe accuracy against seconds, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Run = Mapping[str, Any]
_PANELS = (
    ("few_label_top1", "few-label probe"), ("linear_top1", "linear probe"), ("knn_top1", "kNN"),
    ("top1", "classifier trained with the backbone"),
)  # fmt: skip
_CHARACTERS = 11
"""Letters of the legend on an inch."""
_COLOURS = ("#4d4d4d", "#0a6ebd", "#e08214", "#1b7837", "#8e44ad", "#c0392b")


def value_at(point: Mapping[str, Any], key: str) -> tuple[float, float]:
    """Accuracy and spread of one point in percent; the spread of a plain number is 0."""
    value = point[key]
    mean, std = (value["mean"], value["std"]) if isinstance(value, Mapping) else (value, 0.0)
    return 100 * mean, 100 * std


def draw_curves(runs: Sequence[Run], path: str | Path, *, title: str = "ReLA") -> bool:
    """Draw one panel a probe: a curve a run with history, a square at its cost a run without.

    Curves start at the run's labelling seconds. Bands are one standard deviation over the folds; a
    diamond marks the switch from transport to SSL.

    Args:
        runs: Runs as described in `rela_lightning.runs.report`.
        path: PNG file to write.
        title: Heading of the picture.

    Returns:
        False, and nothing is written, without matplotlib (the extra `plot`).
    """
    panels = [(key, name) for key, name in _PANELS if any(_points(run, key) for run in runs)]
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if not panels:
        return False
    figure = Figure(figsize=(4.6 * len(panels) + 0.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (key, name) in zip(axes, panels, strict=True):
        _panel(axis, runs, key)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("seconds, labelling included")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    axes[0].set_ylabel("top-1 accuracy, %")
    drawn = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = max(1, min(len(drawn), int(figure.get_figwidth() * _CHARACTERS / (max(map(len, drawn)) + 6))))
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=130)
    return True


def _points(run: Run, key: str) -> list[Mapping[str, Any]]:
    """The points of a run's curve; the run's own figure, at what it cost, where there are none."""
    points = [point for point in run["history"] if key in point]
    return points or ([run] if run.get(key) is not None else [])


def _panel(axis: Any, runs: Sequence[Run], key: str) -> None:
    marked = False
    for run, colour in zip(runs, _COLOURS * (len(runs) // len(_COLOURS) + 1), strict=False):
        points = _points(run, key)
        if not points:
            continue
        seconds = np.array([point["seconds"] for point in points])
        mean, std = np.array([value_at(point, key) for point in points]).T
        alone = points[0] is run
        marker = (
            {"marker": "s", "markersize": 6, "linewidth": 0, "clip_on": False}
            if alone
            else {"marker": "o", "markersize": 3.5}
        )
        axis.plot(seconds, mean, color=colour, label=run["name"], **{"linewidth": 1.6, **marker})
        if std.any() and not alone:
            axis.fill_between(seconds, mean - std, mean + std, color=colour, alpha=0.12, linewidth=0)
        switch = run.get("switch_seconds")
        if switch is not None and not alone:
            level = float(np.interp(switch, seconds, mean))
            label = None if marked else "switch to SSL"
            axis.plot(switch, level, "D", color="white", markeredgecolor=colour, markersize=8, label=label, zorder=5)
            marked = True
    axis.set_xlim(left=0)
