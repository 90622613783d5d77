"""Passes over the images of a stream, whose epochs may be of any length and never end."""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler, default_collate

from rela_lightning import ReLACallback, TargetStore, build_targets
from rela_lightning.errors import ConfigError
from rela_lightning.schedules import AuthorsRule, Plateau, Schedule, Switch, TransportOnly
from tests import on_the_fly
from tests.modules import byol
from tests.parts import TwoViews, make_digits
from tests.ranks import succeeded
from tests.streams import Shards, Training, write_shards
from tests.test_callback import Log, fit, seeded, trainer
from tests.test_streams_ddp import trainer as two_trainer

COUNT, BATCH = 64, 16


class Endless(IterableDataset):
    """Training samples of the shards over and over, in batches of its own if asked."""

    def __init__(self, paths: list[str], *, batched: bool = False, first: int = BATCH) -> None:
        self.samples, self.batched, self.first = Shards(paths, Training(TwoViews())), batched, first

    def __iter__(self) -> Iterator[Any]:
        samples = itertools.chain.from_iterable(itertools.repeat(self.samples))
        sizes = itertools.chain([self.first], itertools.repeat(BATCH)) if self.batched else ()
        for size in sizes:
            yield default_collate(list(itertools.islice(samples, size)))
        yield from samples


class Told(TransportOnly):
    """Keeps the passes it is told of."""

    adaptive = True

    def __init__(self) -> None:
        self.passes: list[float] = []

    def update(self, loss: Tensor, progress: float, epochs: float) -> None:
        self.passes.append(epochs)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: Any) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards"), COUNT)


@pytest.fixture(scope="module")
def store(tmp_path_factory: Any, shards: list[str]) -> TargetStore:
    return build_targets(on_the_fly.prior(), Shards(shards), tmp_path_factory.mktemp("targets") / "t")


def loader(shards: list[str], *, batched: bool = False, size: int = BATCH) -> DataLoader[Any]:
    return DataLoader(Endless(shards, batched=batched), batch_size=None if batched else size)


@pytest.mark.parametrize(
    ("batched", "plan"),
    [(False, {}), (True, {}), (False, {"limit_train_batches": 2, "max_epochs": 3})],
)
def test_images_that_have_passed_are_counted(
    shards: list[str], store: TargetStore, batched: bool, plan: dict[str, int]
) -> None:
    schedule, data = Told(), loader(shards, batched=batched)
    fit(seeded(byol), ReLACallback(store, schedule=schedule), data=data, **{"max_steps": 6, **plan})
    assert schedule.passes == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]


class EndlessSampler(Sampler[int]):
    """Rows in a new order at each pass, without end and without a length."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(COUNT).tolist()


class Batches:
    """Batches of rows, without a length."""

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.rows)


@pytest.mark.parametrize("on_the_fly_too", [False, True])
def test_rows_drawn_without_end_are_counted_too(targets64: Any, on_the_fly_too: bool) -> None:
    """A data set with rows says how many images there are, whatever its sampler says."""
    schedule = Told()
    data = DataLoader(make_digits(COUNT, TwoViews()), batch_size=BATCH, sampler=EndlessSampler())
    targets = {"prior": on_the_fly.prior()} if on_the_fly_too else {"targets": targets64}
    fit(seeded(byol), ReLACallback(**targets, schedule=schedule), data=data, max_steps=6)
    assert schedule.passes[-2:] == [1.0, 1.25]


def test_one_epoch_of_rows_without_a_length_is_a_pass(targets64: Any) -> None:
    batches = Batches(torch.randperm(COUNT).split(8))
    log, data = Log(), DataLoader(make_digits(COUNT, TwoViews()), batch_sampler=batches)
    fit(seeded(byol), ReLACallback(targets64, schedule=Switch(0.5)), log, data=data, max_epochs=1)
    assert [entry["rela/phase"] for entry in log.seen] == 6 * [0.0] + 2 * [2.0], "two batches were on their way"


def test_a_resumed_run_goes_on_counting(shards: list[str], store: TargetStore, tmp_path: Path) -> None:
    run = fit(seeded(byol), ReLACallback(store, schedule=Told()), data=loader(shards), max_steps=3)
    run.save_checkpoint(tmp_path / "three.ckpt")
    schedule = Told()
    resumed = trainer("lightning.pytorch", ReLACallback(store, schedule=schedule), max_steps=5)
    resumed.fit(byol(), loader(shards, size=8), ckpt_path=tmp_path / "three.ckpt")
    assert schedule.passes == [0.75, 0.875], "also with other batches"


def train_as_one_of_two(path: Path, shards: list[str]) -> None:
    """Train on batches of the stream's own, the first of them smaller on rank 1, and say what was counted."""
    schedule = Told()
    first = BATCH - 4 * int(os.environ["LOCAL_RANK"])
    data = DataLoader(Endless(shards, batched=True, first=first), batch_size=None)
    run = two_trainer(ReLACallback(path, schedule=schedule), max_steps=4)
    run.fit(seeded(byol), data)
    Path(f"{path}-{run.global_rank}.json").write_text(json.dumps(schedule.passes))


