"""The logic of benchmarks/gpu.py and its parts, on tiny input."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.benchmarks.calls import call


def rows(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What was measured, by part and name."""
    lines = map(json.loads, out.read_text().splitlines())
    return {(line["part"], line["name"]): line["result"] for line in lines}


@pytest.mark.slow
def test_gpu_benchmark_runs_small_on_the_cpu(script, tmp_path, monkeypatch):
    gpu, out = script("gpu"), tmp_path / "gpu.jsonl"
    words = ("steps", "labelling", "--device", "cpu", "--tiny", "--jpeg", "--modes", "fp32", "--out", out)
    call(gpu, monkeypatch, *words)
    found, text = rows(out), out.read_text()
    assert str(tmp_path) not in text and json.loads(text.splitlines()[0])["command"].endswith("--out OUT")
    table = found.pop(("steps", "fp32"))
    assert set(table) == {"alone", "mixed", "transport, two views", "transport, one view", "after the switch",
                          "bare, two views and teacher", "bare, one view"}  # fmt: skip
    assert table["alone"]["ratio"] == 1 and all(row["seconds_per_step"] > 0 for row in table.values())
    assert table["mixed"]["ratio"] == pytest.approx(
        table["mixed"]["seconds_per_step"] / table["alone"]["seconds_per_step"]
    )
    assert [name.split(", ")[1] for _, name in found] == ["32-true", "bf16-mixed"]
    for rates in found.values():
        assert len(rates) == 4 and rates["bare forward"]["share_of_bare_forward"] == 1
        assert all(rate["images_per_second"] > 0 for rate in rates.values())

    call(gpu, monkeypatch, *words)  # what is there already is left out
    call(gpu, monkeypatch, *words, "--modes", "bf16", "--minutes", -1)  # and nothing is begun when time is up
    assert out.read_text() == text


@pytest.mark.slow
def test_gpu_benchmark_runs_in_other_modes_small_on_the_cpu(script, tmp_path, monkeypatch):
    gpu, steps, out = script("gpu"), script("gpu_steps"), tmp_path / "gpu.jsonl"
    monkeypatch.setattr(steps, "VARIANTS", {"alone": steps.VARIANTS["alone"]})  # the others: in fp32 above
    modes = ["fp32, channels-last", "bf16, channels-last, compiled"]  # each way of computing at least once
    few = ("--steps", 1, "--batch-size", 2, "--compiler", "eager", "--modes", *modes)
    call(gpu, monkeypatch, "steps", "--device", "cpu", "--tiny", *few, "--out", out)
    assert [name for _, name in rows(out)] == modes


@pytest.mark.slow
def test_gpu_benchmark_runs_whole_epochs_small_on_the_cpu(script, tmp_path, monkeypatch):
    out = tmp_path / "gpu.jsonl"
    call(script("gpu"), monkeypatch, "epochs", "--device", "cpu", "--tiny", "--modes", "fp32", "--out", out)
    table = rows(out)["epochs", "fp32"]
    assert set(table) == {"byol", "transport, one view"}
    for row in table.values():
        assert row["share_of_bare"] == pytest.approx(1 / row["ratio"])
        assert row["minutes_for_200_epochs"] == pytest.approx(200 * 50_000 / row["images_per_second"] / 60)


@pytest.mark.slow
def test_gpu_benchmark_compares_views_small_on_the_cpu(script, tmp_path, monkeypatch):
    gpu, views, out = script("gpu"), script("device_views"), tmp_path / "gpu.jsonl"
    monkeypatch.setattr(views, "STEPS", {"byol": None})
    mode = "bf16, channels-last, compiled"
    call(gpu, monkeypatch, "views", "--device", "cpu", "--tiny", "--steps", 1, "--compiler", "eager", "--out", out,
         "--modes", mode)  # fmt: skip
    table = rows(out)["views", mode]
    assert set(table) == {"byol", "labelling"} and all(row["time_ratio"] > 0 for row in table.values())


@pytest.mark.gpu
def test_gpu_benchmark_runs_on_a_gpu(script, tmp_path, monkeypatch):
    gpu, out = script("gpu"), tmp_path / "gpu.jsonl"
    call(gpu, monkeypatch, "--device", "cuda", "--tiny", "--jpeg", "--compiler", "inductor", "--out", out)
    found = [table for (part, _), table in rows(out).items() if part == "steps"]
    assert found and all(row["peak_mib"] > 0 for mode in found for row in mode.values())


def test_modes_reach_the_networks(script):
    speed = script("speed")
    options = SimpleNamespace(backbone="lightly:resnet-9", backbone_kwargs=None, cifar_stem=False, compiler="eager")
    plain, fast = speed.build(options, speed.Mode()), speed.build(options, speed.MODES["bf16, channels-last, compiled"])
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
    window = script("speed").Window(meter, warmup=2, steps=3)
    for _ in range(7):
        window.on_train_batch_end()
    assert calls == [("start", 2), ("stop", 5)]


def test_summaries_pair_rounds_and_take_medians(script):
    seconds = script("speed").Seconds
    alone = [seconds(s, 2 * s, 2**20) for s in (1.0, 2.0, 4.0)]
    rows = [seconds(s, s / 2, 2**20 * k) for s, k in ((3.0, 1), (2.0, 5), (6.0, 2))]
    result = script("speed").summary(rows, alone, images=12)
    assert result == {"seconds_per_step": 3.0, "processor_seconds_per_step": 1.5, "images_per_second": 4.0,
                      "ratio": 1.5, "processor_ratio": 0.375, "ratio_of_each_round": [3.0, 1.0, 1.5],
                      "peak_mib": 5.0}  # fmt: skip
