"""Tables of `results/transport_phase.jsonl`."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from curves import shown

TABLE = ("data", "images", "split", "prior", "batch", "lr", "steps", "counted", "resolution")
LINE = ("view", "loss", "kind")
BASE = ("k0", "cosine", "per_dim")
Row = dict[str, Any]


def report(path: Path) -> None:
    """Print a table for each prior, length and batch size: percent, 95% interval over seeds, and seconds of a step.

    The difference is to `k0` with the cosine and per-dimension targets, seed by seed.
    """
    tables: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in map(json.loads, path.read_text().splitlines()):
        tables[tuple(row[name] for name in TABLE)][tuple(row[name] for name in LINE)].append(row)
    for names, lines in sorted(tables.items(), key=lambda item: str(item[0])):
        print("\n" + ", ".join(f"{name} {value}" for name, value in zip(TABLE, names, strict=True)), end="\n\n")
        print("| view | loss | targets | linear | kNN | linear, less the first line's | seeds | steps | s/step |")
        print("|---|---|---|---:|---:|---:|---:|---:|---:|")
        base = {row["seed"]: row for row in lines.get(BASE, [])}
        for line, rows in sorted(lines.items(), key=lambda item: item[0] != BASE):
            linear, knn = (shown([100 * row[name] for row in rows]) for name in ("linear_top1", "knn_top1"))
            gains = [100 * (r["linear_top1"] - base[r["seed"]]["linear_top1"]) for r in rows if r["seed"] in base]
            gain = shown(gains, "+.1f") if gains and line != BASE else "–"
            steps, cost = (statistics.median(row[name] for row in rows) for name in ("steps_made", "step_seconds"))
            print(f"| {' | '.join(line)} | {linear} | {knn} | {gain} | {len(rows)} | {steps:.0f} | {cost:.3f} |")
