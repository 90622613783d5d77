"""Targets from the prior itself, for data without an index."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from rela_lightning import ReLACallback, transport_loss
from rela_lightning.errors import DataError
from rela_lightning.schedules import Mix, Switch, TransportOnly
from rela_lightning.targets.reduce import moments, pca
from rela_lightning.targets.source import BatchRows, PriorTargets
from tests.modules import NAMESPACES, byol, same, simclr, weights
from tests.on_the_fly import Told, prior
from tests.parts import TwoViews, make_digits
from tests.test_callback import Log, fit, loader, seeded


class Stream(IterableDataset):
    """Digits one after another, without an index; the transform is an attribute as in map-style sets."""

    def __init__(self, count: int = 96) -> None:
        self.transform = TwoViews()
        self.digits = make_digits(count)

    def __iter__(self) -> Any:
        for index in range(len(self.digits)):
            image, label = self.digits[index]
            yield self.transform(image), label


def stream() -> DataLoader:
    return DataLoader(Stream(), batch_size=16)


@pytest.mark.slow
@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("schedule", [Switch(0.5), Mix(), TransportOnly()])
def test_iterable_data_get_targets_on_the_fly(schedule: Any, namespace: str, recwarn: Any) -> None:
    module, log = seeded(simclr, namespace), Log()
    fit(module, ReLACallback(prior=prior(), schedule=schedule), log, data=stream(), namespace=namespace, max_epochs=3)
    assert not any("teach nothing" in str(warning.message) for warning in recwarn), "the plan is in epochs"
    warm = [("rela/loss" in entry) for entry in log.seen]
    assert warm[0] is False and any(warm), "the first batches teach the projection"
    assert log.seen[-1]["rela/phase"] == (2.0 if isinstance(schedule, Switch) else schedule.weights(1).ssl)


class Counted(Stream):
    """A stream that says how long it is; torch gives it a `__getitem__` that does not work."""

    def __len__(self) -> int:
        return len(self.digits)


@pytest.mark.slow
def test_a_stream_with_a_length_has_no_rows_all_the_same() -> None:
    losses = []
    for kind in (Stream, Counted):
        log = Log()
        callback = ReLACallback(prior=prior(), schedule=TransportOnly())
        fit(seeded(simclr), callback, log, data=DataLoader(kind(), batch_size=16), max_steps=12, max_epochs=-1)
        losses.append([entry.get("rela/loss") for entry in log.seen])
    assert losses[0] == losses[1] and losses[0][-1] is not None


def test_a_store_refuses_iterable_data_and_says_what_to_do(targets64: Any) -> None:
    with pytest.raises(DataError, match=r"(?s)iterable data set Stream.*prior="):
        fit(seeded(byol), ReLACallback(targets64), data=stream())


def test_collecting_moves_nothing_in_the_transport_phase() -> None:
    module = seeded(byol, weight_decay=0.1, momentum=0.9)
    before = weights(module)
    fit(module, ReLACallback(prior=prior(), schedule=TransportOnly()), data=stream(), max_steps=2)
    after = weights(module)
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert all(torch.equal(before[name], after[name]) for name in trained)


def test_targets_are_the_projected_features_of_the_denormalised_view() -> None:
    source, own = PriorTargets(prior()), prior()
    source.check(Stream())
    views = [torch.randn(32, 3, 16, 16) * 0.2 for _ in range(4)]

    class OneRank:
        world_size = 1

    raw = [((view * 0.4 + 0.3).clamp(0, 1) - 0.5) / 0.5 for view in views]
    assert own.feature_dim * 4 <= 96
    given = [source(BatchRows(torch.arange(32), False), view, OneRank()) for view in views]
    needed = -(-own.feature_dim * 4 // 32)
    assert [target is None for target in given] == [i < needed for i in range(4)]
    rows = torch.cat([own(image) for image in raw]).double()
    fitted, others = rows[: 3 * own.feature_dim], rows[3 * own.feature_dim : 4 * own.feature_dim]
    axes = pca(moments(fitted)).components
    deviation = torch.maximum((others @ axes).std(dim=0), (fitted @ axes).std(dim=0))
    order = deviation.argsort(descending=True)
    made = (rows[-32:] - fitted.mean(dim=0)) @ axes / deviation ** (4 / 7)  # 4 rows for each dimension against 3
    expected = (made / deviation.pow(2 - 8 / 7).mean().sqrt())[:, order]
    torch.testing.assert_close(given[-1][:, 0].double(), expected, rtol=1e-3, atol=1e-3)
    shares = (deviation.square() / deviation.square().sum()).numpy()
    assert source.directions == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-3)


@pytest.mark.slow
def test_resume_keeps_the_projection(tmp_path: Any) -> None:
    class SaveAt(L.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    callback = ReLACallback(prior=prior(), schedule=Told())
    fit(seeded(byol), callback, SaveAt(), data=stream(), max_epochs=3)
    state = torch.load(tmp_path / "mid.ckpt", weights_only=True)
    saved = state["callbacks"]["ReLACallback"]["source"]["projection"]
    resumed = ReLACallback(prior=prior(), schedule=Told())
    L.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[resumed], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(byol(), stream(), ckpt_path=tmp_path / "mid.ckpt")  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(saved, resumed.state_dict()["source"]["projection"], strict=True))
    unknown, learnt = callback.schedule.told
    assert unknown is None and learnt > 1.0, "a default that goes by the prior hears of it once there are targets"
    assert resumed.schedule.told == [None, learnt]


@pytest.mark.slow
def test_manual_optimization_and_map_style_data() -> None:
    log = Log()
    options = {"prior": prior(), "schedule": Switch(0.7)}
    fit(seeded(simclr, manual=True), ReLACallback(**options), log, data=loader(), max_epochs=3)
    assert any("rela/loss" in entry for entry in log.seen) and log.seen[-1]["rela/phase"] == 2.0
    assert not same({}, weights(simclr())) and transport_loss(torch.eye(2), torch.eye(2)) == 0
