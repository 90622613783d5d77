"""benchmarks/ranking_report.py: correlation and regret of each score, over the seeds that all priors have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PRIORS = ("good", "fair", "poor", "worst")


def ranked(name: str, place: int, *, control: bool = False) -> dict[str, Any]:
    rising = dict.fromkeys(("stability", "richness", "feature_dim", "parameters"), 10.0 - place)
    falling = dict.fromkeys(("distance_before", "loss_after"), 10.0 - place)
    # the order takes the second for the best
    directions = {"stable_directions": [3.0, 4.0, 2.0, 1.0, 0.0][place], "agreement": {"x": 10.0 - place}}
    return {"name": name, "control": control, **rising, **falling, **directions}


def trained(prior: str, seed: int, top1: float, steps: int = 250) -> dict[str, Any]:
    row = {"data": "cifar10", "images": 5000, "prior": prior, "steps": steps, "seed": seed, "linear_top1": top1}
    return {**row, "date": "2026-01-01"}


@pytest.fixture
def page(script: Callable[[str], Any], tmp_path: Path) -> str:
    rows = [ranked(name, place) for place, name in enumerate(PRIORS)]
    rows.append(ranked("random network", 4, control=True))
    ranking = {"data": "cifar10", "samples": 512, "rows": rows, "best": "fair", "seconds": 3.0}
    runs = [trained(prior, 0, top1) for prior, top1 in zip(PRIORS, (0.50, 0.48, 0.40, 0.30), strict=True)]
    runs += [trained(prior, 1, top1) for prior, top1 in zip(PRIORS, (0.54, 0.50, 0.40, 0.30), strict=True)]
    runs += [trained("worst", 2, 0.99)]  # the others have no such seed yet
    for name, found in (("ranks", [ranking]), ("runs", runs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    script("ranking_report").report(tmp_path / "ranks.jsonl", tmp_path / "runs.jsonl", tmp_path / "page.md")
    return (tmp_path / "page.md").read_text()


def test_correlation_and_regret_of_each_score(page: str) -> None:
    assert "| score | cifar10, 250 steps (2) | mean | worst regret |" in page
    assert "| stability | 1.00 / 0.0 | 1.00 | 0.0 |" in page
    assert "| stable directions (the order) | 0.80 / 3.0 | 0.80 | 3.0 |" in page  # one pair swapped; 52 against 49
    assert "| loss of the student after | -1.00 / 22.0 | -1.00 | 22.0 |" in page
    assert "| the prior it advises | – / 3.0 | – | 3.0 |" in page


def test_a_seed_counts_where_every_prior_has_it(page: str) -> None:
    assert "| worst | 1.0 | 7.00 | 7 | 7.000 | 30.0 |" in page
    assert "| good | 3.0 | 10.00 | 10 | 10.000 | 52.0 |" in page
    assert "| random network | 0.0 | 6.00 | 6 | 6.000 | – |" in page
