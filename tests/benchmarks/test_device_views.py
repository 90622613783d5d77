"""The logic of benchmarks/device_views.py, on tiny input."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.calls import call


@pytest.mark.slow
def test_both_kinds_of_views_side_by_side(script, tmp_path, monkeypatch):
    benchmark, out = script("device_views"), tmp_path / "views.json"
    few = {name: benchmark.STEPS[name] for name in ("byol", "transport, one view, stored crops")}
    monkeypatch.setattr(benchmark, "STEPS", few)
    call(benchmark, monkeypatch, "--rounds", 2, "--steps", 1, "--warmup", 1, "--batch-size", 8, "--width", 0.125,
         "--out", out)  # fmt: skip
    assert str(tmp_path) not in out.read_text()
    written = json.loads(out.read_text())
    assert written["threads"] == 1 and written["versions"]["kornia"]
    assert set(written["result"]["steps"]) == {*few, "labelling"}
    for row in written["result"]["steps"].values():
        assert set(row["images_per_second"]) == {"one at a time", "on the device"}
        assert len(row["of_each_round"]["wall"]) == len(row["of_each_round"]["processor"]) == 2


def test_ratios_are_those_of_each_round(script):
    benchmark = script("device_views")
    before, now = (
        [benchmark.Seconds(wall, 2 * wall) for wall in walls] for walls in ((1.0, 2.0, 4.0), (0.5, 3.0, 1.0))
    )
    found = benchmark.summary({"one at a time": before, "on the device": now})
    assert found["of_each_round"]["wall"] == [0.5, 1.5, 0.25] and found["time_ratio"] == 0.5
    assert found["images_per_second"] == {"one at a time": 0.5, "on the device": 1.0}
