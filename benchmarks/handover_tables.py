"""Tables for `crossover.py`: regret of the default, a part of the time against all of it, and what each lever does."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable

from curves import Row, paired, shown
from report import Group, cell, top1
from words import DEFAULT, if_unusual, in_levers, known_as, named

FIXED = ("b", "s10", "s20", "s30", "switch", "s50", "s60", "s70", "late", "last", "anchor20")
"""Schedules that a user could fix beforehand; the default is held against the best of them."""
FEWEST = 2  # fixed schedules in a cell that says something of the best of them
HANDED_OVER = {"s30": "at 30%", "plateau": "by the default"}
NEAR = 0.02  # of the budget: hand-overs no further apart are at the same share
PARTS = (0.1, 0.2, 0.5, 1.0)


def regret(group: Group, seconds: float) -> tuple[str, list[float]] | None:
    """How far the default is below the best fixed schedule of a length, in points, seed by seed.

    The best is that of the largest mean difference among those that share the most seeds with the default: of several
    that were run once, one is above it by chance.

    Returns:
        `(schedule, differences)`; None where fewer than two fixed schedules share a seed with the default.
    """
    ours = group.get(DEFAULT, {}).get(seconds, [])
    gaps = {name: paired(group[name].get(seconds, []), ours, top1) for name in FIXED if name in group}
    gaps = {name: found for name, found in gaps.items() if found}
    if len(gaps) < FEWEST:
        return None
    best = max(gaps, key=lambda name: (len(gaps[name]), statistics.fmean(gaps[name])))
    return best, gaps[best]


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
        cells = (regret_cell(row[seconds]) for seconds in lengths)
        lines.append(f"| {known_as(prior)} | {' | '.join(cells)} |")
    return [*lines, ""]


def regret_cell(found: tuple[str, list[float]] | None) -> str:
    """`+0.4 ± 1.2 (3), transport alone`: points, interval, seeds, schedule; or that the default did the same."""
    if found is None:
        return "–"
    best, gaps = found
    if not any(gaps):
        return f"the same as {named(best)[4:]} ({len(gaps)})"
    return f"{shown(gaps, '+.1f')} ({len(gaps)}), {named(best)[4:]}"


def parts_of_the_time(group: Group, prior: str, full: float) -> str:
    """One prior's row: the default in parts of a time, and the method alone in all of it."""
    runs = [group.get(DEFAULT, {}).get(round(part * full), []) for part in PARTS]
    labelling = [row["labelling_seconds"] for found in runs for row in found]
    spent = f"{statistics.fmean(labelling):.0f} s" if labelling else "–"
    cells = " | ".join(map(cell, runs))
    return f"| {known_as(prior)} | {spent} | {cells} | {cell(group['a'].get(full, []))} |"


def parts_tables(groups: dict[str, Group]) -> list[str]:
    """The default in 10, 20, 50% of the time, for each prior, beside the method alone in all of it.

    The time is the longest that the method alone was given with the most seeds; where longer ones have fewer, each of
    them has a table too.

    Args:
        groups: Runs by variant and seconds, for each prior.
    """
    groups = {prior: group for prior, group in groups.items() if group.get("a")}
    seeds: dict[float, int] = defaultdict(int)
    for group in groups.values():
        for seconds, runs in group["a"].items():
            seeds[seconds] = max(seeds[seconds], len(runs))
    settled = max((seconds for seconds, count in seeds.items() if count == max(seeds.values())), default=0)
    lines: list[str] = []
    for full in sorted(seconds for seconds in seeds if seconds >= settled):
        lines += [
            f"### A part of {full} s against all of it", "",
            "Linear top-1 with the default schedule, after a part of the training time. Labelling comes on top, once a "
            "prior: processor seconds of the machine that made the runs, which may be slower than the calibrated one.",
            "", "| prior | labelling | " + " | ".join(f"{part:.0%}" for part in PARTS) + " | the method alone, 100% |",
            "|---|" + "---:|" * (len(PARTS) + 2),
            *(parts_of_the_time(group, prior, full) for prior, group in groups.items()), "",
        ]  # fmt: skip
    return lines


def elsewhere(found: Iterable[Row], plain: Iterable[Row]) -> str:
    """`; handed over at 40%, not 30%`: where runs with levers left at another share than those without; or nothing.

    The default goes by the loss, which a lever may change, and by the rule of the day on which a run was made.
    """
    shares = [
        [row["switched_at"] / row["seconds_full"] / row["budget"] for row in rows if row.get("switched_at")]
        for rows in (found, plain)
    ]
    if not all(shares):
        return ""
    own, others = map(statistics.fmean, shares)
    return f"; handed over at {own:.0%}, not {others:.0%}" if abs(own - others) > NEAR else ""


def lever_tables(rows: Iterable[Row], images: str) -> list[str]:
    """For each method, prior and length, how far each lever moves a hand-over at the same share, or the default's.

    Args:
        rows: Runs, of which those with levers are taken, and those without them beside which they stand.
        images: What they were measured on.
    """
    settings: dict[tuple[str, str, str, str, int, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        base, _, levers = row["variant"].partition("+")
        if base in HANDED_OVER:
            seconds = round(row["seconds_full"] * row["budget"])
            settings[base, row["asked"], row["prior"], row["data"], row["images"], seconds][levers].append(row)
    lines: list[str] = []
    for (base, method, prior, data, count, seconds), runs in sorted(settings.items()):
        plain = runs.pop("", [])
        if not runs or not plain:
            continue
        names = f"{known_as(method)}, {known_as(prior)}, {known_as(data)}{if_unusual(count)}"
        title = f"{names}, {seconds} s, handed over {HANDED_OVER[base]}"
        lines += [
            f"### {title}, {images}", "",
            "| what was changed | linear | kNN | linear, against nothing |", "|---|---:|---:|---:|",
            f"| nothing | {cell(plain)} | {cell(plain, 'knn_top1')} | |",
        ]  # fmt: skip
        for levers, found in sorted(runs.items(), key=lambda run: -sum(map(top1, run[1])) / len(run[1])):
            gap = shown(paired(found, plain, top1), "+.1f")
            changed = in_levers(levers) + elsewhere(found, plain)
            lines.append(f"| {changed} | {cell(found)} | {cell(found, 'knn_top1')} | {gap} |")
        lines.append("")
    return lines