@pytest.mark.slow
def test_ranks_count_the_same(shards: list[str], store: TargetStore) -> None:
    succeeded(train_as_one_of_two, store.path, shards)
    for rank in (0, 1):
        assert json.loads(Path(f"{store.path}-{rank}.json").read_text()) == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.slow
def test_the_default_hands_over_in_a_stream_that_never_ends(shards: list[str], store: TargetStore) -> None:
    """The loss lies still for two windows of 50 steps; by an epoch that never ends nothing could be told."""
    callback = ReLACallback(store, transport_optimizer=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(saw no end|not known)")
        run = fit(seeded(byol, lr=0.0), callback, data=loader(shards), max_steps=160)
    assert run.global_step == 160 and isinstance(callback.schedule, Plateau) and callback.schedule.fired


@pytest.mark.parametrize(
    ("schedule", "plan", "said"),
    [
        (None, {"max_steps": 2}, True),
        (None, {"max_steps": 2, "max_epochs": 2}, True),
        (None, {"max_steps": 2, "max_epochs": 3}, True),  # steps may end the first of them
        (None, {"max_epochs": 3}, False),
        (Plateau(at_most=0.5), {"max_steps": 2}, False),
        (None, {"max_steps": 2, "limit_train_batches": 4}, False),
        (Switch(0.4), {"max_steps": 2}, False),
    ],
)
def test_a_default_with_nothing_to_go_by_is_said_before_training(
    shards: list[str], schedule: Schedule | None, plan: dict[str, Any], said: bool
) -> None:
    torch.manual_seed(0)
    callback = ReLACallback(prior=on_the_fly.prior(), schedule=schedule)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(seeded(byol), callback, data=loader(shards) if "max_steps" in plan else finite(shards), **plan)
    assert said == any("how many images there are is not known" in str(warning.message) for warning in caught)


def finite(shards: list[str]) -> DataLoader[Any]:
    """A stream whose epoch shows each image once, but which has no length."""
    return DataLoader(Shards(shards, Training(TwoViews())), batch_size=BATCH)


def test_a_switch_comes_within_the_one_epoch_of_a_stream(shards: list[str], store: TargetStore) -> None:
    log = Log()
    fit(seeded(byol), ReLACallback(store, schedule=Switch(0.5)), log, data=finite(shards), max_epochs=1)
    assert [entry["rela/phase"] for entry in log.seen] == [0.0, 0.0, 2.0, 2.0]


def test_one_epoch_of_any_length_is_refused(shards: list[str]) -> None:
    """Where the schedule has to know how much is spent, and nothing says so."""

    def train(schedule: Schedule | None, **plan: Any) -> None:
        callback = ReLACallback(prior=on_the_fly.prior(), schedule=schedule)
        fit(seeded(byol), callback, data=finite(shards), **{"max_epochs": 1, **plan})

    for schedule in (None, Switch(0.5)):
        with pytest.raises(ConfigError, match=r"has to know how much[\s\S]*limit_train_batches"):
            train(schedule)
    train(TransportOnly())
    train(AuthorsRule())  # goes by the number of steps
    train(Switch(0.5), limit_train_batches=2)
    train(Switch(0.5), max_epochs=2)


def test_an_epoch_shorter_than_a_pass_says_that_the_switch_never_came(shards: list[str], store: TargetStore) -> None:
    part = DataLoader(Shards(shards[:1], Training(TwoViews())), batch_size=8)
    with pytest.warns(UserWarning, match="Switch had not handed over when training ended, its last step at 12%"):
        fit(seeded(byol), ReLACallback(store, schedule=Switch(0.4)), data=part, max_epochs=1)
