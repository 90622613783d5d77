"""The report says what the runs say, refuses runs a reader would misread, and draws what it claims."""

from __future__ import annotations

import copy
import json
import math
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from rela_lightning.errors import ConfigError, ReLAError
from rela_lightning.runs.plots import draw_curves, value_at
from rela_lightning.runs.report import check_runs, print_table, to_dict, to_markdown, to_table, units, write_report


def point(seconds: float, top1: float) -> dict:
    return {
        "seconds": seconds,
        "steps": int(10 * seconds),
        "linear_top1": top1,
        "knn_top1": top1,
        "few_label_top1": {"mean": top1 - 0.2, "std": 0.02},
    }


@pytest.fixture
def runs() -> list[dict]:
    plain = {
        "name": "byol",
        "seconds": 40.0,
        "labelling_seconds": 0.0,
        "steps": 400,
        "linear_top1": 0.912,
        "knn_top1": 0.8,
        "few_label_top1": {"mean": 0.7, "std": 0.031},
        "history": [point(0.0, 0.4), point(20.0, 0.8), point(40.0, 0.9)],
    }
    rela = copy.deepcopy(plain) | {
        "name": "byol+rela",
        "labelling_seconds": 3.0,
        "steps": 1500,
        "switch_seconds": 18.0,
        "history": [point(3.0, 0.4), point(20.0, 0.9), point(40.0, 0.95)],
    }
    untrained = copy.deepcopy(plain) | {"name": "untrained", "seconds": 0.0, "steps": 0, "history": []}
    del untrained["few_label_top1"]
    return [untrained, plain, rela]


@pytest.mark.slow
def test_json_holds_the_runs_unchanged(runs, tmp_path):
    before = copy.deepcopy(runs)
    files = write_report(runs, {"data": "digits", "seed": 0}, tmp_path / "new" / "folder")
    report = json.loads((tmp_path / "new" / "folder" / "report.json").read_text())
    assert report["runs"] == before == runs
    assert report["protocol"] == {"data": "digits", "seed": 0}
    assert report["versions"]["torch"] and report["versions"]["python"].startswith("3.")
    assert [file.name for file in files] == ["report.md", "report.json", "curves.png"]


def test_markdown_table_has_a_row_a_run_and_the_protocol(runs):
    page = to_markdown(runs, {"labels per class": 5}, title="Digits", curves="curves.png")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "|" in line]
    assert len({len(row) for row in rows}) == 1
    assert rows[2] == ["untrained", "-", "91.2", "80.0", "0.0", "0.0", "0"]
    assert rows[4] == ["byol+rela", "70.0 ± 3.1", "91.2", "80.0", "40.0", "3.0", "1,500"]
    assert "- **labels per class**: 5" in page
    assert "(curves.png)" in page
    assert "curves.png" not in to_markdown(runs, {}, title="Digits", curves=None)


def test_terminal_table_prints_every_run(runs):
    console = Console(width=120, record=True, file=sys.stderr)
    console.print(to_table(runs, title="Digits"))
    text = console.export_text()
    for expected in ("untrained", "byol+rela", "70.0 ± 3.1", "1,500", "labelling"):
        assert expected in text


@pytest.mark.parametrize("width", [80, 40])
def test_names_fold_and_figures_are_never_cut(runs, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    long = [run | {"name": f"{run['name']}-{60 * 'x'}", "top1": 0.933, "interval": {"top1": 0.061}} for run in runs]
    print_table(long)
    text = capsys.readouterr().out
    assert "…" not in text and text.count("x") == 180
    for figure in ("few labels", "70.0 ± 3.1", "classifier", "93.3 ± 6.1", "seconds", "40.0", "steps", "1,500"):
        assert figure in text


def test_seconds_that_are_not_known_are_a_dash_and_no_point_of_a_curve(runs, tmp_path):
    early = runs[1] | {"name": "early", "seconds": None, "steps": 200, "history": []}
    page = to_markdown([runs[0], early], {}, title="Digits", curves=None)
    assert "| early | 70.0 ± 3.1 | 91.2 | 80.0 | - | 0.0 | 200 |" in page
    assert draw_curves([runs[1], early], tmp_path / "curves.png")


def test_a_table_without_accuracies_says_nothing_of_them(runs):
    free = {name: value for name, value in runs[0].items() if "top1" not in name} | {"effective_rank": 3.0}
    assert "top-1" not in units([free]) and units(runs).startswith("Accuracies are top-1 in percent. Seconds are")
    assert "Accuracies" not in to_markdown([free], {}, title="Digits", curves=None)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("linear_top1", 91.2, "`linear_top1`"),
        ("knn_top1", math.nan, "`knn_top1`"),
        ("knn_top1", -0.1, "`knn_top1`"),
        ("top1", 91.2, "`top1`"),
        ("uniformity", math.nan, "`uniformity`"),
        ("steps", -1, "`steps`"),
        ("steps", True, "`steps`"),
        ("seconds", math.inf, "`seconds`"),
        ("labelling_seconds", 41.0, "`labelling_seconds`"),
        ("switch_seconds", -1.0, "`switch_seconds`"),
        ("few_label_top1", 0.7, "`few_label_top1`"),
        ("few_label_top1", {"mean": 0.7}, "`few_label_top1.std`"),
        ("history", None, "`history`"),
        ("history", [3.0], "history[0]"),
        ("history", [{"seconds": 2.0}, {"seconds": 1.0}], "backwards at point 1"),
        ("history", [{"seconds": 2.0, "linear_top1": 2.0}], "history[0].linear_top1"),
    ],
)
def test_misleading_runs_are_refused_by_name_and_nothing_is_written(runs, tmp_path, key, value, named):
    runs[1][key] = value
    with pytest.raises(ReLAError, match="'byol'") as error:
        write_report(runs, {}, tmp_path / "out")
    assert named in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_key_no_runs_and_double_names_are_refused(runs):
    check_runs(runs)
    with pytest.raises(ConfigError, match="needs runs"):
        check_runs([])
    with pytest.raises(ConfigError, match="share a name"):
        check_runs([runs[0], runs[0]])
    bare = {name: value for name, value in runs[0].items() if "top1" not in name}
    with pytest.raises(ConfigError, match="was not measured"):
        check_runs([bare])
    del runs[2]["steps"]
    with pytest.raises(ConfigError, match=r"'byol\+rela': `steps`"):
        to_dict(runs, {})


