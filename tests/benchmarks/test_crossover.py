"""benchmarks/crossover.py: runs of all budgets in one map, and how far the default is from the best fixed schedule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.test_convergence_report import made_up

ROWS = [
    *made_up("a", 1.0, [0.40, 0.42, 0.41], prior=None),
    *made_up("a", 0.5, [0.50, 0.52, 0.51], prior=None, seconds_full=800.0),
    *made_up("b", 1.0, [0.60, 0.62, 0.61]),
    *made_up("s20", 1.0, [0.55, 0.55, 0.55]),
    *made_up("b", 0.5, [0.62, 0.64, 0.63], seconds_full=800.0),
    *made_up("s20", 0.5, [0.65, 0.67, 0.69], seconds_full=800.0),
    *made_up("plateau", 1.0, [0.60, 0.62, 0.61]),
    *made_up("plateau", 0.5, [0.62, 0.66, 0.67], seconds_full=800.0),
    *made_up("plateau", 1.0, [0.48], prior="other"),
]
EXPLORED = [
    *made_up("b", 1.0, [0.60]),
    *made_up("s30", 1.0, [0.50, 0.52]),
    *made_up("s30+rate", 1.0, [0.51, 0.55]),
    *made_up("s30", 1.0, [0.40], prior="other"),
    *made_up("s30", 1.0, [0.90], asked="simclr"),
    *made_up("s30+rate+views", 1.0, [0.58, 0.58]),
]


@pytest.fixture
def page(script: Callable[[str], Any], tmp_path: Path) -> str:
    return str(script("crossover").page(ROWS, EXPLORED, tmp_path / "figures"))


def test_runs_stand_by_their_seconds_whatever_the_full_budget_was(page: str) -> None:
    assert "| linear top-1 after | 100 s | 400 s |" in page
    assert "| (a) SSL alone, tuned | 41.0 ± 2.5 (3) | 51.0 ± 2.5 (3) |" in page
    assert "| (b) transport alone | 61.0 ± 2.5 (3) | 63.0 ± 2.5 (3) |" in page


def test_regret_is_taken_seed_by_seed_from_the_best_fixed_schedule(page: str) -> None:
    # at 400 s, of seeds 0, 1, 2: 3, 1, 2 points; at 100 s three fixed schedules, transport alone is the default
    assert "| prior | 100 s | 400 s |" in page
    assert "| p | the same as transport alone (3) | +2.0 ± 2.5 (3), Switch(0.2) |" in page


def test_the_best_fixed_schedule_has_the_largest_gap_of_those_with_the_most_seeds_in_common(
    script: Callable[[str], Any],
) -> None:
    tables = script("handover_tables")
    runs = {
        "plateau": {9: made_up("plateau", 1.0, [0.50, 0.60])},
        "b": {9: made_up("b", 1.0, [0.59])},  # +9, on its one seed
        "switch": {9: made_up("switch", 1.0, [0.47, 0.60])},
        "late": {9: made_up("late", 1.0, [0.51, 0.58])},
    }
    best, gaps = tables.regret(runs, 9)
    assert best == "late" and gaps == pytest.approx([1.0, -2.0])
    assert tables.regret({name: runs[name] for name in ("plateau", "b")}, 9) is None
    assert tables.regret(runs, 8) is None and tables.regret_table({"p": {"plateau": runs["plateau"]}}) == []


def test_a_picture_for_each_method_and_data_set(page: str, tmp_path: Path) -> None:
    assert "![BYOL, CIFAR-10: accuracy against the length of the run](figures/crossover-byol-cifar10.png)" in page
    assert (tmp_path / "figures" / "crossover-byol-cifar10.png").stat().st_size > 10_000


def test_parts_of_the_time_stand_beside_the_method_alone_in_all_of_it(script: Callable[[str], Any]) -> None:
    runs = {
        "a": {960: made_up("a", 1.0, [0.50, 0.52]), 96: made_up("a", 0.1, [0.30])},
        "plateau": {96: made_up("plateau", 0.1, [0.49]), 480: made_up("plateau", 0.5, [0.55])},
    }
    lines = script("handover_tables").parts_tables({"p": runs, "without": {"plateau": runs["plateau"]}})
    assert lines[0] == "### A part of 960 s against all of it"
    assert "| p | 20 s | 49.0 (1) | – | 55.0 (1) | – | 51.0 ± 12.7 (2) |" in lines
    assert not any("without" in line for line in lines)


def test_a_longer_time_of_fewer_seeds_has_a_table_of_its_own(script: Callable[[str], Any]) -> None:
    runs = {
        "a": {960: made_up("a", 1.0, [0.50, 0.52]), 2400: made_up("a", 1.0, [0.60])},
        "plateau": {240: made_up("plateau", 0.25, [0.45]), 480: made_up("plateau", 0.5, [0.55])},
    }
    lines = script("handover_tables").parts_tables({"p": runs})
    titles = [line for line in lines if line.startswith("#")]
    assert titles == ["### A part of 960 s against all of it", "### A part of 2400 s against all of it"]
    assert "| p | 20 s | – | – | 55.0 (1) | – | 51.0 ± 12.7 (2) |" in lines
    assert "| p | 20 s | 45.0 (1) | 55.0 (1) | – | – | 60.0 (1) |" in lines


def test_levers_are_held_against_the_hand_over_without_them_seed_by_seed(page: str) -> None:
    part = page.split("## What makes a hand-over win or lose")[1]
    assert "### BYOL, p, CIFAR-10, 100 s, handed over at 30%, validation images" in part and "other" not in part
    assert "| nothing | 51.0 ± 12.7 (2) | 41.0 ± 12.7 (2) | |" in part
    assert "| learning rate warmed up and annealed anew | 53.0 ± 25.4 (2) | 43.0 ± 25.4 (2) | +2.0 ± 12.7 |" in part
    both = "learning rate warmed up and annealed anew; transport to 4 stored views an image"
    assert part.index(both) < part.index("| learning rate warmed up and annealed anew |")  # the best comes first


def test_levers_of_the_default_stand_beside_the_default_on_test_images(
    script: Callable[[str], Any], tmp_path: Path
) -> None:
    rows = [*ROWS, *made_up("plateau+rate", 1.0, [0.63, 0.64, 0.65])]
    page = script("crossover").page(rows, [], tmp_path / "figures")
    part = page.split("### BYOL, p, CIFAR-10, 100 s, handed over by the default, test images")[1]
    assert "| learning rate warmed up and annealed anew | 64.0 ± 2.5 (3) | 54.0 ± 2.5 (3) | +3.0 ± 2.5 |" in part
    assert "plateau+rate" not in page.split("## What makes")[0]


def test_runs_on_other_numbers_of_images_stand_apart(script: Callable[[str], Any], tmp_path: Path) -> None:
    fewer = [{**row, "images": 1000, "linear_top1": row["linear_top1"] - 0.3} for row in ROWS]
    explored = [*EXPLORED, *({**row, "images": 1000, "linear_top1": 0.2} for row in EXPLORED)]
    page = script("crossover").page([*ROWS, *fewer], explored, tmp_path / "figures")
    all_of_them, few = page.split("## BYOL, CIFAR-10, 1,000 images\n")
    assert "| (b) transport alone | 61.0 ± 2.5 (3) | 63.0 ± 2.5 (3) |" in all_of_them
    assert "| (b) transport alone | 31.0 ± 2.5 (3) | 33.0 ± 2.5 (3) |" in few
    assert len(list((tmp_path / "figures").iterdir())) == 2
    levers = few.split("## What makes a hand-over win or lose")[1]
    assert "### BYOL, p, CIFAR-10, 100 s," in levers and "| nothing | 51.0 ± 12.7 (2) | 41.0 ± 12.7 (2) | |" in levers
    assert "### BYOL, p, CIFAR-10, 1,000 images, 100 s," in levers and "| nothing | 20.0 ± 0.0 (2) |" in levers


def test_a_lever_whose_runs_left_at_another_share_says_so(script: Callable[[str], Any]) -> None:
    """The default goes by the loss: a lever may move it, and so may the rule of the day."""
    rows = [
        *made_up("plateau", 1.0, [0.50, 0.52], switched_at=30.1),
        *made_up("plateau+rate", 1.0, [0.51, 0.52], switched_at=30.4),
        *made_up("plateau+views+rate", 1.0, [0.56, 0.56], switched_at=40.1),
    ]
    lines = script("handover_tables").lever_tables(rows, "test images")
    (moved,) = (line for line in lines if "views" in line)
    assert "4 stored views an image; learning rate warmed up and annealed anew; handed over at 40%, not 30% |" in moved
    assert sum("handed over at" in line for line in lines[1:]) == 1
