"""Two gloo processes under plain `ddp`; one launch runs every case of `ddp_cases.py`."""

from __future__ import annotations

import json
from typing import Any

import lightning.pytorch as L
import pytest
from torch.utils.data import DataLoader

from rela_lightning import ReLACallback, accelerate, build_targets
from rela_lightning.schedules import Switch
from tests.ddp_cases import CASES, run_all
from tests.modules import PlainBYOL, byol
from tests.parts import TwoViews, make_digits
from tests.ranks import forks, spawned, succeeded
from tests.test_callback import Log, fit, seeded
from tests.test_crops import prior

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(targets64: Any, digits64: Any, tmp_path_factory: Any) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("ddp") / "results.json"
    build_targets(prior(), digits64, f"{targets64}-crops", views=3)
    succeeded(run_all, out, str(targets64))
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", CASES)
def test_ranks_agree(name: str, results: dict[str, Any]) -> None:
    first, second = results[name]
    assert "error" not in first and "error" not in second, (first, second)
    assert first["end"] == second["end"] != first["start"], "parameters are trained and identical on both ranks"
    assert first["map"] == second["map"]
    assert first["phases"] == second["phases"], "the switch falls on the same step everywhere"
    assert not first["heads_moved"], "heads take no part in the transport phase: no decay, no momentum"
    for mine, theirs in zip(first["rows"], second["rows"], strict=True):
        assert len(mine) == len(theirs) and not set(mine) & set(theirs), "ranks see different samples"


def test_phases_are_what_the_schedule_says(results: dict[str, Any]) -> None:
    assert results["byol switch"][0]["phases"] == [0.0] * 4 + [2.0] * 4
    assert results["accumulation"][0]["phases"] == [0.0] * 4 + [2.0] * 4
    assert results["head warm-up"][0]["phases"] == [0.0] * 4 + [1.0] * 2 + [2.0] * 2
    assert results["byol mix"][0]["phases"] == [1.0] * 8


def test_nothing_is_left_in_the_step_after_the_switch_and_nothing_differs(results: dict[str, Any]) -> None:
    for off, kept in zip(results["byol switch"], results["byol switch, kept"], strict=True):
        assert off["attached"] == [True] * 5 + [False] * 3, "the second of two batches on their way lets go"
        assert kept["attached"] == [True] * 8
        assert (off["end"], off["map"], off["phases"]) == (kept["end"], kept["map"], kept["phases"])
    for name in ("simclr switch", "simclr adaptive", "manual switch", "accumulation", "bf16", "crops"):
        for result in results[name]:
            assert result["attached"][0] and not result["attached"][-1], name


def test_the_rule_sees_one_loss(results: dict[str, Any]) -> None:
    first, second = (result["losses"] for result in results["simclr adaptive"])
    assert first == second and len(first) >= 3
    assert results["simclr adaptive"][0]["phases"] == [0.0] * 4 + [2.0] * 4, "one batch was on its way"


def test_ranks_learn_targets_on_the_fly_together(results: dict[str, Any]) -> None:
    first, second = (result["told"] for result in results["on the fly"])
    assert first == second and first[0] is None and first[1] > 1.0


def test_the_subset_is_one_draw(results: dict[str, Any]) -> None:
    epochs = [set(a) | set(b) for a, b in zip(*(r["rows"] for r in results["data ratio"]), strict=True)]
    assert [len(rows) for rows in epochs] == [32, 32] and epochs[0] != epochs[1]


def test_contrast_is_with_the_targets_of_all_ranks(results: dict[str, Any]) -> None:
    (own, others), (theirs, ours) = (result["compared"] for result in results["contrastive"])
    assert own == ours and others == theirs and own != theirs and len(own) == 8


@pytest.mark.parametrize("attach", ["callback", "accelerate"])
def test_spawned_processes(attach: str, targets64: Any) -> None:
    """`ddp_spawn` pickles module and callback, with the callback and through `accelerate`."""
    module, options = PlainBYOL(), {"schedule": Switch(0.5)}
    callbacks = [ReLACallback(targets64, **options)] if attach == "callback" else []
    if attach == "accelerate":
        accelerate(module, targets64, **options)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=spawned(), max_epochs=2, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(make_digits(64, TwoViews()), batch_size=16))
    assert float(trainer.callback_metrics["rela/phase"]) == 2.0


def test_a_single_process(targets64: Any) -> None:
    """`ddp` with one process, which Lightning wraps too; in one of its own, as a process group outlives its fit."""

    def alone() -> None:
        log = Log()
        fit(seeded(byol), ReLACallback(targets64, schedule=Switch(0.5)), log, strategy="ddp", devices=1)
        print([entry["rela/phase"] for entry in log.seen])

    [ended] = forks(alone)
    assert ended.output.strip().endswith(str([0.0] * 4 + [2.0] * 4)), ended.output
