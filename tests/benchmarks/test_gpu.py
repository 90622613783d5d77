"""The logic of benchmarks/gpu.py, on tiny input."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from tests.benchmarks.calls import call


@pytest.mark.slow
def test_gpu_benchmark_runs_small_on_the_cpu(script, tmp_path, monkeypatch):
    gpu, out = script("gpu"), tmp_path / "gpu.json"
    call(gpu, monkeypatch, "steps", "labelling", "--device", "cpu", "--tiny", "--jpeg", "--modes", "fp32", "--out", out)
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
    monkeypatch.setattr(gpu, "VARIANTS", {"alone": gpu.VARIANTS["alone"]})  # the others: in fp32 above
    few = ("--steps", 1, "--batch-size", 2, "--compiler", "eager")
    call(gpu, monkeypatch, "steps", "--device", "cpu", "--tiny", *few, "--out", out)
    assert list(json.loads(out.read_text())["result"]["steps"]) == list(gpu.MODES)


@pytest.mark.slow
def test_gpu_benchmark_compares_views_small_on_the_cpu(script, tmp_path, monkeypatch):
    gpu, views, out = script("gpu"), script("device_views"), tmp_path / "gpu.json"
    monkeypatch.setattr(views, "STEPS", {"byol": None})
    mode = "bf16, channels-last, compiled"
    call(gpu, monkeypatch, "views", "--device", "cpu", "--tiny", "--steps", 1, "--out", out, "--modes", mode)
    table = json.loads(out.read_text())["result"]["views"][mode]
    assert set(table) == {"byol", "labelling"} and all(row["time_ratio"] > 0 for row in table.values())


@pytest.mark.gpu
def test_gpu_benchmark_runs_on_a_gpu(script, tmp_path, monkeypatch):
    gpu, out = script("gpu"), tmp_path / "gpu.json"
    call(gpu, monkeypatch, "--device", "cuda", "--tiny", "--jpeg", "--compiler", "inductor", "--out", out)
    rows = json.loads(out.read_text())["result"]["steps"]
    assert all(row["peak_mib"] > 0 for mode in rows.values() for row in mode.values())


def test_modes_reach_the_networks(script):
    gpu = script("gpu")
    options = SimpleNamespace(backbone="lightly:resnet-9", backbone_kwargs=None, compiler="eager")
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
