"""Intervals, seeds as one row, what a reader is told, and the picture."""

from __future__ import annotations

import copy
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rela_lightning.runs.comparison import as_probed, grouped, in_text, limits, notes, of_mean, reached, wilson
from rela_lightning.runs.plots import draw_curves
from rela_lightning.runs.read import setting_of


def run(name: str, top1: float, **more: Any) -> dict[str, Any]:
    history = [{"seconds": s, "steps": 10 * s, "linear_top1": top1 * s / 20, "knn_top1": top1 / 2} for s in (5, 10)]
    return {
        "name": name, "seconds": 10.0, "labelling_seconds": 1.0, "steps": 100, "linear_top1": top1,
        "knn_top1": top1 / 2, "history": history, "protocol": {"validation_images": 500}, "data": {"name": "A"}, **more,
    }  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.01, 0.35, 0.912, 1.0])
@pytest.mark.parametrize("count", [1, 40, 10_000])
def test_intervals_of_a_share_are_wilsons(share: float, count: int) -> None:
    """The interval's ends solve `|p - share| = z sqrt(p (1 - p) / n)`, found here by a fine grid."""
    p = np.linspace(0, 1, 2_000_001)
    inside = p[np.abs(p - share) <= 1.959964 * np.sqrt(p * (1 - p) / count)]
    assert wilson(share, count) == pytest.approx((inside.max() - inside.min()) / 2, abs=1e-4)


@pytest.mark.parametrize("count", [2, 3, 5, 10, 30])
def test_intervals_of_a_mean_are_students(count: int) -> None:
    from scipy import stats

    values = np.random.default_rng(count).normal(size=count).tolist()
    low, high = stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=stats.sem(values))
    assert of_mean(values) == pytest.approx((high - low) / 2, rel=0.01)


def test_seeds_of_one_setting_are_a_row_of_means_and_others_stay() -> None:
    seeds = [
        run("byol", top1, setting="x", seed=seed, few_label_top1={"mean": top1 / 5, "std": 0.3})
        for seed, top1 in enumerate((0.5, 0.6, 0.7))
    ]
    alone = run("rela", 0.8, setting="y", seed=0)
    before = copy.deepcopy([*seeds, alone])
    mean, other = grouped([seeds[0], alone, *seeds[1:]])
    assert [*seeds, alone] == before
    assert (mean["name"], mean["seeds"]) == ("byol (3 seeds)", [0, 1, 2])
    assert mean["linear_top1"] == pytest.approx(0.6) and mean["seconds"] == 10.0 and mean["steps"] == 100
    assert mean["interval"]["linear_top1"] == pytest.approx(4.303 * 0.1 / 3**0.5)
    few = {"mean": pytest.approx(0.12), "std": pytest.approx(statistics.pstdev([0.1, 0.12, 0.14]))}
    assert mean["few_label_top1"] == few
    assert mean["history"][1]["linear_top1"]["mean"] == pytest.approx(0.3)
    assert mean["history"][1]["linear_top1"]["std"] == pytest.approx(statistics.pstdev([0.25, 0.3, 0.35]))
    assert other["name"] == "rela" and other["interval"]["linear_top1"] == wilson(0.8, 500)


def test_runs_of_one_seed_or_of_an_unknown_setting_are_not_put_together() -> None:
    same = [run("a", 0.5, setting="x", seed=0), run("b", 0.6, setting="x", seed=0)]
    assert [row["name"] for row in grouped(same)] == ["a", "b"]
    unknown = [run("a", 0.5), run("b", 0.6)]
    assert [row["name"] for row in grouped(unknown)] == ["a", "b"]


def test_a_reader_hears_of_other_steps_and_other_data() -> None:
    rows = grouped([run("a", 0.5), run("b", 0.6, steps=2000, data={"name": "B"})])
    said = notes(rows)
    assert said[0] == "The runs made different numbers of steps: a 100, b 2,000."
    assert said[1] == "The runs were trained on different data: a A, b B."
    assert "500 validation images" in said[2] and len(said) == 3
    assert len(notes(grouped([run("a", 0.5), run("b", 0.6)]))) == 1


def test_a_reader_hears_of_a_seed_that_stopped_early() -> None:
    seeds = [run("a", 0.5, setting="x", seed=seed, steps=steps) for seed, steps in enumerate((1000, 1000, 100))]
    said = notes(grouped([*seeds, run("b", 0.6, steps=700)]))  # as many as the seeds on average
    assert said[0].endswith("steps, and count alike in its means: a (3 seeds) 1,000 and 1,000 and 100.")
    assert not any("alike" in each for each in notes(grouped([*seeds[:2], run("b", 0.6, steps=1000)])))


def test_rows_without_training_differ_from_none_in_steps_and_data() -> None:
    none = run("prior", 0.5, steps=0, seconds=0.0, labelling_seconds=0.0, data=None)
    assert len(notes(grouped([run("a", 0.5), none, run("b", 0.6)]))) == 1
    said = notes(grouped([run("a", 0.5), none, run("b", 0.6, steps=7, data={"name": "B"})]))
    assert said[:2] == ["The runs made different numbers of steps: a 100, b 7.",
                        "The runs were trained on different data: a A, b B."]  # fmt: skip


