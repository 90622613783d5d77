"""Going on from a checkpoint: with other classes, with pairs of equal shapes, with another batch size."""

from __future__ import annotations

import copy
import functools
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightly.models.utils import update_momentum
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from rela_lightning import ReLACallback
from rela_lightning.errors import ConfigError
from rela_lightning.schedules import Mix, Plateau, Schedule, Switch, TransportOnly
from tests.modules import byol, same, weights
from tests.on_the_fly import prior
from tests.parts import make_digits
from tests.test_callback import Log, fit, loader, seeded, trainer
from tests.test_plateau import Fixed


@pytest.mark.parametrize("change", ["schedule", "optimizer"])
def test_resuming_with_other_classes_is_refused_by_name(change: str, targets64: Any, tmp_path: Any) -> None:
    run = fit(seeded(byol), ReLACallback(targets64, schedule=TransportOnly()), max_epochs=1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    options: dict[str, Any] = {"schedule": TransportOnly()}
    if change == "schedule":
        options = {"schedule": Plateau()}
    else:
        options["transport_optimizer"] = functools.partial(torch.optim.SGD, lr=0.1)
    with pytest.raises(ConfigError, match="(?s)TransportOnly.*Plateau|AdamW.*SGD"):  # noqa: RUF043
        trainer("lightning.pytorch", ReLACallback(targets64, **options), max_epochs=3).fit(
            byol(), loader(), ckpt_path=tmp_path / "a.ckpt"
        )


@pytest.mark.slow
def test_pairs_are_kept_for_a_resumed_run(targets64: Any, tmp_path: Any) -> None:
    class Alike(type(byol())):
        """Two heads of one shape: only equal initial values tell whose teacher it is."""

        def __init__(self) -> None:
            super().__init__()
            self.xx, self.yy = nn.Linear(16, 4), nn.Linear(16, 4)
            self.zz = copy.deepcopy(self.yy).requires_grad_(False)

    class Shake(L.Callback):
        def on_train_end(self, trainer: Any, module: Any) -> None:
            nn.init.ones_(module.yy.weight)

    run = fit(seeded(Alike), ReLACallback(targets64, schedule=TransportOnly()), Shake(), max_epochs=1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer("lightning.pytorch", ReLACallback(targets64, schedule=TransportOnly()), max_epochs=2)
    again.fit(Alike(), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert again.current_epoch == 2


def test_a_teacher_that_its_module_moves_is_left_to_it_after_a_resume(targets64: Any, tmp_path: Any) -> None:
    class MovesAfterwards(type(byol())):
        def on_train_batch_end(self, *args: Any) -> None:
            update_momentum(self.backbone, self.backbone_momentum, m=0.9)

    def teacher(*callbacks: Any, start: Any = None) -> Any:
        module = seeded(MovesAfterwards)
        rela = ReLACallback(targets64, schedule=TransportOnly(), transform=None)
        still = DataLoader(make_digits(64, Fixed()), batch_size=16)
        run = trainer("lightning.pytorch", rela, *callbacks, enable_checkpointing=bool(callbacks))
        run.fit(module, still, ckpt_path=start)
        return weights(module.backbone_momentum)

    whole = teacher(ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))
    assert same(whole, teacher(start=tmp_path / "epoch=0.ckpt"))


@pytest.mark.slow
def test_progress_survives_another_batch_size(targets64: Any, tmp_path: Any) -> None:
    class Save(L.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    module, log = seeded(byol), Log()
    fit(module, ReLACallback(targets64, schedule=Switch(0.6)), Save(), max_epochs=5, data=loader(batch_size=8))
    run = trainer("lightning.pytorch", ReLACallback(targets64, schedule=Switch(0.6)), log, max_epochs=5)
    run.fit(byol(), loader(batch_size=32), ckpt_path=tmp_path / "a.ckpt")
    assert [entry["rela/phase"] for entry in log.seen] == [0.0] * 2 + [2.0] * 4


def phases(log: Log) -> list[float]:
    return [entry["rela/phase"] for entry in log.seen]


def test_a_plateau_that_a_finished_run_did_not_see_is_found_by_a_longer_one(targets64: Any, tmp_path: Any) -> None:
    """The loss lies still, so that two windows suffice: half of the longer plan."""

    def still() -> ReLACallback:
        schedule = Plateau(window=0.25)
        return ReLACallback(targets64, schedule=schedule, transport_optimizer=None, num_views=2, transform=None)

    data, short, long = loader(batch_size=4, shuffle=False), Log(), Log()  # 16 steps an epoch
    run = fit(seeded(byol, lr=0.0), still(), short, max_epochs=5, data=data)
    assert set(phases(short)) == {0.0}, "windows of 50 losses do not fit in"
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer("lightning.pytorch", still(), long, max_epochs=25)
    again.fit(byol(lr=0.0), data, ckpt_path=tmp_path / "a.ckpt")
    assert phases(long)[0] == 0.0 and phases(long)[-1] == 2.0


def test_what_is_loaded_to_evaluate_a_checkpoint_is_not_for_the_next_fit(targets64: Any, tmp_path: Any) -> None:
    class Validated(type(byol())):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            return None

    rela = ReLACallback(targets64, schedule=Switch(0.5))
    fit(seeded(Validated), rela).save_checkpoint(tmp_path / "a.ckpt")
    log = Log()
    run = trainer("lightning.pytorch", rela, log)
    run.validate(Validated(), loader(), ckpt_path=tmp_path / "a.ckpt")
    run.fit(seeded(Validated), loader())
    assert phases(log) == [0.0] * 4 + [2.0] * 4


@pytest.mark.parametrize("on_the_fly", [False, True])
@pytest.mark.parametrize("between", ["a fit of another trainer", "a plain checkpoint"])
def test_each_trainer_goes_on_where_its_own_fit_ended(
    between: str, on_the_fly: bool, targets64: Any, tmp_path: Any
) -> None:
    """As if the callback had never been elsewhere; what is resumed without state of ReLA begins afresh."""
    resumed = {"ckpt_path": tmp_path / "plain.ckpt"} if between == "a plain checkpoint" else {}
    fit(seeded(byol), max_epochs=1).save_checkpoint(tmp_path / "plain.ckpt")

    def ends(*, moved: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        targets: Any = {"prior": prior()} if on_the_fly else {"targets": targets64}
        rela, module = ReLACallback(**targets, schedule=Mix()), seeded(byol)
        run = trainer("lightning.pytorch", rela, max_epochs=2)
        if moved or not resumed:
            torch.manual_seed(0)
            run.fit(module, loader())
        if moved and not resumed:
            fit(seeded(byol), rela, max_epochs=3)
        run.fit_loop.max_epochs = 4
        module = seeded(byol) if resumed else module
        torch.manual_seed(0)
        run.fit(module, loader(), **resumed)
        return weights(module), rela.state_dict()["transport"]["map"]["linear.weight"]

    (own, own_map), (other, other_map) = ends(moved=False), ends(moved=True)
    assert same(own, other) and torch.equal(own_map, other_map)


def test_a_plain_checkpoint_is_tested_without_a_word(targets64: Any, tmp_path: Any, recwarn: Any) -> None:
    class Tested(type(byol())):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            return None

    fit(seeded(byol), max_epochs=1).save_checkpoint(tmp_path / "plain.ckpt")
    run = trainer("lightning.pytorch", ReLACallback(targets64))
    run.test(Tested(), loader(), ckpt_path=tmp_path / "plain.ckpt", verbose=False)
    assert not [warning for warning in recwarn if "ReLACallback" in str(warning.message)]


class Fires(Schedule):
    """Over after some losses."""

    adaptive = True

    def __init__(self) -> None:
        self.count = 0

    def weights(self, progress: float) -> Any:
        return Switch(0.5).weights(float(self.count >= 4))

    def is_over(self, progress: float) -> bool:
        return self.count >= 4

    def update(self, loss: torch.Tensor, progress: float, epochs: float) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"count": torch.tensor(self.count)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.count = int(state["count"])


def test_one_schedule_for_two_runs_begins_afresh_in_each(targets64: Any) -> None:
    schedule, logs = Fires(), [Log(), Log()]
    for log in logs:
        fit(seeded(byol), ReLACallback(targets64, schedule=schedule), log)
    assert phases(logs[0]) == phases(logs[1]) == [0.0] * 4 + [2.0] * 4 and schedule.count == 4


def test_a_validation_step_may_call_the_training_step(targets64: Any) -> None:
    class Shared(type(byol())):
        def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = self.training_step(batch, batch_idx)
            seen.append(float(loss))
            return loss

    seen: list[float] = []
    module = seeded(Shared)
    run = trainer("lightning.pytorch", ReLACallback(targets64, schedule=Switch(0.5)), num_sanity_val_steps=1)
    run.fit(module, loader(), loader(shuffle=False))
    assert len(seen) == 9 and module.steps_run == 9 + 4, "one to try, four an epoch; four of its own after the switch"