def test_values_that_are_not_json_are_refused_before_anything_is_written(runs, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_report(runs, {"budget": math.nan}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_curves_show_the_runs_the_switch_and_the_labelling(runs, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, marked = [], []
    plot = Axes.plot

    def recording(self, x, y, *args, **kwargs):
        (marked if args else drawn).append((np.atleast_1d(x).tolist(), np.atleast_1d(y).tolist()))
        return plot(self, x, y, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", recording)
    assert draw_curves(runs, tmp_path / "curves.png")
    image = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    assert image.min() < 100 < image.mean()
    assert drawn[0][0] == [0.0, 20.0, 40.0]
    assert drawn[1][0] == [3.0, 20.0, 40.0]  # the curve of the accelerated run starts after its labelling
    few_labels_at_switch = np.interp(18.0, [3.0, 20.0], [20.0, 70.0])
    assert marked[0][0] == [18.0]
    assert marked[0][1] == pytest.approx([few_labels_at_switch])
    assert len(marked) == 3  # one a panel, of the one run that switched


@pytest.mark.slow
def test_costs_show_seconds_and_steps_until_an_accuracy_was_reached(runs, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    bars, words = [], []
    barh, text = Axes.barh, Axes.text

    def drawing(self, y, width, **options):
        bars.append((options["label"], width))
        return barh(self, y, width, **options)

    def writing(self, x, y, said, **options):
        words.append(said)
        return text(self, x, y, said, **options)

    monkeypatch.setattr(Axes, "barh", drawing)
    monkeypatch.setattr(Axes, "text", writing)
    curve = [{"seconds": 3.0 + second, "steps": 10 * second, "linear_top1": second / 100} for second in (0, 20, 40)]
    fast = runs[1] | {"name": "fast", "labelling_seconds": 3.0, "history": curve}
    slow = runs[0] | {"name": "slow", "labelling_seconds": 0.0, "history": curve[:2]}
    other = [{"seconds": 3.0, "steps": 1, "knn_top1": 0.1}]
    apart = [runs[0] | {"name": "prior"}, runs[0] | {"name": "other", "history": other}]
    files = write_report([fast, slow, *apart], {}, tmp_path, reach=0.3)
    assert (tmp_path / "costs.png") in files and "costs.png" in (tmp_path / "report.md").read_text()
    assert bars == [
        ("training", [pytest.approx(33.0), 0]),
        ("labelling", [3.0, 0]),
        ("training", [pytest.approx(300.0), 0]),
    ]
    assert words == [" 33", " never", " 300", " never"]


def test_points_are_read_in_percent():
    assert value_at({"knn_top1": 0.5}, "knn_top1") == (50.0, 0.0)
    mean, std = value_at({"few_label_top1": {"mean": 0.25, "std": 0.01}}, "few_label_top1")
    assert (mean, std) == pytest.approx((25.0, 1.0))


@pytest.mark.slow
def test_without_matplotlib_the_report_is_written_without_curves(runs, tmp_path, monkeypatch):
    write_report(runs, {}, tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    files = write_report(runs, {}, tmp_path)
    assert [file.name for file in files] == ["report.md", "report.json"]
    assert not (tmp_path / "curves.png").exists()  # the picture of the former runs is gone
    assert "curves.png" not in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_more_runs_than_colours_are_all_drawn(runs, tmp_path):
    many = [runs[1] | {"name": f"run {number}"} for number in range(9)]
    assert draw_curves(many, tmp_path / "many.png")
    assert draw_curves([runs[0]], tmp_path / "untrained.png")
    assert (tmp_path / "untrained.png").is_file()


@pytest.mark.parametrize("names", [("_a", "_b"), ("$5 and $6", "x$\\frac{"), ("odd [x] %s", "[/]")])
def test_names_are_taken_letter_by_letter(runs, names, tmp_path, monkeypatch, capsys):
    """Neither a picture nor a terminal reads them as formulas, hidden labels or markup."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    drawn, save = [], figure.savefig

    def look(self, *args, **kwargs):
        drawn.extend(text.get_text() for text in self.findobj(lambda artist: hasattr(artist, "get_text")))
        return save(self, *args, **kwargs)

    monkeypatch.setattr(figure, "savefig", look)
    named = [{**run, "name": name} for run, name in zip(runs, names, strict=False)]
    assert len(write_report(named, {}, tmp_path, title=names[0], reach=0.3)) == 4
    print_table(named, title=names[0])
    said = capsys.readouterr().out
    for name in names:
        assert name in said
        assert sum(text.strip().replace("\\$", "$") == name for text in drawn) >= 2, "in the legend and beside a bar"
