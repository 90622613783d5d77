"""Tables and curves from `results/convergence.jsonl`: accuracy against seconds, and the cost of an accuracy.

    python benchmarks/report.py [--out docs/convergence_tables.md]

Means over seeds with 95% confidence intervals (Student's t); differences are taken seed by seed. Training seconds
and training plus labelling stand side by side. Nothing is left out: every run in the file enters its table.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from curves import Row, Runs, at, cost, mean_and_interval, paired, shown, spent
from words import DEFAULT, in_order, known_as, named

RESULTS = Path(__file__).parent / "results" / "convergence.jsonl"
COUNTED = (("training", False), ("training and labelling", True))
Group = dict[str, Runs]
"""Runs of one method, data set and prior, by variant and budget."""


def top1(row: Row) -> float:
    """Linear top-1 in percent."""
    return 100 * float(row["linear_top1"])


def cell(rows: list[Row], key: str = "linear_top1") -> str:
    """`71.2 ± 0.8 (3)`: percent, interval, seeds."""
    return f"{shown([100 * row[key] for row in rows])} ({len(rows)})" if rows else "–"


def accuracies(group: Group, budgets: list[float]) -> Iterator[str]:
    """Accuracy at equal training time."""
    yield "Linear top-1, percent, at equal training time; kNN top-1 at the longest budget."
    yield from ("", "| variant | " + " | ".join(f"{100 * b:.0f}%" for b in budgets) + " | kNN | labelling s |")
    yield "|---|" + "---:|" * (len(budgets) + 2)
    for variant in in_order(group):
        runs = group[variant]
        labelling = statistics.fmean(row["labelling_seconds"] for rows in runs.values() for row in rows)
        cells = [cell(runs.get(budget, [])) for budget in budgets]
        cells += [cell(runs.get(budgets[-1], []), "knn_top1"), f"{labelling:.0f}"]
        yield f"| {named(variant)} | {' | '.join(cells)} |"


def counted(group: Group, budgets: list[float], full: float) -> Iterator[str]:
    """Accuracy at equal time of training and labelling together."""
    yield ""
    yield (
        "Linear top-1, percent, at equal time of training and labelling together (interpolated between budgets; – "
        "where no run is that short or that long):"
    )
    yield from ("", "| variant | " + " | ".join(f"{b * full:.0f} s" for b in budgets) + " |")
    yield "|---|" + "---:|" * len(budgets)
    for variant in in_order(group):
        # a budget's last step never quite fills it: half a percent short of the budget counts as the budget
        found = [at(group[variant], b * full * 1.005, labelling=True) for b in budgets]
        yield f"| {named(variant)} | {' | '.join(shown([100 * v for v in f]) if f else '–' for f in found)} |"


def seconds(found: tuple[str, list[float]]) -> str:
    """`28 ± 3`, `≤ 60`: seconds over seeds, after their sign; a bound has no interval. `–` without a seed."""
    sign, values = found
    if not values:
        return "–"
    if sign in ("≤", ">"):
        return f"{sign} {statistics.fmean(values):.0f}"
    return (sign + " " if sign else "") + shown(values, ".0f")


def costs(group: Group, goal: float, full: float) -> Iterator[str]:
    """Seconds to the accuracy that the baseline has after its full budget."""
    yield from (
        "",
        f"Seconds to the baseline's mean accuracy after its full budget ({100 * goal:.1f}% in {full:.0f} s),",
    )
    yield "mean and interval over seeds (≤: the shortest run is enough; >: the longest is not; ≈: either, for a seed):"
    yield from ("", "| variant | training | training + labelling |", "|---|---:|---:|")
    for variant in in_order(group):
        both = [seconds(cost(group[variant], goal, labelling=labelling)) for _, labelling in COUNTED]
        yield f"| {named(variant)} | {both[0]} | {both[1]} |"


def bars(group: Group, goal: float, full: float) -> Iterator[str]:
    """How far the default is from the best of its parts and from the baseline, and what that accuracy costs."""
    ours = group.get(DEFAULT, {})
    yield ""
    for budget in sorted(ours):
        parts = {part: group[part][budget] for part in "abc" if budget in group.get(part, {})}
        if len(parts) == 3:
            best = max(parts, key=lambda part: statistics.fmean(map(top1, parts[part])))
            gap, share = shown(paired(ours[budget], parts[best], top1), "+.1f"), f"{100 * budget:.0f}%"
            yield f"- At {share} of training time the default is {gap} points from the best of a, b, c ({best})."
    if 1.0 in ours:
        gap = shown(paired(ours[1.0], group["a"][1.0], top1), "+.1f")
        extra = statistics.fmean(row["labelling_seconds"] for row in ours[1.0])
        each = f"{full:.0f} s of training each, and {extra:.0f} s of labelling"
        yield f"- After {each}, the default is {gap} points from (a)."
    if len(ours) > 1:
        own = cost(group["a"], goal, labelling=False)
        for name, labelling in COUNTED:
            sign, values = cost(ours, goal, labelling=labelling)
            if not values:  # no seed was run at every budget
                continue
            mean, itself = statistics.fmean(values), statistics.fmean(own[1])
            share = f"{sign} {100 * mean / full:.0f}% of that budget".lstrip()
            line = f"- Cost to (a)'s full-budget accuracy, {name}: {seconds((sign, values))} s, {share}"
            if len(group["a"]) > 1:
                line += f"; (a) itself first has it after {seconds(own)} s, of which that is {100 * mean / itself:.0f}%"
            yield f"{line}."


def section(title: str, group: Group) -> list[str]:
    """Tables of one method, data set and prior."""
    budgets = sorted({budget for runs in group.values() for budget in runs})
    lines = [f"## {title}", "", *accuracies(group, budgets)]
    base = group.get("a", {}).get(1.0)
    if base:
        goal = statistics.fmean(row["linear_top1"] for row in base)
        full = statistics.fmean(row["training_seconds"] for row in base)
        if any(len(runs) > 1 for variant, runs in group.items() if variant != "a"):
            lines += [*costs(group, goal, full), *counted(group, budgets, full)]
        lines += bars(group, goal, full)
    return [*lines, ""]


def step_times(calibration: dict[str, Any]) -> list[str]:
    """What a step costs, with the wait for its data and without."""
    lines = ["## Step times", "", "Seconds of a step, calibrated side by side; `ssl` is 1. Budgets go by these.", ""]
    lines += ["| data | method/batch | step | seconds | of which data | ratio | ratio without data |"]
    lines += ["|---|---|---|---:|---:|---:|---:|"]
    for data, found in sorted(calibration.items()):
        for name, kinds in sorted(found["step"].items()):
            own = kinds["ssl"]
            for kind, row in kinds.items():
                bare, base = row["seconds"] - row["data_wait"], own["seconds"] - own["data_wait"]
                lines.append(
                    f"| {data} | {name} | {kind} | {row['seconds']:.3f} | {row['data_wait']:.3f} "
                    f"| {row['seconds'] / own['seconds']:.2f} | {bare / base:.2f} |"
                )
    return [*lines, ""]


def draw(title: str, group: Group, path: Path) -> None:
    """Accuracy against seconds, labelling left out and counted, with intervals."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, (name, labelling) in zip(axes, COUNTED, strict=True):
        for variant in in_order(group):
            points = []
            for _, rows in sorted(group[variant].items()):
                mean, half = mean_and_interval([top1(row) for row in rows])
                x = statistics.fmean(spent(row, labelling=labelling) for row in rows)
                points.append((x, mean, 0.0 if math.isinf(half) else half))
            x, y, error = zip(*points, strict=True)
            axis.errorbar(x, y, yerr=error, marker="o", capsize=2, label=named(variant))
        axis.set_xlabel(f"seconds of {name}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("linear top-1, %")
    axes[0].legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def of_each_prior(rows: list[Row], length: Callable[[Row], float]) -> Iterator[tuple[str | None, Group]]:
    """Runs by variant and `length`, for each prior; the runs without a prior stand beside those of every prior.

    Raises:
        SystemExit: If a seed was run twice, as after tuning again: both cannot enter one mean.
    """
    for prior in sorted({row["prior"] for row in rows if row["prior"]}) or [None]:
        group: Group = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row["prior"] in (None, prior):
                group[row["variant"]][length(row)].append(row)
        for variant, runs in group.items():
            for at_length, found in runs.items():
                if len({row["seed"] for row in found}) < len(found):
                    asked, data = found[0]["asked"], found[0]["data"]
                    raise SystemExit(f"{asked}, {data}, {variant} at {at_length}: a seed was run twice.")
        yield prior, group


def grouped(rows: list[Row]) -> Iterator[tuple[str, str, Group]]:
    """Title, file name and runs of every setting and prior."""
    settings: dict[tuple[str, str, int, float], list[Row]] = defaultdict(list)
    for row in rows:
        settings[row["asked"], row["data"], row["images"], row["seconds_full"]].append(row)
    for (method, data, images, full), own in sorted(settings.items()):
        for prior, group in of_each_prior(own, lambda row: float(row["budget"])):
            name = f"{method}-{data}-{images}-{full:.0f}-{prior}.png".replace(":", "-").replace("/", "-")
            method_, data_, prior_ = map(known_as, (method, data, prior or "none"))
            yield f"{method_}, {data_}, {images:,} images, {full:.0f} s, prior: {prior_}", name, group


def asked_for(about: str | None, page: str) -> argparse.Namespace:
    """Options of a script that writes a page of docs from the results."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=RESULTS.parents[2] / "docs" / page)
    return parser.parse_args()


def main() -> None:
    options = asked_for(__doc__, "convergence_tables.md")
    rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    last = max(rows, key=lambda row: row["date"])
    lines = [
        "# Convergence: tables",
        "",
        f"Written by `python benchmarks/report.py` from {len(rows)} runs, the last of {last['date']}, on "
        f"{last['hardware']['cpu']} ({last['threads']} thread a run), torch {last['versions']['torch']}, lightning "
        f"{last['versions']['lightning']}. In brackets: seeds. CIFAR-10 is a JPEG copy.",
        "",
    ]
    for title, name, group in grouped(rows):
        lines += section(title, group)
        if any(len(runs) > 1 for runs in group.values()):  # one budget is a point, and no curve
            figure = options.out.parent / "figures" / name
            draw(title, group, figure)
            lines += [f"![{title}]({figure.relative_to(options.out.parent)})", ""]
    calibration = options.results.parent / "calibration.json"
    if calibration.exists():
        lines += step_times(json.loads(calibration.read_text()))
    options.out.write_text("\n".join(lines))
    print(options.out)


if __name__ == "__main__":
    main()
