"""When would `Plateau` have handed over in the runs that were made? Its rule, put to their transport losses.

    python benchmarks/replay.py [--slope 0.00175 0.0135] [--window 0.1]

A run's curve has a hundred points, each the mean loss of a percent of its budget; the rule sees each as often as there
were steps in it. A curve that ends at a fixed hand-over says nothing of what comes after it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from convergence import RESULTS
from curves import Row
from handover_tables import FIXED
from words import DEFAULT

from rela_lightning.schedules import Plateau

SAME_LOSS = (*FIXED, DEFAULT)
"""Variants whose transport phase is the default's: one view, the map trained."""


def replay(row: Row, costs: dict[str, Any], **options: float) -> str:
    """Percent of the budget at which the rule hands over; `-`, or `>` and the last percent of the curve, where not."""
    losses, rule = row["transport_loss"], Plateau(**options)
    batch_size = row["settings"]["batch_size"]
    step = costs[row["data"]]["step"][f"{row['asked']}/{batch_size}"]["transport1"]["seconds"]
    steps = round(row["seconds_full"] * row["budget"] / step)  # that transport to the end would have
    for number in range(round(steps * len(losses) / 100)):
        rule.update(torch.tensor(losses[100 * number // steps]), number / steps, number / (row["images"] // batch_size))
        if rule.fired:
            return f"{100 * number // steps}"
    return "-" if len(losses) >= 100 else f">{len(losses)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slope", nargs="*", type=float, default=[0.00175, 0.0135],
                        help="what Plateau takes for a prior of many directions, and of few")  # fmt: skip
    parser.add_argument("--window", nargs="*", type=float, default=[Plateau().window])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    costs = json.loads((options.results / "calibration.json").read_text())
    runs: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in map(json.loads, (options.results / "convergence.jsonl").read_text().splitlines()):
        if row["variant"] in SAME_LOSS:
            seconds = round(row["seconds_full"] * row["budget"])
            runs[seconds, row["asked"], row["data"], str(row["prior"]), row["variant"]].append(row)
    for slope, window in itertools.product(options.slope, options.window):
        print(f"\nPlateau(slope={slope}, window={window}): percent of the budget, a number for each run\n")
        for (seconds, *names), rows in sorted(runs.items()):
            found = [replay(row, costs, slope=slope, window=window) for row in rows]
            print(f"{seconds:5d} s  {', '.join(names):55s} {' '.join(found)}")


if __name__ == "__main__":
    main()
