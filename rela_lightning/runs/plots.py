"""Runs as pictures: probe accuracy against seconds, and what it took to reach an accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rela_lightning.naming import in_picture
from rela_lightning.runs.comparison import cost_to, followed

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
    figure = _figure(4.6 * len(panels) + 0.4, 4.6) if panels else None
    if figure is None:
        return False
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
    figure.suptitle(in_picture(title), fontsize=12)
    figure.savefig(path, dpi=130)
    return True


def draw_costs(runs: Sequence[Run], level: float, path: str | Path, *, title: str = "ReLA") -> bool:
    """Draw what it took each run to reach an accuracy: seconds, those of labelling in front, and steps.

    Of the probe that ran during training, linear or else kNN. Runs that never reached it say so; runs that it did not
    follow are left out.

    Args:
        runs: Runs as described in `rela_lightning.runs.report`.
        level: Top-1 in `(0, 1)`.
        path: PNG file to write.
        title: Heading of the picture.

    Returns:
        False, and nothing is written, without matplotlib or where no run was probed during training.
    """
    name = next(iter(followed(runs)), None)
    shown = [run for run in runs if name in followed([run])]
    figure = _figure(9.6, 1.6 + 0.42 * len(shown)) if name is not None else None
    if figure is None or name is None:
        return False
    heights, names = range(len(shown)), [in_picture(run["name"]) for run in shown]
    for axis, unit in zip(figure.subplots(1, 2, sharey=True), ("seconds", "steps"), strict=True):
        costs = [cost_to(run, name, level, unit) for run in shown]  # type: ignore[arg-type]
        axis.barh(heights, [cost or 0 for cost in costs], color=_COLOURS[1], height=0.6, label="training")
        if unit == "seconds":
            labelling = [
                0 if cost is None else run["labelling_seconds"] for run, cost in zip(shown, costs, strict=True)
            ]
            axis.barh(heights, labelling, color=_COLOURS[2], height=0.6, label="labelling")
        for height, cost in zip(heights, costs, strict=True):
            axis.text(cost or 0, height, " never" if cost is None else f" {cost:,.0f}", va="center", fontsize=9)
        axis.set_xlabel(unit)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_yticks(list(heights), names)
    axis.invert_yaxis()
    figure.axes[0].legend(frameon=False, loc="best")
    figure.suptitle(f"{in_picture(title)}: to reach {100 * level:g}% ({dict(_PANELS)[name]})", fontsize=12)
    figure.savefig(path, dpi=130)
    return True


def _figure(width: float, height: float) -> Any:
    """An empty picture, in inches; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _points(run: Run, key: str) -> list[Mapping[str, Any]]:
    """The points of a run's curve; the run's own figure, at what it cost, where there are none."""
    points = [point for point in run["history"] if key in point]
    return points or ([run] if None not in (run.get(key), run["seconds"]) else [])


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
        axis.plot(seconds, mean, color=colour, label=in_picture(run["name"]), **{"linewidth": 1.6, **marker})
        if std.any() and not alone:
            axis.fill_between(seconds, mean - std, mean + std, color=colour, alpha=0.12, linewidth=0)
        switch = run.get("switch_seconds")
        if switch is not None and not alone:
            level = float(np.interp(switch, seconds, mean))
            label = None if marked else "switch to SSL"
            axis.plot(switch, level, "D", color="white", markeredgecolor=colour, markersize=8, label=label, zorder=5)
            marked = True
    axis.set_xlim(left=0)
