"""The logic of benchmarks/methods.py and benchmarks/gpu.py, on tiny input."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[Callable[[str], Any]]:
    """Imports a benchmark by name as running it would, beside its siblings."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits in the files of Fashion-MNIST."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    large = np.stack([np.asarray(Image.fromarray(d.astype(np.uint8) * 15).resize((28, 28))) for d in digits.images])
    root = tmp_path_factory.mktemp("data")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, rows in (("train", slice(0, 192)), ("t10k", slice(192, 256))):
        for kind, array in (("images-idx3", large[rows]), ("labels-idx1", digits.target[rows].astype(np.uint8))):
            head = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4")
            (raw / f"{name}-{kind}-ubyte").write_bytes(head.tobytes() + array.tobytes())
    return root


def call(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
    module.main()


def refused(module: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: object) -> str:
    with pytest.raises(SystemExit):
        call(module, monkeypatch, *arguments)
    return capsys.readouterr().err


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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


def test_training_moves_the_backbone_and_rela_moves_it_elsewhere(script, data_root, monkeypatch):
    methods, images = script("methods"), script("images")
    seen: dict[str, torch.Tensor] = {}
    splits = images.load_splits("fashion_mnist", data_root, 128)
    options = SimpleNamespace(data="fashion_mnist", data_root=data_root, prior="random")

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
    call(methods, monkeypatch, "run", "--data-root", data_root, "--images", 64, "--steps", 3, "--seeds", 0, "--prior",
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
    page = (BENCHMARKS.parent / "docs" / "methods_benchmark.md").read_text()
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
    assert "goes with --tiny" in refused(gpu, monkeypatch, capsys, "--device", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU here" in refused(gpu, monkeypatch, capsys)


def test_gpu_benchmark_runs_small_on_the_cpu(script, tmp_path, monkeypatch):
    gpu, out = script("gpu"), tmp_path / "gpu.json"
    call(gpu, monkeypatch, "--device", "cpu", "--tiny", "--jpeg", "--modes", "fp32", "--out", out)
    written = json.loads(out.read_text())
    assert str(tmp_path) not in out.read_text() and written["command"].endswith("--out OUT")
    rows = written["result"]["steps"]["fp32"]
    assert set(rows) == {"alone", "mixed", "transport, two views", "transport, one view", "after the switch"}
    assert rows["alone"]["ratio"] == 1 and all(row["seconds_per_step"] > 0 for row in rows.values())
    assert rows["mixed"]["ratio"] == pytest.approx(
        rows["mixed"]["seconds_per_step"] / rows["alone"]["seconds_per_step"]
    )
    (prior,) = written["result"]["labelling"].values()
    assert set(prior) == {"32-true", "bf16-mixed"}
    for rates in prior.values():
        assert len(rates) == 4 and rates["bare forward"]["share_of_bare_forward"] == 1
        assert all(rate["images_per_second"] > 0 for rate in rates.values())


@pytest.mark.slow
def test_gpu_benchmark_runs_every_mode_small_on_the_cpu(script, tmp_path, monkeypatch):
    gpu, out = script("gpu"), tmp_path / "gpu.json"
    call(gpu, monkeypatch, "steps", "--device", "cpu", "--tiny", "--out", out)
    assert list(json.loads(out.read_text())["result"]["steps"]) == list(gpu.MODES)


@pytest.mark.gpu
def test_gpu_benchmark_runs_on_a_gpu(script, tmp_path, monkeypatch):
    gpu, out = script("gpu"), tmp_path / "gpu.json"
    call(gpu, monkeypatch, "--device", "cuda", "--tiny", "--jpeg", "--compiler", "inductor", "--out", out)
    rows = json.loads(out.read_text())["result"]["steps"]
    assert all(row["peak_mib"] > 0 for mode in rows.values() for row in mode.values())


def test_modes_reach_the_networks(script):
    gpu = script("gpu")
    options = SimpleNamespace(backbone="lightly:resnet-9", compiler="eager")
    plain, fast = gpu.build(options, gpu.Mode()), gpu.build(options, gpu.MODES["bf16, channels-last, compiled"])
    for module, expected in ((plain, False), (fast, True)):
        for network in (module.backbone, module.teacher_backbone):
            assert network.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last) is expected
            assert (network._compiled_call_impl is not None) is expected
    pairs = zip(plain.parameters(), fast.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_window_leaves_the_warm_up_out(script):
    calls: list[tuple[str, int]] = []
    meter = SimpleNamespace(
        start=lambda: calls.append(("start", window.seen)), stop=lambda: calls.append(("stop", window.seen))
    )
    window = script("gpu").Window(meter, warmup=2, steps=3)
    for _ in range(7):
        window.on_train_batch_end()
    assert calls == [("start", 2), ("stop", 5)]


def test_summaries_pair_rounds_and_take_medians(script):
    alone = [{"seconds": s, "bytes": 2**20} for s in (1.0, 2.0, 4.0)]
    rows = [{"seconds": s, "bytes": 2**20 * k} for s, k in ((3.0, 1), (2.0, 5), (6.0, 2))]
    result = script("gpu").summary(rows, alone, batch_size=12)
    assert result == {"seconds_per_step": 3.0, "images_per_second": 4.0, "ratio": 1.5,
                      "ratio_of_each_round": [3.0, 1.0, 1.5], "peak_mib": 5.0}  # fmt: skip
