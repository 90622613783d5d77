"""Probe accuracy against seconds, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Run = Mapping[str, Any]
_PANELS = (("few_label_top1", "few-label probe"), ("linear_top1", "linear probe"), ("knn_top1", "kNN"))
_STYLES = (":", "--", "-.")
_COLOURS = ("#4d4d4d", "#0a6ebd", "#e08214", "#1b7837", "#8e44ad", "#c0392b")


def value_at(point: Mapping[str, Any], key: str) -> tuple[float, float]:
    """Accuracy and spread of one point in percent; the spread of a plain number is 0."""
    value = point[key]
    mean, std = (value["mean"], value["std"]) if isinstance(value, Mapping) else (value, 0.0)
    return 100 * mean, 100 * std


def draw_curves(runs: Sequence[Run], path: str | Path, *, title: str = "ReLA") -> bool:
    """Draw one panel a probe: a curve a run with history, a level line a run without.

    Curves start at the run's labelling seconds. Bands are one standard deviation over the folds; a
    diamond marks the switch from transport to SSL.

    Args:
        runs: Runs as described in `rela_lightning.runs.report`.
        path: PNG file to write.
        title: Heading of the picture.

    Returns:
        False, and nothing is written, without matplotlib (the extra `plot`) or without any history.
    """
    panels = [(key, name) for key, name in _PANELS if any(key in point for run in runs for point in run["history"])]
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
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=130)
    return True


def _panel(axis: Any, runs: Sequence[Run], key: str) -> None:
    curved = [run for run in runs if any(key in point for point in run["history"])]
    flat = [run for run in runs if run not in curved and run.get(key) is not None]
    for run, style in zip(flat, _STYLES * (len(flat) // len(_STYLES) + 1), strict=False):
        axis.axhline(value_at(run, key)[0], color="#777777", linestyle=style, linewidth=1.1, label=run["name"])
    marked = False
    for run, colour in zip(curved, _COLOURS * (len(curved) // len(_COLOURS) + 1), strict=False):
        points = [point for point in run["history"] if key in point]
        seconds = np.array([point["seconds"] for point in points])
        mean, std = np.array([value_at(point, key) for point in points]).T
        axis.plot(seconds, mean, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=run["name"])
        if std.any():
            axis.fill_between(seconds, mean - std, mean + std, color=colour, alpha=0.12, linewidth=0)
        switch = run.get("switch_seconds")
        if switch is not None:
            level = float(np.interp(switch, seconds, mean))
            label = None if marked else "switch to SSL"
            axis.plot(switch, level, "D", color="white", markeredgecolor=colour, markersize=8, label=label, zorder=5)
            marked = True
    axis.set_xlim(left=0)
