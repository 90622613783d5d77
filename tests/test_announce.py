"""The callback says that it is on, what it plans, where phases change, and what they took."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from torch.utils.data import DataLoader

from rela_lightning import ReLACallback, TargetStore
from rela_lightning.injection.announce import Mark, bill, in_words, plan
from rela_lightning.losses import Contrastive
from rela_lightning.schedules import Blend, Mix, Plateau, Schedule, Switch, TransportOnly
from tests.modules import NAMESPACES, simclr
from tests.parts import TwoViews, make_digits
from tests.test_callback import Log, fit, loader, seeded, trainer


def said(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("ReLA")]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_fit_tells_its_start_its_switch_and_its_end(namespace: str, targets64: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        log = Log()
        rela = ReLACallback(targets64, schedule=Switch(0.5))
        fit(seeded(simclr, namespace), rela, log, namespace=namespace, max_epochs=4)
    start, reads, switch, end = said(caplog)
    store = TargetStore(targets64)
    steps = int(switch.split("from step ")[1].split()[0])
    assert start.startswith("ReLA is on: cosine loss to ") and f"of 64 images, {store.dim} columns" in start
    assert "transport alone, from 50% of the budget the module's own objective alone" in start
    assert reads.startswith("ReLA reads backbone")
    assert steps > 0 and "50% of the budget. The transport loss went from " in switch
    losses = [row["rela/loss"] for row in log.seen]
    assert switch.endswith(f"went from {losses[0]:.3f} to {losses[steps - 1]:.3f}.")
    assert f"transport alone {steps} steps in " in end and f"the module's own objective alone {steps} steps in " in end
    assert f"the targets took {store.manifest['labelling_seconds']:.1f} s, once" in end


@pytest.mark.parametrize("manual", [False, True])
def test_all_steps_are_in_the_bill(manual: bool, targets64: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        fit(seeded(simclr, manual=manual), ReLACallback(targets64, schedule=Switch(0.5)))
    *_, switch, end = said(caplog)
    assert "from step 4 on" in switch
    assert "transport alone 4 steps in " in end and "the module's own objective alone 4 steps in " in end


@pytest.mark.parametrize("told", [True, False])
def test_a_data_set_that_keeps_its_own_views_is_told_of(told: bool, targets64: Any, caplog: Any) -> None:
    data = make_digits(64, TwoViews())
    data = [data[row] for row in range(64)] if told else data  # views that are there already
    options = {"data": DataLoader(data, batch_size=16), "reload_dataloaders_every_n_epochs": 1, "max_epochs": 2}
    with caplog.at_level(logging.INFO):
        fit(seeded(simclr), ReLACallback(targets64, schedule=Switch(0.5)), **options)
        fit(seeded(simclr), ReLACallback(targets64, schedule=Switch(0.5), transform=None), **options)
        fit(seeded(simclr), ReLACallback(targets64, schedule=Mix(0.5)), **options)
    own = [line for line in said(caplog) if line.startswith("ReLA shows the data set's own views")]
    assert len(own) == told


def test_a_resumed_fit_counts_its_own_steps(targets64: Any, caplog: Any, tmp_path: Any) -> None:
    first = fit(seeded(simclr), ReLACallback(targets64, schedule=Switch(0.5)), max_epochs=3)
    first.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer("lightning.pytorch", ReLACallback(targets64, schedule=Switch(0.5)), max_epochs=4)
    with caplog.at_level(logging.INFO):
        again.fit(seeded(simclr), loader(), ckpt_path=tmp_path / "a.ckpt")
    made = again.global_step - first.global_step
    assert f"the module's own objective alone {made} steps in " in said(caplog)[-1]
    assert "transport alone" not in said(caplog)[-1]
    start = [line for line in said(caplog) if line.startswith("ReLA is on")][-1]
    assert start.endswith("columns); transport is over, the module's own objective alone.")


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (TransportOnly(), "transport alone"),
        (Mix(0.3), "both objectives"),
        (Mix(0.0), "the module's own objective alone"),
        (Switch(0.25), "transport alone, from 25% of the budget the module's own objective alone"),
        (
            Blend("linear", until=0.5),
            "transport alone, from 1% of the budget both objectives, "
            "from 50% of the budget the module's own objective alone",
        ),
    ],
)
def test_plans_in_words(schedule: Schedule, words: str) -> None:
    assert plan(schedule) == words


def test_an_open_end_is_told() -> None:
    assert "until Plateau finds" in plan(Plateau()) and "never runs" in plan(Plateau())


def test_the_bill_adds_phases_up() -> None:
    marks = [Mark(0, 0, 10.0), Mark(1, 40, 14.0), Mark(0, 50, 20.0), Mark(2, 60, 22.0)]
    assert bill(marks, Mark(0, 100, 30.0)) == (
        "transport alone 50 steps in 6.0 s; both objectives 10 steps in 6.0 s; "
        "the module's own objective alone 40 steps in 8.0 s"
    )


def test_losses_in_words() -> None:
    def mine(mapped: Any, targets: Any) -> Any: ...

    given: list[Any] = ["cosine", ["cosine", "relational"], {"cosine": 1.0, "relational": 0.5}, mine, Contrastive(0.2)]
    assert [in_words(loss) for loss in given] == [
        "cosine",
        "cosine + relational",
        "1 cosine + 0.5 relational",
        "mine",
        "Contrastive",
    ]
