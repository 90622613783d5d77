"""The page of `ranking.py`: each score against the accuracy after training."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from curves import Row
from scipy.stats import spearmanr

SCORES: dict[str, Callable[[Row], float]] = {
    "stable directions (the order)": lambda row: row["stable_directions"],
    "stability": lambda row: row["stability"],
    "richness": lambda row: row["richness"],
    "neighbours shared with the other priors": lambda row: statistics.fmean(row["agreement"].values()),
    "width of the features": lambda row: row["feature_dim"],
    "parameters of the prior": lambda row: row["parameters"],
    "distance to the student before": lambda row: -row["distance_before"],
    "loss of the student after": lambda row: -row["loss_after"],
}
"""What a prior may be chosen by; high is good."""
Accuracies = dict[tuple[str, int], dict[str, list[float]]]
"""Percent of each seed by (data, steps) and prior."""


def report(ranks: Path, runs: Path, out: Path) -> None:
    """Write the page from both results files."""
    rankings = [json.loads(line) for line in ranks.read_text().splitlines()]
    trained = [json.loads(line) for line in runs.read_text().splitlines()]
    parts = (head(rankings, trained), summary(rankings, trained), details(rankings, trained))
    out.write_text("\n".join(itertools.chain(*parts)) + "\n")
    print(out)


def accuracies(trained: list[Row]) -> Accuracies:
    """Linear top-1 on the test images, of the seeds with which every prior was trained."""
    found: dict[tuple[str, int], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in sorted(trained, key=lambda row: (row["data"], row["steps"])):
        found[row["data"], row["steps"]][row["prior"]][row["seed"]] = 100 * row["linear_top1"]
    return {cell: _of_common_seeds(own) for cell, own in found.items()}


def _of_common_seeds(own: dict[str, dict[int, float]]) -> dict[str, list[float]]:
    seeds = sorted(set.intersection(*(set(of_seed) for of_seed in own.values())))
    return {prior: [of_seed[seed] for seed in seeds] for prior, of_seed in own.items()}


def head(rankings: list[Row], trained: list[Row]) -> Iterator[str]:
    """What was done."""
    images = trained[0]["images"]
    yield "# Does the ranking of priors hold?\n"
    yield (
        f"Written by `python benchmarks/ranking.py report` from {len(rankings)} rankings and {len(trained)} runs, the "
        f"last of {max(row['date'] for row in trained)[:10]}. `rank_priors` sees {images:,} images of each set and no "
        "label; then a ResNet-9 of width .25 is trained with the targets of each prior, transport alone (the default "
        "at such budgets) and probed. Accuracies are linear top-1 in percent on the test images, means over seeds, "
        "whose number stands in brackets.\n"
    )


def summary(rankings: list[Row], trained: list[Row]) -> Iterator[str]:
    """Spearman's correlation and regret of each score, for the sets and budgets at which every prior was trained."""
    measured = accuracies(trained)
    for samples in sorted({ranking["samples"] for ranking in rankings}):
        own = {ranking["data"]: ranking for ranking in rankings if ranking["samples"] == samples}
        cells = [cell for cell in measured if cell[0] in own and names_of(own[cell[0]]) <= measured[cell].keys()]
        if not cells:
            continue
        yield f"## Ranked on {samples:,} images\n"
        yield "Spearman's correlation of a score with accuracies / points its first choice is below the best.\n"
        titles = " | ".join(f"{data}, {steps:,} steps{_seeds(measured[data, steps])}" for data, steps in cells)
        yield f"| score | {titles} | mean | worst regret |"
        yield "|---|" + "---:|" * (len(cells) + 2)
        for name, score in SCORES.items():
            found = [judged(own[data]["rows"], score, measured[data, steps]) for data, steps in cells]
            texts = [f"{correlation:.2f} / {regret:.1f}" for correlation, regret in found]
            mean, worst = statistics.fmean(c for c, _ in found), max(r for _, r in found)
            yield f"| {name} | {' | '.join(texts)} | {mean:.2f} | {worst:.1f} |"
        taken = [regret_of(own[data]["best"], measured[data, steps]) for data, steps in cells]
        yield f"| the prior it advises | {' | '.join(f'– / {regret:.1f}' for regret in taken)} | – | {max(taken):.1f} |"
        yield ""
        seconds = ", ".join(f"{data} {ranking['seconds']:.0f}" for data, ranking in own.items())
        yield f"Seconds of a ranking, one thread: {seconds}.\n"


def _seeds(own: dict[str, list[float]]) -> str:
    return f" ({len(next(iter(own.values())))})"


def names_of(ranking: Row) -> set[str]:
    """The priors of a ranking, without its controls."""
    return {row["name"] for row in ranking["rows"] if not row["control"]}


def judged(rows: list[Row], score: Callable[[Row], float], trained: dict[str, list[float]]) -> tuple[float, float]:
    """Spearman's correlation over the priors, and the regret of the one with the highest score."""
    scored = {row["name"]: score(row) for row in rows if row["name"] in trained}
    means = [statistics.fmean(trained[name]) for name in scored]
    first = max(scored, key=lambda name: scored[name])
    return float(spearmanr(list(scored.values()), means).statistic), regret_of(first, trained)


def regret_of(name: str | None, trained: dict[str, list[float]]) -> float:
    """Points below the best prior; those of the worst where none was named."""
    means = {prior: statistics.fmean(values) for prior, values in trained.items()}
    return max(means.values()) - (min(means.values()) if name is None else means[name])


def details(rankings: list[Row], trained: list[Row]) -> Iterator[str]:
    """Each prior's scores, from the most images that a set was ranked on, and accuracies."""
    measured = accuracies(trained)
    largest = {ranking["data"]: ranking for ranking in sorted(rankings, key=lambda ranking: ranking["samples"])}
    for ranking in largest.values():
        lengths = [cell for cell in measured if cell[0] == ranking["data"]]
        yield f"## {ranking['data']}, scores on {ranking['samples']:,} images\n"
        titles = [f"after {steps:,} steps{_seeds(measured[data, steps])}" for data, steps in lengths]
        yield "| prior | stable directions | stability | richness | student after | " + " | ".join(titles) + " |"
        yield "|---|" + "---:|" * (4 + len(lengths))
        for row in ranking["rows"]:
            own = [measured[cell].get(row["name"]) for cell in lengths]
            after = " | ".join(f"{statistics.fmean(values):.1f}" if values else "–" for values in own)
            scores = f"{row['stable_directions']:.1f} | {row['stability']:.2f} | {row['richness']:.0f}"
            numbers = f"{scores} | {row['loss_after']:.3f}"
            yield f"| {row['name']} | {numbers} | {after} |"
        yield ""