def test_a_run_that_was_probed_at_another_step_stands_as_it_was_then() -> None:
    whole = run("a", 0.5, setting="x", seed=0, switch_seconds=7.0, bill={"phases": {}}, probed_steps=100)
    whole["top1"] = 0.9
    assert as_probed(whole) == whole and as_probed(run("old", 0.5)) == run("old", 0.5)
    then = as_probed({**whole, "probed_steps": 50})
    assert (then["steps"], then["seconds"], then["history"]) == (50, 5, whole["history"][:1])
    assert then["top1"] is None and then["bill"] is None and then["switch_seconds"] is None
    between = as_probed({**whole, "name": "b", "probed_steps": 70, "seed": 1})
    assert (between["steps"], between["seconds"]) == (70, None)
    rows = grouped([whole, then, between])
    assert [row["name"] for row in rows] == ["a", "a", "b"], "these are no seeds of one setting"
    said = notes([{**then, "name": "early"}, run("c", 0.5)])
    assert said[1].startswith("Not probed at the run's last step: early at 50 of 100.")
    (mean,) = grouped([then, {**then, "seed": 1, "seconds": None}])
    assert (mean["steps"], mean["seconds"]) == (50, None)


def test_a_probe_that_did_not_run_is_no_accuracy_that_was_never_reached() -> None:
    other = [{"seconds": 5.0, "steps": 50, "knn_top1": 0.9}]
    runs = [run("a", 0.5), run("b", 0.1), run("c", 0.5, history=[]), run("d", 0.5, history=other)]
    linear, knn = reached(runs, 0.2)
    assert linear == "Seconds to 20% linear top-1: a 8.0, b never, c not followed, d not followed."
    assert knn == "Seconds to 20% kNN top-1: a 5.0, b never, c not followed, d 5.0."
    assert reached(runs[2:3], 0.2) == ["When 20% was reached is not known: no run was probed during training."]


def test_limits_that_were_not_set_are_none() -> None:
    budget = {"max_epochs": -1, "max_steps": 20, "max_seconds": None, "data_ratio": 1.0}
    assert limits(budget) == {"max_steps": 20, "data_ratio": 1.0} and limits(None) == {}


def test_a_config_without_its_seed_and_name_is_the_setting(tmp_path: Path) -> None:
    lines = "model: BYOL\ntrainer:\n  max_epochs: {e}\n  default_root_dir: {d}\nseed_everything: {s}\nname: {d}\n"
    for name, epochs, seed in (("a", 3, 0), ("b", 3, 1), ("c", 4, 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(lines.format(e=epochs, d=name, s=seed))
    a, b, c = (setting_of(tmp_path / name) for name in "abc")
    assert a["setting"] == b["setting"] != c["setting"] and (a["seed"], b["seed"]) == (0, 1)
    assert setting_of(tmp_path) == {}
    (tmp_path / "a" / "config.yaml").write_text("[")
    assert setting_of(tmp_path / "a") == {}


def test_values_in_words() -> None:
    value = {"linear": {"solver": "adam", "lr": 3e-4, "standardise": True}, "k": [1, 20], "size": None}
    assert in_text(value) == "linear (solver adam, lr 0.0003, standardise yes), k 1, 20, size unknown"


def test_a_run_without_history_is_a_point_at_its_cost_and_every_run_is_in_the_legend(
    tmp_path: Path, monkeypatch: Any
) -> None:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    drawn: list[tuple[str, list[float], list[float]]] = []
    shown: list[tuple[list[str], Any]] = []
    plot, legend = Axes.plot, Figure.legend

    def plotting(self: Any, x: Any, y: Any, *args: Any, **options: Any) -> Any:
        drawn.append((options.get("label"), np.atleast_1d(x).tolist(), np.atleast_1d(y).tolist()))
        return plot(self, x, y, *args, **options)

    def naming(self: Any, handles: Any, labels: Any, **options: Any) -> Any:
        made = legend(self, handles, labels, **options)
        shown.append((list(labels), made))
        return made

    monkeypatch.setattr(Axes, "plot", plotting)
    monkeypatch.setattr(Figure, "legend", naming)
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: self.canvas.draw())
    runs = [run(f"a run with a long name, number {number}", 0.5) for number in range(7)]
    runs += [run("a prior", 0.9, history=[], seconds=0.0), run("one", 0.7, history=[])]
    assert draw_curves(runs, tmp_path / "curves.png", title="T")
    assert ("a prior", [0.0], [90.0]) in drawn and ("one", [10.0], [pytest.approx(70.0)]) in drawn
    (labels, made) = shown[0]
    assert labels == [run["name"] for run in runs]
    box, page = made.get_window_extent(), made.figure.bbox
    assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0, "the legend is on the page"
