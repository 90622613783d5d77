"""benchmarks/report.py: means, intervals, interpolated costs and the distance to the bars."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.calls import call


def made_up(variant: str, budget: float, tops: list[float], *, prior: str | None = "p", **more: Any) -> list[dict]:
    return [
        {
            "asked": "byol", "method": "byol", "data": "cifar10", "images": 10_000, "seconds_full": 100.0,
            "variant": variant, "prior": prior, "budget": budget, "seed": seed, "linear_top1": top,
            "knn_top1": top - 0.1, "training_seconds": 100 * budget, "labelling_seconds": 20.0 if prior else 0.0,
            "date": "2026-01-01", "hardware": {"cpu": "C"}, "threads": 1, "versions": {"torch": "t", "lightning": "l"},
            **more,
        }
        for seed, top in enumerate(tops)
    ]  # fmt: skip


def rows() -> list[dict]:
    return [
        *made_up("a", 0.5, [0.40, 0.42, 0.41], prior=None),
        *made_up("a", 1.0, [0.50, 0.52, 0.51], prior=None),
        *made_up("b", 1.0, [0.60, 0.62, 0.61]),
        *made_up("c", 1.0, [0.55, 0.55, 0.55]),
        *made_up("plateau", 0.25, [0.45, 0.45, 0.45]),
        *made_up("plateau", 0.5, [0.55, 0.57, 0.56]),
        *made_up("plateau", 1.0, [0.59, 0.63, 0.60]),
        *made_up("plateau", 1.0, [0.48], prior="other"),
    ]


@pytest.fixture
def written(script, tmp_path, monkeypatch) -> str:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    arguments = ("--results", tmp_path / "rows.jsonl", "--out", tmp_path / "tables.md")
    call(script("report"), monkeypatch, *arguments)
    assert len(list((tmp_path / "figures").glob("*.png"))) == 2
    return (tmp_path / "tables.md").read_text()


def section(text: str, prior: str) -> str:
    return next(part for part in text.split("## ") if part.startswith("BYOL") and f"prior: {prior}\n" in part)


def test_intervals_are_students(script):
    from scipy.stats import t

    report = script("curves")
    for count in range(2, 11):
        values = np.random.default_rng(count).normal(50, 3, count)
        mean, half = report.mean_and_interval(list(values))
        assert mean == pytest.approx(values.mean())
        assert half == pytest.approx(t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count), rel=1e-3)
    assert report.mean_and_interval([3.0]) == (3.0, np.inf)


def test_costs_are_read_between_budgets(script):
    curves = script("curves")
    curve = [(10.0, 0.3), (20.0, 0.5), (40.0, 0.6)]
    x, y = zip(*curve, strict=True)
    for accuracy in (0.31, 0.5, 0.55, 0.6):
        assert curves.seconds_to(curve, accuracy) == ("", pytest.approx(np.interp(accuracy, y, x)))
    assert curves.seconds_to(curve, 0.3) == ("≤", 10) and curves.seconds_to(curve, 0.61) == (">", 40)
    for seconds in (10.0, 13.0, 20.0, 35.0, 40.0, 40.3):
        assert curves.accuracy_at(curve, seconds) == pytest.approx(np.interp(seconds, x, y))
    assert curves.accuracy_at(curve, 9.9) is None and curves.accuracy_at(curve, 41) is None


def test_a_seed_without_every_budget_does_not_bend_the_curve(script):
    curves = script("curves")
    runs = {0.5: made_up("a", 0.5, [0.4, 0.5]), 1.0: made_up("a", 1.0, [0.6])}
    assert curves.curves(runs, labelling=True) == [[(70.0, 0.4), (120.0, 0.6)]]
    assert curves.cost(runs, 0.5, labelling=False) == ("", [pytest.approx(75)])


@pytest.mark.slow
def test_tables_hold_every_seed_and_both_counts(written):
    text = section(written, "p")
    assert "| (a) SSL alone, tuned | – | 41.0 ± 2.5 (3) | 51.0 ± 2.5 (3) | 41.0 ± 2.5 (3) | 0 |" in text
    tops = "45.0 ± 0.0 (3) | 56.0 ± 2.5 (3) | 60.7 ± 5.2 (3) | 50.7 ± 5.2 (3)"
    assert f"| (d) Plateau, the default | {tops} | 20 |" in text
    # 51% lies 6/10, 6/12 and 6/11 of the way from 25 to 50 s; labelling adds 20 s to each
    each = 25 + 25 * np.array([6 / 10, 6 / 12, 6 / 11])
    half = 4.303 * each.std(ddof=1) / np.sqrt(3)
    assert (
        f"| (d) Plateau, the default | {each.mean():.0f} ± {half:.0f} | {each.mean() + 20:.0f} ± {half:.0f} |" in text
    )
    # at 50.25 s of both together 30.25 are training: 21% of the way from 45 to 55, 57 and 56%
    at = 100 * np.array([np.interp(30.25, [25, 50], [0.45, top]) for top in (0.55, 0.57, 0.56)])
    assert f"| (d) Plateau, the default | – | {at.mean():.1f} ± {4.303 * at.std(ddof=1) / np.sqrt(3):.1f} | " in text
    assert "| (b) transport alone | – | – | – |" in text  # with labelling its only run is longer than the budget


def test_bars_are_measured_seed_by_seed(written):
    text = section(written, "p")
    gap = np.array([-1.0, 1.0, -1.0])  # 59 63 60 against (b)'s 60 62 61
    half = 4.303 * gap.std(ddof=1) / np.sqrt(3)
    best = f"the default is {gap.mean():+.1f} ± {half:.1f} points from the best of a, b, c (b)."
    assert f"At 100% of training time {best}" in text
    assert "At 50% of training time" not in text  # b and c were not run there
    assert "accuracy, training: 39 ± 3 s, 39% of that budget; (a) itself first has it after" in text
    assert "accuracy, training and labelling: 59 ± 3 s, 59% of that budget" in text
    assert "20 s of labelling, the default is +9.7 ± " in text


def test_the_baseline_may_have_that_accuracy_sooner(script, tmp_path, monkeypatch):
    """Where more budget does not help the baseline, the cost is also given against its own shorter runs."""
    flat = [*made_up("a", 0.5, [0.52] * 2, prior=None), *made_up("a", 0.25, [0.40] * 2, prior=None),
            *made_up("a", 1.0, [0.50] * 2, prior=None), *made_up("plateau", 0.125, [0.45] * 2),
            *made_up("plateau", 0.25, [0.55] * 2)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flat))
    arguments = ("--results", tmp_path / "rows.jsonl", "--out", tmp_path / "t.md")
    call(script("report"), monkeypatch, *arguments)
    text = (tmp_path / "t.md").read_text()
    # 50% after 12.5 + 6.25 s; the baseline's own curve has it 10/12 of the way from 25 to 50 s
    assert (
        "training: 19 ± 0 s, 19% of that budget; (a) itself first has it after 46 ± 0 s, of which that is 41%." in text
    )


def test_a_cost_needs_a_seed_with_every_budget(script):
    later = [{**row, "seed": 7} for row in made_up("plateau", 1.0, [0.6])]
    group = {
        "a": {1.0: [{**row, "seed": 7} for row in made_up("a", 1.0, [0.5], prior=None)]},
        "plateau": {0.5: made_up("plateau", 0.5, [0.55]), 1.0: later},
    }
    text = "\n".join(script("report").section("One", group))
    assert "| (d) Plateau, the default | – | – |" in text and "Cost to" not in text


def test_a_single_budget_has_no_cost(written):
    text = section(written, "other")
    assert "the default is -2.0 points from (a)" in text and "Cost" not in text and "Seconds to" not in text


def test_settings_are_not_mixed_in_a_mean(script, tmp_path, monkeypatch):
    twice = [*rows(), *made_up("b", 1.0, [0.7], settings={"lr": 1})]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in twice))
    with pytest.raises(SystemExit, match=r"b at 1\.0: a seed was run twice"):
        call(script("report"), monkeypatch, "--results", tmp_path / "rows.jsonl", "--out", tmp_path / "t.md")
