"""benchmarks/demo_schedule.py: who sees which image, and where runs hand over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rela_lightning.data import Digits
from tests.benchmarks.calls import call, lines_of, refused

UNITS = 6  # one is labelling


@pytest.fixture
def schedule(script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with results of its own, and small batches."""
    module = script("demo_schedule")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "demo_schedule.jsonl")
    monkeypatch.setattr(module, "LABELLING", 1.0)
    monkeypatch.setattr(module.parts, "BATCH_SIZE", 8)
    return module


@pytest.mark.slow
def test_held_out_images_are_neither_labelled_nor_trained_on_and_test_images_are_not_read(
    schedule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[bytes]] = {"labelled": set(), "trained on": set()}
    probed: list[torch.Tensor] = []
    read: list[str] = []
    view, label, digits = schedule.parts.TwoViews.__call__, schedule.build_targets, Digits.__init__

    def watched(self: Any, image: Any) -> Any:
        seen["trained on"].add(image.tobytes())
        return view(self, image)

    def watched_labels(prior: Any, images: Any, *rest: Any) -> Any:
        seen["labelled"] |= {images[i][0].tobytes() for i in range(len(images))}
        return label(prior, images, *rest)

    def watched_split(self: Digits, split: str = "train", **options: Any) -> None:
        read.append(split)
        digits(self, split, **options)

    def probe(self: Any, backbone: Any) -> dict[str, Any]:
        probed.extend(data.tensors[0] for data in (self.train, self.test))
        return dict.fromkeys(schedule.MEASURES, 0.5)

    monkeypatch.setattr(schedule.parts.TwoViews, "__call__", watched)
    monkeypatch.setattr(schedule, "build_targets", watched_labels)
    monkeypatch.setattr(Digits, "__init__", watched_split)
    monkeypatch.setattr(schedule.HeldOut, "probe", probe)
    schedule.one_run({"run": schedule.RELA, "schedule": "20%", "units": UNITS, "seed": 0}, tmp_path, schedule.HeldOut())
    assert set(read) == {"train"}

    train, held_out = probed
    every = [image.tobytes() for image, _ in Digits("train")]
    pixels = {as_student.numpy().tobytes(): image for as_student, image in zip(plain(schedule), every, strict=True)}
    to_train, unseen = ({pixels[image.numpy().tobytes()] for image in images} for images in (train, held_out))
    assert len(to_train) + len(unseen) == len(every) and abs(5 * len(unseen) - len(every)) <= 5  # a fifth
    assert seen["labelled"] == to_train
    assert len(seen["trained on"]) > 40 and not seen["trained on"] & unseen


def plain(schedule: Any) -> torch.Tensor:
    images: torch.Tensor = schedule.parts.tensors("train").tensors[0]
    return images


@pytest.mark.slow
def test_runs_hand_over_where_they_say_and_are_made_once(
    schedule: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"few_label_top1": {"mean": 0.5, "std": 0.0}, "knn_top1": 0.25, "linear_top1": 0.75}
    monkeypatch.setattr(schedule, "split", lambda: (np.arange(200), np.arange(200, 300)))  # quicker to label
    monkeypatch.setattr(schedule, "HeldOut", lambda: SimpleNamespace(probe=lambda backbone: scores))
    call(schedule, monkeypatch, "run", "--units", UNITS, "--seeds", 1)
    rows = {(row["run"], row["schedule"]): row for row in lines_of(schedule.RESULTS)}
    assert list(rows) == list(schedule.VARIANTS) and len(lines_of(schedule.RESULTS)) == 9
    budget = UNITS - schedule.LABELLING
    for (run, name), row in rows.items():
        if name is None:
            assert row["switched_at"] is None and row["steps"] == UNITS
        elif name.endswith("%"):
            late = row["switched_at"] - int(name[:-1]) / 100
            assert -0.001 <= late <= 2 * 0.42 / budget, (run, name)  # a batch had been fetched
        else:
            assert row["switched_at"] is None and row["steps"] == int(budget / 0.42)
    assert rows[schedule.RELA, "20%"]["steps"] < rows[schedule.RELA, "80%"]["steps"]

    monkeypatch.setattr(schedule, "one_run", lambda *args: pytest.fail("run again"))
    call(schedule, monkeypatch, "run", "--units", UNITS, "--seeds", 1)
    capsys.readouterr()
    call(schedule, monkeypatch, "report", "--units", UNITS)
    table = capsys.readouterr().out
    assert "| byol+rela | 40% | 50.0 | 25.0 | 75.0 |  | 1 |" in table
    assert "| byol+rela | 60% | 50.0 | 25.0 | 75.0 | +0.0 | 1 |" in table
    assert "| byol+rela | default (never) |" in table


def test_the_report_takes_differences_seed_by_seed(schedule: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rest = {"units": UNITS, "knn_top1": 90.0, "linear_top1": 99.0, "switched_at": 0.41}
    scores = {"40%": {0: 90.0, 1: 80.0}, "20%": {1: 81.0, 0: 89.0}}
    rows = [
        {"run": schedule.RELA, "schedule": name, "seed": seed, "few_label_top1": score, **rest}
        for name, of_seed in scores.items()
        for seed, score in of_seed.items()
    ]
    schedule.RESULTS.write_text("\n".join(map(json.dumps, rows)) + "\n")
    schedule.report(UNITS)
    assert "| byol+rela | 20% | 85.0 ± 50.8 | 90.0 ± 0.0 | 99.0 ± 0.0 | +0.0 ± 12.7 | 2 |" in capsys.readouterr().out


def test_a_budget_for_labelling_alone_is_refused(
    schedule: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "labelling takes 1" in refused(schedule, monkeypatch, capsys, "run", "--units", 2)
