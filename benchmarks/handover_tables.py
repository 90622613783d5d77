"""Tables for `crossover.py`: regret of the default, a part of the time against all of it, and what each lever does."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator

from curves import Row, paired, shown
from report import DEFAULT, IN_WORDS, NAMES, Group, cell, top1

FIXED = ("a", "b", "s10", "s20", "switch", "late", "last", "anchor20")
"""Schedules that a user could fix beforehand; the default is held against the best of them."""
FEWEST = 2  # fixed schedules in a cell that says something of the best of them
PARTS = (0.1, 0.2, 0.5, 1.0)
LEVERS = {
    "warm": "heads warmed for the 5% before",
    "rate": "learning rate warmed up and annealed anew",
    "optimizer": "optimizer's moments forgotten",
    "slow": "teacher momentum .99 from then on",
    "teacher": "teacher begins as a copy of the student",
    "target": "cached target in place of the teacher's branch",
    "anchor": "transport stays, at a weight of .1",
    "decay": "transport stays, its weight falls from 1 to 0",
    "views": "transport to 4 stored views an image",
    "neighbours": "neighbours of the targets as positives",
}


def regret(group: Group, seconds: float) -> tuple[str, list[float]] | None:
    """How far the default is below the best fixed schedule of a length, in points, seed by seed.

    Returns:
        `(schedule, differences)`; None where fewer than two fixed schedules share a seed with the default.
    """
    ours = group.get(DEFAULT, {}).get(seconds, [])
    gaps = {name: paired(group[name].get(seconds, []), ours, top1) for name in FIXED if name in group}
    gaps = {name: found for name, found in gaps.items() if found}
    best = max(gaps, key=lambda name: statistics.fmean(gaps[name]), default="")
    return (best, gaps[best]) if len(gaps) >= FEWEST else None


def regret_table(groups: dict[str, Group]) -> list[str]:
    """How far the default is below the best fixed schedule, for each prior and length.

    Args:
        groups: Runs by variant and seconds, for each prior.
    """
    lengths = sorted({seconds for group in groups.values() for runs in group.values() for seconds in runs})
    found = {prior: {seconds: regret(group, seconds) for seconds in lengths} for prior, group in groups.items()}
    lengths = [seconds for seconds in lengths if any(row[seconds] for row in found.values())]
    if not lengths:
        return []
    lines = [
        "### The default against the best fixed schedule", "",
        "Points of linear top-1 that the best fixed schedule is above the default, seed by seed, in brackets the "
        "number of seeds; negative where the default is the best of all.", "",
        "| prior | " + " | ".join(f"{seconds} s" for seconds in lengths) + " |", "|---|" + "---:|" * len(lengths),
    ]  # fmt: skip
    for prior, row in found.items():
        cells = (
            f"{shown(found[1], '+.1f')} ({len(found[1])}), {NAMES[found[0]][4:]}" if found else "–"
            for found in (row[seconds] for seconds in lengths)
        )
        lines.append(f"| {IN_WORDS.get(prior, prior)} | {' | '.join(cells)} |")
    return [*lines, ""]


def parts_of_the_time(group: Group, prior: str) -> Iterator[str]:
    """One prior's row: the default in parts of the longest time that the method alone was given."""
    full = max(group["a"])
    cells = (cell(group.get(DEFAULT, {}).get(round(part * full), [])) for part in PARTS)
    yield f"| {IN_WORDS.get(prior, prior)} | {' | '.join(cells)} | {cell(group['a'][full])} |"


def parts_table(groups: dict[str, Group]) -> list[str]:
    """The default in 10, 20, 50% of the time, for each prior, beside the method alone in all of it.

    Args:
        groups: Runs by variant and seconds, for each prior.
    """
    groups = {prior: group for prior, group in groups.items() if group.get("a")}
    if not groups:
        return []
    full = max(max(group["a"]) for group in groups.values())
    lines = [
        f"### A part of {full} s against all of it", "",
        "Linear top-1 with the default schedule. Labelling is not counted here: its seconds, once a prior, stand in "
        "[convergence_tables.md](convergence_tables.md).", "",
        "| prior | " + " | ".join(f"{part:.0%}" for part in PARTS) + " | the method alone, 100% |",
        "|---|" + "---:|" * (len(PARTS) + 1),
    ]  # fmt: skip
    for prior, group in groups.items():
        lines += parts_of_the_time(group, prior)
    return [*lines, ""]


def lever_tables(rows: Iterable[Row]) -> list[str]:
    """For each prior and length, how far each lever moves a hand-over at the same share; validation images."""
    settings: dict[tuple[str, str, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        base, _, lever = row["variant"].partition("+")
        if base == "s30" and (not lever or lever in LEVERS):
            setting = row["prior"], row["data"], round(row["seconds_full"] * row["budget"])
            settings[setting][lever].append(row)
    lines: list[str] = []
    for (prior, data, seconds), runs in sorted(settings.items()):
        plain = runs.get("", [])
        if len(runs) < 2 or not plain:
            continue
        lines += [
            f"### {IN_WORDS.get(prior, prior)}, {IN_WORDS.get(data, data)}, {seconds} s", "",
            "| lever | linear | kNN | linear, against none |", "|---|---:|---:|---:|",
            f"| none | {cell(plain)} | {cell(plain, 'knn_top1')} | |",
        ]  # fmt: skip
        for lever, words in LEVERS.items():
            if found := runs.get(lever):
                gap = shown(paired(found, plain, top1), "+.1f")
                lines.append(f"| {words} | {cell(found)} | {cell(found, 'knn_top1')} | {gap} |")
        lines.append("")
    if not lines:
        return []
    head = "Handed over at 30%; one thing changed at a time, on validation images (`convergence.py explore`)."
    return ["## What makes a hand-over win or lose", "", head, "", *lines]
