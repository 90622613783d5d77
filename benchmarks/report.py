"""Tables and curves from `results/convergence.jsonl`: accuracy against seconds, and the cost of an accuracy.

    python benchmarks/report.py [--out docs/convergence_tables.md]

Means over seeds with 95% confidence intervals (Student's t). Training seconds and training plus labelling stand
side by side. Nothing is left out: every run in the file enters its table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "convergence.jsonl"
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
NAMES = {
    "a": "(a) SSL alone, tuned",
    "b": "(b) transport alone",
    "b2": "(b) transport alone, two views",
    "c": "(c) authors' rule, frozen map",
    "switch": "(d) Switch(0.4)",
    "switch+warm": "(d) Switch(0.4), head warm-up",
    "late": "(d) Switch(0.8)",
    "last": "(d) Switch(0.9)",
    "blend": "(d) Blend",
    "plateau": "(d) Plateau, the default",
    "mix": "(d) Mix",
    "e": "(e) online distillation",
    "f": "(f) supervised",
}
DEFAULT = "plateau"
Group = dict[str, dict[float, list[dict[str, Any]]]]


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of the 95% interval; infinite for one value."""
    if len(values) < 2:
        return statistics.fmean(values), math.inf
    return statistics.fmean(values), T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def cell(rows: list[dict[str, Any]], key: str = "linear_top1") -> str:
    """`71.2 ± 0.8 (3)`: percent, interval, seeds."""
    if not rows:
        return "–"
    mean, half = mean_and_interval([100 * row[key] for row in rows])
    interval = "" if math.isinf(half) else f" ± {half:.1f}"
    return f"{mean:.1f}{interval} ({len(rows)})"


def points(group: dict[float, list[dict[str, Any]]], *, labelling: bool) -> list[tuple[float, float]]:
    """(seconds, mean accuracy) of each budget, rising."""
    result = []
    for rows in group.values():
        seconds = statistics.fmean(row["training_seconds"] + labelling * row["labelling_seconds"] for row in rows)
        result.append((seconds, statistics.fmean(row["linear_top1"] for row in rows)))
    return sorted(result)


def seconds_to(curve: list[tuple[float, float]], accuracy: float) -> str:
    """Seconds at which a curve reaches an accuracy, interpolated between budgets."""
    if not curve:
        return "–"
    if curve[0][1] >= accuracy:
        return f"≤ {curve[0][0]:.0f}"
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if y0 < accuracy <= y1:
            return f"{x0 + (x1 - x0) * (accuracy - y0) / (y1 - y0):.0f}"
    return f"> {curve[-1][0]:.0f}"


def accuracy_at(curve: list[tuple[float, float]], seconds: float) -> float | None:
    """Accuracy a curve has at some seconds, interpolated between budgets; None before its first point."""
    if not curve or seconds < curve[0][0]:
        return None
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if seconds <= x1:
            return y0 + (y1 - y0) * (seconds - x0) / (x1 - x0)
    return curve[-1][1]


def counted_table(group: Group, budgets: list[float], full_seconds: float) -> list[str]:
    """Accuracy at equal training plus labelling time."""
    lines = [
        "Linear top-1, percent, at equal time of training and labelling together (interpolated between budgets;",
    ]
    lines[0] += " – where labelling alone takes longer, or no run is that short):"
    lines += ["", "| variant | " + " | ".join(f"{b * full_seconds:.0f} s" for b in budgets) + " |"]
    lines += ["|---|" + "---:|" * len(budgets)]
    for variant in sorted(group, key=list(NAMES).index):
        curve = points(group[variant], labelling=True)
        # a budget's last step never quite fills it: half a percent short of the budget counts as the budget
        found = [accuracy_at(curve, b * full_seconds * 1.005) for b in budgets]
        cells = ["–" if value is None else f"{100 * value:.1f}" for value in found]
        lines.append(f"| {NAMES[variant]} | {' | '.join(cells)} |")
    return ["", *lines]


def mean_of(group: Group, variant: str, budget: float) -> float | None:
    """Mean linear top-1 of a variant at a budget."""
    rows = group.get(variant, {}).get(budget, [])
    return statistics.fmean(row["linear_top1"] for row in rows) if rows else None


def has_curve(group: Group) -> bool:
    """Whether the default was run at several budgets, so that its cost can be read between them."""
    return len(group.get(DEFAULT, {})) > 1


