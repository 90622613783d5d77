"""Two tables for `crossover.py`: a part of the time against all of it, and what each lever does to a hand-over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from curves import Row, paired, shown
from report import DEFAULT, IN_WORDS, cell, top1

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


def parts_of_the_time(group: dict[str, dict[int, list[Row]]], prior: str) -> Iterator[str]:
    """One prior's row: the default in parts of the longest time that the method alone was given."""
    full = max(group["a"])
    cells = (cell(group.get(DEFAULT, {}).get(round(part * full), [])) for part in PARTS)
    yield f"| {IN_WORDS.get(prior, prior)} | {' | '.join(cells)} | {cell(group['a'][full])} |"


def parts_table(groups: dict[str, dict[str, dict[int, list[Row]]]]) -> list[str]:
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
