"""The logic of benchmarks/methods.py, on tiny input."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.benchmarks.calls import call, lines_of, refused


@pytest.mark.slow
def test_methods_runs_once_and_goes_on_where_it_stopped(script, data_root, tmp_path, monkeypatch):
    methods, results = script("methods"), tmp_path / "results.jsonl"
    arguments = ("run", "--data-root", data_root, "--images", 128, "--methods", "byol", "swav", "--steps", 2, "--seeds",
                 0, "--prior", "random", f"--results={results}")  # fmt: skip
    call(methods, monkeypatch, *arguments)
    rows = {(row["method"], row["variant"]): row for row in lines_of(results)}
    assert len(rows) == 6 == len(lines_of(results))
    probes = {key: (row["knn_top1"], row["linear_top1"]) for key, row in rows.items()}
    assert probes["byol", "start"] == probes["swav", "start"]  # one backbone, one seed
    assert all(0.1 < probe <= 1 for pair in probes.values() for probe in pair)
    rela = rows["byol", "rela"]
    assert rela["prior"] == "random" and rela["labelling_seconds"] > 0 and "Switch" in rela["settings"]["schedule"]
    assert rows["byol", "plain"]["prior"] is None and rows["byol", "plain"]["steps"] == 2
    assert rows["byol", "plain"]["processor_seconds"] > 0
    text = results.read_text()
    assert str(data_root) not in text and str(tmp_path) not in text
    assert "--data-root DATA_ROOT" in rela["command"] and "--results=RESULTS" in rela["command"]

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(methods, "one_run", lambda options, job, splits: asked.append(job) or {"knn_top1": 0.0})
    call(methods, monkeypatch, *arguments)
    assert not asked
    kept = [line for line in text.splitlines() if json.loads(line) != rela]
    results.write_text("\n".join(kept) + "\n")
    call(methods, monkeypatch, *arguments)
    assert [(job["method"], job["variant"]) for job in asked] == [("byol", "rela")]
    assert len(lines_of(results)) == 6
    call(methods, monkeypatch, *arguments[:-3], 1, *arguments[-3:])  # another seed is another run
    assert {job["seed"] for job in asked[1:]} == {1} and len(asked) == 7
    call(methods, monkeypatch, *arguments, "--schedule", "default")  # so is another schedule; the other runs serve both
    assert [(job["method"], job["variant"]) for job in asked[7:]] == [("byol", "rela"), ("swav", "rela")]
    assert asked[7]["settings"]["schedule"].startswith("Plateau")


@pytest.mark.slow
def test_training_moves_the_backbone_and_rela_moves_it_elsewhere(script, data_root, monkeypatch):
    methods, images = script("methods"), script("images")
    seen: dict[str, torch.Tensor] = {}
    splits = images.load_splits("fashion_mnist", data_root, 128)
    options = SimpleNamespace(data="fashion_mnist", data_root=data_root, prior="random", schedule="switch")

    def keep(module: Any, train: Any, test: Any) -> dict[str, float]:
        seen[str(len(seen))] = torch.nn.utils.parameters_to_vector(module.backbone.parameters()).detach()
        return {}

    monkeypatch.setattr(methods, "accuracy", keep)
    for variant, steps in (("start", 0), ("plain", 2), ("plain", 2), ("rela", 2)):
        methods.one_run(options, {"method": "simclr", "variant": variant, "seed": 3, "steps": steps}, splits)
    start, plain, again, rela = seen.values()
    assert torch.equal(plain, again)
    assert not torch.equal(start, plain) and not torch.equal(plain, rela) and not torch.equal(start, rela)


@pytest.mark.slow
def test_every_method_runs_in_every_variant(script, data_root, tmp_path, monkeypatch):
    methods, results = script("methods"), tmp_path / "results.jsonl"
    monkeypatch.setattr(methods, "BATCH_SIZE", 8)
    monkeypatch.setattr(methods, "accuracy", lambda module, train, test: {})  # probes: `test_methods_runs_once` above
    call(methods, monkeypatch, "run", "--data-root", data_root, "--images", 24, "--steps", 3, "--seeds", 0, "--prior",
         "random", "--results", results)  # fmt: skip
    assert {(r["method"], r["variant"]) for r in lines_of(results)} == {
        (method, variant) for method in methods.METHODS for variant in ("start", "plain", "rela")
    }


def test_shards_share_the_runs_out(script, data_root, tmp_path, monkeypatch):
    methods, results = script("methods"), tmp_path / "results.jsonl"
    monkeypatch.setattr(methods, "one_run", lambda options, job, splits: {})
    sizes = []
    for shard in ("0/2", "1/2"):
        call(
            methods,
            monkeypatch,
            "run",
            "--data-root",
            data_root,
            "--seeds",
            0,
            1,
            "--results",
            results,
            "--shard",
            shard,
        )
        sizes.append(len(lines_of(results)))
    assert sizes == [30, 60]
    runs = {(row["method"], row["variant"], row["seed"]) for row in lines_of(results)}
    assert len(runs) == 60  # each once


def test_multi_crop_methods_get_two_more_views_of_small_parts(script):
    methods = script("methods")
    gradient = torch.arange(32, dtype=torch.uint8).mul(8).expand(3, 32, 32)
    views = {name: methods.views_of(name)(gradient) for name in methods.METHODS}
    counts = {name: len(view) for name, view in views.items()}
    assert counts == dict.fromkeys(methods.METHODS, 2) | {"dino": 4, "swav": 4, "supervised": 1}
    assert {tuple(view.shape) for each in views.values() for view in each} == {(3, 32, 32)}
    crops, seen = methods.Crops(), {"large": [], "small": []}
    torch.manual_seed(0)
    for _ in range(200):  # the share of the width that is visible, on the left-to-right gradient before other changes
        for name, shares in seen.items():
            crop = getattr(crops, name).view.transforms[0](gradient).float()
            shares.append(float(crop.max() - crop.min()) / 248)
    assert max(seen["small"]) < 0.8 < max(seen["large"])  # sqrt(0.4 * 4 / 3) = 0.73


def made_up_rows(knn: dict[tuple[str, str], list[float]]) -> list[dict[str, Any]]:
    """Rows of results with these kNN accuracies by method and variant, a seed each."""
    common = {"data": "fashion_mnist", "images": 5000, "date": "2030-01-01", "hardware": {"cpu": "c"}, "threads": 1,
              "versions": {"torch": "1", "lightning": "2"}}  # fmt: skip
    return [
        {
            **common, "method": method, "variant": variant, "seed": seed, "steps": 0 if variant == "start" else 156,
            "prior": "p" if variant == "rela" else None, "settings": {"schedule": "Switch(at=0.4)"},
            "knn_top1": value, "linear_top1": value / 2, "labelling_seconds": 50.0 if variant == "rela" else 0.0,
            "processor_seconds": 40.0 if variant == "plain" else 30.0,
        }
        for (method, variant), values in knn.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip


def test_tables_hold_means_intervals_and_paired_differences(script, tmp_path, monkeypatch):
    from scipy.stats import t

    methods = script("methods")
    plain, rela = np.array([0.50, 0.61, 0.72]), np.array([0.60, 0.69, 0.84])
    rows = made_up_rows({
        ("byol", "start"): [0.3, 0.3, 0.3], ("byol", "plain"): list(plain), ("byol", "rela"): list(rela),
        ("simclr", "plain"): [0.4],
    })  # fmt: skip
    other = made_up_rows({("byol", "rela"): [0.99]})
    rows += [{**row, "settings": {"schedule": "Other()"}} for row in other]  # another schedule, a table of its own

    def shown(values: np.ndarray, form: str) -> str:
        half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        return f"{values.mean():{form}} ± {half:.1f}"

    text = "\n".join(methods.tables(rows))
    mine = text.split("###")[2 if text.index("Other()") < text.index("Switch(at=0.4)") else 1]
    expected = f"| BYOL | 30.0 ± 0.0 (3) | {shown(100 * plain, '.1f')} (3) | {shown(100 * rela, '.1f')} (3) | "
    assert expected + shown(100 * (rela - plain), "+.1f") + " |" in mine
    assert "| SimCLR | – | 40.0 (1) | – | – |" in mine
    assert "| BYOL | 40 | 30 | 0.75 |" in mine and "Labelling took 50 s" in mine
    assert "99.0" not in mine and text.count("###") == 2
    assert "No runs" in "\n".join(methods.tables(rows[:6]))

    page, results = tmp_path / "page.md", tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page.write_text("# Mine\n\n<!-- tables -->\nold\n<!-- end of tables -->\n\nAfter \\1.\n")
    for _ in range(2):
        call(methods, monkeypatch, "table", "--results", results, "--page", page)
    assert page.read_text() == f"# Mine\n\n<!-- tables -->\n\n{text}\n<!-- end of tables -->\n\nAfter \\1.\n"


def test_the_page_of_this_repository_has_its_marks():
    page = (Path(__file__).parents[2] / "docs" / "methods_benchmark.md").read_text()
    assert page.count("<!-- tables -->") == page.count("<!-- end of tables -->") == 1


def test_bad_input_is_refused_readably(script, tmp_path, monkeypatch, capsys):
    methods, gpu = script("methods"), script("gpu")
    assert "FashionMNIST/raw" in refused(methods, monkeypatch, capsys, "run", "--data-root", tmp_path)
    assert "k below n" in refused(methods, monkeypatch, capsys, "run", "--data-root", tmp_path, "--shard", "2/2")
    missing = refused(methods, monkeypatch, capsys, "table", "--results", tmp_path / "none.jsonl")
    assert "no results yet" in missing
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "page.md").write_text("no marks")
    with pytest.raises(SystemExit, match="needs the marks"):
        call(methods, monkeypatch, "table", "--results", tmp_path / "rows.jsonl", "--page", tmp_path / "page.md")
    assert "there is no part stepps" in refused(gpu, monkeypatch, capsys, "stepps", "--device", "cpu", "--tiny")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU here" in refused(gpu, monkeypatch, capsys)
