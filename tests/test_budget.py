"""Progress against a straight restatement, on fake counters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import callbacks
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from rela_lightning.errors import ConfigError
from rela_lightning.injection.budget import Budget
from rela_lightning.injection.passes import Passes


def trainer(**options: Any) -> Any:
    total = SimpleNamespace(processed=options.pop("total", 0))
    done = SimpleNamespace(current=SimpleNamespace(processed=options.pop("processed", 0)), total=total)
    base = {"callbacks": [], "max_steps": -1, "max_epochs": -1, "num_training_batches": 10, "global_step": 0,
            "current_epoch": 0, "world_size": 1, "train_dataloader": None}  # fmt: skip
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=done))
    return SimpleNamespace(**{**base, **options}, fit_loop=loop)


class Sixty(callbacks.Timer):
    """Lightning's, after 60 of 100 seconds."""

    def __init__(self) -> None:
        super().__init__({"seconds": 100})

    def time_elapsed(self, stage: str = "train") -> float:
        return 60.0


class Clock:
    """A callback with a budget of its own; what else it keeps is its own affair."""

    _duration = 2.0

    def budget_share(self) -> float:
        return 0.7


class Song:
    """A callback that has a duration, but no say in the budget."""

    _duration = 3.0


class Endless(IterableDataset):
    """A stream."""

    def __iter__(self) -> Iterator[int]:
        return itertools.count()


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"max_steps": 40, "global_step": 10}, 0.25),
        ({"max_epochs": 4, "current_epoch": 1}, 0.25),
        ({"max_epochs": 4, "current_epoch": 1, "processed": 10}, 0.25),  # still the count of the epoch before
        ({"max_epochs": 4, "processed": 5}, 0.125),
        ({"max_epochs": 4, "current_epoch": 1, "max_steps": 20, "global_step": 10}, 0.5),
        ({"max_epochs": 4, "current_epoch": 1, "callbacks": [object(), Sixty()]}, 0.6),
        ({"max_epochs": 4, "num_training_batches": math.inf, "current_epoch": 1, "processed": 999}, 0.25),
        ({"max_steps": 5, "global_step": 9}, 1.0),
        ({"max_epochs": 4, "current_epoch": 1, "callbacks": [Clock(), Song()]}, 0.7),
        ({"callbacks": [Clock()]}, 0.7),
    ],
)
def test_progress_is_the_largest_share(options: Any, expected: float) -> None:
    run = trainer(**options)
    assert Budget(run, Passes(run)).progress() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("loader", "options", "expected"),
    [
        (DataLoader(range(80), batch_size=8), {}, 2.5),
        (DataLoader(range(80), batch_size=8), {"num_training_batches": 5, "processed": 0}, 1.0),  # limit_train_batches
        (DataLoader(range(80), batch_sampler=BatchSampler(range(40), 4, False)), {}, 1.25),  # half of them drawn
        (DataLoader(range(80), batch_size=4), {"world_size": 2}, 2.5),
        (DataLoader(range(20), batch_size=8), {}, 10.0),  # each is drawn four times
        (DataLoader(range(80), batch_size=None), {}, 2.5),
        ([DataLoader(range(80), batch_size=8)], {}, 2.5),
        (DataLoader(Endless(), batch_size=8), {"num_training_batches": math.inf}, 2.0),
    ],
)
def test_passes_over_the_images_are_counted_by_what_an_epoch_draws(loader: Any, options: Any, expected: float) -> None:
    at = {"max_epochs": 4, "current_epoch": 2, "processed": 5, "train_dataloader": loader, **options}
    passes = Passes(trainer(**at))
    passes.start()
    assert passes.count() == pytest.approx(expected)


@pytest.mark.parametrize("length", [5, math.inf])
@pytest.mark.parametrize(("size", "expected"), [(8, 2.0), (None, 1.0)])
def test_images_found_by_key_are_counted_whatever_an_epoch_is(length: float, size: int | None, expected: float) -> None:
    agreed: list[int] = []

    def broadcast(size: int) -> int:
        agreed.append(size)
        return size

    loader = DataLoader(Endless(), batch_size=size)
    at = {"num_training_batches": length, "world_size": 2, "total": 10, "train_dataloader": loader}
    passes = Passes(trainer(**at, strategy=SimpleNamespace(broadcast=broadcast)), 80)
    passes.start()
    for samples in (4, 3):  # the last batch may be smaller
        passes.saw(samples)
        assert passes.count() == expected
    assert agreed == [size or 4], "once"


def test_passes_go_on_from_those_before_with_batches_of_another_size() -> None:
    run = trainer(num_training_batches=math.inf, total=10, train_dataloader=DataLoader(Endless(), batch_size=4))
    run.strategy = SimpleNamespace(broadcast=lambda size: size)
    passes = Passes(run, 80)
    passes.before = 3.0
    passes.start()
    assert passes.count() == 3.0
    passes.saw(4)
    run.fit_loop.epoch_loop.batch_progress.total.processed += 5
    assert passes.count() == 3.25


@pytest.mark.parametrize(
    ("options", "images", "between", "within"),
    [
        ({"processed": 5, "total": 5, "max_epochs": 1}, 80, 0.0, 0.5),  # of the ten batches in which 80 images pass
        ({"processed": 15, "total": 15, "max_epochs": 1}, 80, 0.0, 1.0),
        ({"processed": 5, "total": 5, "max_epochs": 1}, None, 0.0, 0.0),
        ({"processed": 5, "total": 5, "max_epochs": 1, "max_steps": 1000}, 80, 0.0, 0.0),  # steps end it
        ({"processed": 5, "total": 5}, 80, 0.0, 0.0),  # of several epochs the first will say how long one is
        ({"processed": 5, "total": 45, "current_epoch": 2}, 80, 2.0, 2.25),  # of the 20 batches of those before
        ({"processed": 5, "total": 45, "current_epoch": 2}, None, 2.0, 2.25),
        ({"processed": 20, "total": 40, "current_epoch": 2}, 80, 2.0, None),
    ],
)
def test_how_much_of_a_streams_epoch_has_passed(
    options: dict[str, int], images: int | None, between: float, within: float | None
) -> None:
    plan = {"max_epochs": 4, **options}
    run = trainer(num_training_batches=math.inf, train_dataloader=DataLoader(Endless(), batch_size=8), **plan)
    run.strategy = SimpleNamespace(broadcast=lambda size: size)
    passes = Passes(run, images)
    passes.saw(8)
    budget = Budget(run, passes)
    assert budget.progress() == between / plan["max_epochs"]
    assert within is None or budget.progress(under_way=True) == within / plan["max_epochs"]


def test_ranks_agree_on_seconds_and_ask_rarely() -> None:
    asked = []

    def broadcast(value: float) -> float:
        asked.append(value)
        return 30.0  # rank 0's clock

    run = trainer(callbacks=[Sixty()], world_size=2, strategy=SimpleNamespace(broadcast=broadcast))
    budget = Budget(run, Passes(run))
    assert {budget.progress() for _ in range(20)} == {0.3} and len(asked) == 1


def test_a_run_without_an_end_is_refused() -> None:
    for others in ([], [Song()], [callbacks.Timer()]):
        run = trainer(callbacks=others)
        with pytest.raises(ConfigError, match="max_epochs"):
            Budget(run, Passes(run))
