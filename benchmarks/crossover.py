"""Where a hand-over begins to pay: accuracy against the length of a run, for each prior, from all runs of all budgets.

    python benchmarks/crossover.py [--out docs/crossover.md]

The runs are those of `convergence.py run`, brought together by their seconds, whatever `--seconds` and `--budgets` they
were made with: all runs of the fixed schedules and of the default. Cells with fewer than three seeds say so, and no
claim rests on them. The tables of convergence.md that are copies of these are written too.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from curves import Row, Runs
from handover_tables import FIXED, lever_tables, parts_tables, regret_table
from report import asked_for, cell, of_each_prior, top1
from table_copies import with_copies
from words import DEFAULT, if_unusual, in_order, known_as, named

SHOWN = ("a", *FIXED, DEFAULT)
"""Variants in the tables and pictures of a prior."""


class Setting(NamedTuple):
    """What stands in one table."""

    method: str
    data: str
    images: int
    prior: str


def by_seconds(rows: Iterable[Row]) -> dict[Setting, dict[str, Runs]]:
    """Runs by setting, variant and seconds."""
    settings: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row["variant"] in SHOWN:
            settings[row["asked"], row["data"], row["images"]].append(row)
    return {
        Setting(*setting, prior): group
        for setting, own in sorted(settings.items())
        for prior, group in of_each_prior(own, lambda row: round(row["seconds_full"] * row["budget"]))
        if prior
    }


def table(group: dict[str, Runs]) -> Iterator[str]:
    """Linear top-1 of each schedule at each length."""
    lengths = sorted({seconds for runs in group.values() for seconds in runs})
    yield "| linear top-1 after | " + " | ".join(f"{seconds} s" for seconds in lengths) + " |"
    yield "|---|" + "---:|" * len(lengths)
    for variant in in_order(group):
        cells = (cell(group[variant].get(seconds, [])) for seconds in lengths)
        yield f"| {named(variant)} | {' | '.join(cells)} |"


def draw(settings: dict[Setting, dict[str, Runs]], path: Path) -> None:
    """A panel for each prior: accuracy against the length of the run, a line for each schedule."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1,
        len(settings),
        figsize=(max(4.5 * len(settings), 6), 4.5),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    colours = {variant: f"C{number}" for number, variant in enumerate(SHOWN)}
    for axis, (setting, group) in zip(axes[0], settings.items(), strict=True):
        for variant in in_order(group):
            runs = group[variant].items()
            points = sorted((seconds, statistics.fmean(map(top1, rows))) for seconds, rows in runs)
            axis.plot(*zip(*points, strict=True), marker="o", color=colours[variant], label=named(variant))
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%d"))
        axis.set_xlabel("seconds of training")
        axis.set_title(f"prior: {known_as(setting.prior)}", fontsize=10)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("linear top-1, %")
    lines = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def page(rows: list[Row], explored: list[Row], figures: Path) -> str:
    """The page, as Markdown; its pictures are drawn beside it.

    Args:
        rows: Runs that were put to the test set.
        explored: Runs on validation images, for the levers.
        figures: Folder of the pictures.
    """
    settings = {
        setting: group for setting, group in by_seconds(rows).items()
        if len(group) > 2 and len({seconds for runs in group.values() for seconds in runs}) > 1
    }  # fmt: skip
    lines = [
        "# Where a hand-over begins to pay", "",
        f"Written by `python benchmarks/crossover.py` from {len(rows)} runs, the last of "
        f"{max(row['date'] for row in rows)[:10]}. Percent on the test set, mean and 95% interval over seeds, in "
        "brackets their number; equal training time by calibrated step times, see [convergence.md](convergence.md). "
        "What stands on one seed is a first look, and no claim.", "",
    ]  # fmt: skip
    for method, data, images in sorted({setting[:3] for setting in settings}, key=lambda of: (*of[:2], -of[2])):
        own = {setting: group for setting, group in settings.items() if setting[:3] == (method, data, images)}
        of_priors = {setting.prior: group for setting, group in own.items()}
        names = f"{known_as(method)}, {known_as(data)}{if_unusual(images)}"
        picture = figures / f"crossover-{method}-{data}{f'-{images}' if if_unusual(images) else ''}.png"
        draw(own, picture)
        lines += [
            f"## {names}",
            "",
            f"![{names}: accuracy against the length of the run]({figures.name}/{picture.name})",
            "",
            *regret_table(of_priors),
            *parts_tables(of_priors),
        ]
        for setting, group in own.items():
            lines += [f"### Prior: {known_as(setting.prior)}", "", *table(group), ""]
    levers = [*lever_tables(explored, "validation images"), *lever_tables(rows, "test images")]
    if levers:
        lines += ["## What makes a hand-over win or lose", "", "One or two things changed at a time.", "", *levers]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    options = asked_for(__doc__, "crossover.md")
    explored = options.results.with_name("exploration.jsonl")
    rows, tried = (
        [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for path in (options.results, explored)
    )
    options.out.write_text(page(rows, tried, options.out.parent / "figures"))
    print(options.out)
    told = options.out.with_name("convergence.md")
    if told.exists():
        told.write_text(with_copies(told.read_text(), told.parent))
        print(told)


if __name__ == "__main__":
    main()
