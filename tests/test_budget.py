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
    assert Budget(trainer(**options)).progress() == pytest.approx(expected)


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
    assert Budget(trainer(**at)).passes() == pytest.approx(expected)


@pytest.mark.parametrize(("size", "agreed", "expected"), [(8, 0, 2.0), (None, 4, 1.0)])
def test_images_of_a_stream_are_counted_where_it_is_known_how_many_there_are(
    size: int | None, agreed: int, expected: float
) -> None:
    at = {"max_epochs": 4, "num_training_batches": math.inf, "world_size": 2, "total": 10}
    strategy = SimpleNamespace(broadcast=lambda samples: agreed)
    budget = Budget(trainer(**at, train_dataloader=DataLoader(Endless(), batch_size=size), strategy=strategy), 80)
    for samples in (4, 3):
        budget.saw(samples)
        assert budget.passes() == expected, "the last batch may be smaller"


@pytest.mark.parametrize(
    ("options", "images", "between", "within"),
    [
        ({"processed": 5, "total": 5}, 80, 0.0, 0.5),  # of the ten batches in which 80 images pass
        ({"processed": 5, "total": 5}, None, 0.0, 0.0),
        ({"processed": 5, "total": 5, "max_steps": 1000}, 80, 0.0, 0.0),  # steps may end an epoch that never would
        ({"processed": 15, "total": 15}, 80, 0.0, 1.0),  # an epoch that is longer does not end the next one too
        ({"processed": 5, "total": 45, "current_epoch": 2}, 80, 2.0, 2.25),  # of the 20 batches of those before
        ({"processed": 5, "total": 45, "current_epoch": 2}, None, 2.0, 2.25),
        ({"processed": 20, "total": 40, "current_epoch": 2}, 80, 2.0, None),
    ],
)
def test_how_much_of_a_streams_epoch_has_passed(
    options: dict[str, int], images: int | None, between: float, within: float | None
) -> None:
    loader = DataLoader(Endless(), batch_size=8)
    run = trainer(max_epochs=4, num_training_batches=math.inf, train_dataloader=loader, **options)
    budget = Budget(run, images)
    assert budget.progress() == between / 4
    assert within is None or budget.progress(under_way=True) == within / 4


def test_ranks_agree_on_seconds_and_ask_rarely() -> None:
    asked = []

    def broadcast(value: float) -> float:
        asked.append(value)
        return 30.0  # rank 0's clock

    budget = Budget(trainer(callbacks=[Sixty()], world_size=2, strategy=SimpleNamespace(broadcast=broadcast)))
    assert {budget.progress() for _ in range(20)} == {0.3} and len(asked) == 1


def test_a_run_without_an_end_is_refused() -> None:
    for others in ([], [Song()], [callbacks.Timer()]):
        with pytest.raises(ConfigError, match="max_epochs"):
            Budget(trainer(callbacks=others))