def bars(group: Group) -> list[str]:
    """How far the default is from the best of its parts, and its cost to the baseline's accuracy."""
    lines: list[str] = []
    for budget in sorted(group.get(DEFAULT, {})):
        parts = [found for part in "abc" if (found := mean_of(group, part, budget)) is not None]
        own = mean_of(group, DEFAULT, budget)
        if own is not None and len(parts) == 3:
            gap = 100 * (own - max(parts))
            lines.append(f"- At {100 * budget:.0f}%: the default is {gap:+.1f} points from the best of a, b, c.")
    goal = mean_of(group, "a", 1.0)
    if goal is not None and DEFAULT in group:
        full = points({1.0: group["a"][1.0]}, labelling=False)[0][0]
        counted = (("training", False), ("training and labelling", True)) if has_curve(group) else ()
        for name, labelling in counted:
            needed = seconds_to(points(group[DEFAULT], labelling=labelling), goal)
            number = float(needed.lstrip("≤> ")) / full
            sign = needed[0] + " " if needed[0] in "≤>" else ""
            cost = f"{needed} s, {sign}{100 * number:.0f}% of its time"
            lines.append(f"- Cost to the baseline's full-budget accuracy, {name}: {cost}.")
        own = mean_of(group, DEFAULT, 1.0)
        if own is not None:
            lines.append(f"- At the full budget the default is {100 * (own - goal):+.1f} points from (a).")
    return ["", *lines] if lines else []


def section(title: str, group: Group) -> list[str]:
    """Tables of one method, data set and prior."""
    budgets = sorted({budget for rows in group.values() for budget in rows})
    lines = [f"## {title}", "", "Linear top-1, percent, at equal training time; kNN top-1 at the full budget.", ""]
    lines += ["| variant | " + " | ".join(f"{100 * b:.0f}%" for b in budgets) + " | kNN | labelling s |"]
    lines += ["|---|" + "---:|" * (len(budgets) + 2)]
    for variant in sorted(group, key=list(NAMES).index):
        rows = group[variant]
        full = rows.get(budgets[-1], [])
        labelling = statistics.fmean(row["labelling_seconds"] for runs in rows.values() for row in runs)
        cells = [cell(rows.get(budget, [])) for budget in budgets]
        lines.append(f"| {NAMES[variant]} | {' | '.join(cells)} | {cell(full, 'knn_top1')} | {labelling:.0f} |")
    base = group.get("a", {})
    if base and 1.0 in base and not has_curve(group):
        lines += bars(group)
    elif base and 1.0 in base:
        goal = statistics.fmean(row["linear_top1"] for row in base[1.0])
        full_seconds = points({1.0: base[1.0]}, labelling=False)[0][0]
        lines += [
            "",
            f"Seconds to the baseline's full-budget accuracy ({100 * goal:.1f}% in {full_seconds:.0f} s):",
            "",
        ]
        lines += ["| variant | training | training + labelling |", "|---|---:|---:|"]
        for variant in sorted(group, key=list(NAMES).index):
            both = [seconds_to(points(group[variant], labelling=counted), goal) for counted in (False, True)]
            lines.append(f"| {NAMES[variant]} | {both[0]} | {both[1]} |")
        lines += [*counted_table(group, budgets, full_seconds), *bars(group)]
    return [*lines, ""]


def draw(title: str, group: Group, path: Path) -> None:
    """Accuracy against seconds, labelling left out and counted."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, labelling in zip(axes, (False, True), strict=True):
        for variant in sorted(group, key=list(NAMES).index):
            curve = points(group[variant], labelling=labelling)
            axis.plot(*zip(*curve, strict=True), marker="o", label=NAMES[variant])
        axis.set_xlabel("seconds of training" + (" and labelling" if labelling else ""))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("linear top-1")
    axes[0].legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=RESULTS.parents[2] / "docs" / "convergence_tables.md")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    groups: dict[tuple[str, str, int, float], dict[str, Group]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    for row in rows:
        setting = (row["asked"], row["data"], row["images"], row["seconds_full"])
        priors = [row["prior"]] if row["prior"] else {r["prior"] for r in rows if r["prior"]}
        for prior in priors:  # the baseline stands in every prior's table
            groups[setting][prior][row["variant"]].setdefault(row["budget"], []).append(row)
    last = rows[-1]
    lines = [
        "# Convergence: tables",
        "",
        f"Written by `python benchmarks/report.py` from {len(rows)} runs, the last of {last['date']}, on "
        f"{last['hardware']['cpu']} ({last['threads']} thread a run), torch {last['versions']['torch']}, lightning "
        f"{last['versions']['lightning']}. In brackets: seeds. CIFAR-10 is a JPEG copy.",
        "",
    ]
    for (method, data, images, seconds), by_prior in sorted(groups.items()):
        for prior, group in sorted(by_prior.items()):
            if set(group) <= {"a", "f"} and len(by_prior) > 1:
                continue
            title = f"{method}, {data}, {images} images, {seconds:.0f} s, prior {prior}"
            figure = (
                options.out.parent / "figures" / f"{method}-{data}-{images}-{seconds:.0f}-{prior}.png".replace(":", "-")
            )
            draw(title, group, figure)
            lines += [*section(title, group), f"![{title}]({figure.relative_to(options.out.parent)})", ""]
    options.out.write_text("\n".join(lines))
    print(options.out)


if __name__ == "__main__":
    main()
