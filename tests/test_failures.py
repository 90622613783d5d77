"""The failures a user can run into with the callback, each read by its message."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import ConcatDataset, DataLoader, Subset, WeightedRandomSampler

from rela_lightning import ReLACallback, build_targets, load_prior
from rela_lightning.errors import ConfigError, DataError, InjectionError, TargetError
from rela_lightning.injection.checks import check_strategy
from rela_lightning.schedules import Mix, Switch
from tests.modules import byol, simclr
from tests.parts import TwoViews, make_digits
from tests.test_callback import Log, fit, loader, seeded


@pytest.mark.slow
def test_a_batch_that_bypassed_lightning(targets64: Any) -> None:
    class Bypass(L.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            module.on_before_batch_transfer = lambda batch, dataloader_idx: batch.batch

    with pytest.raises(InjectionError, match="no data set index"):
        fit(seeded(byol), ReLACallback(targets64), Bypass())


def test_several_loaders(targets64: Any) -> None:
    both = CombinedLoader({"a": loader(), "b": loader()}, "min_size")
    with pytest.raises(DataError, match="several training loaders"):
        fit(seeded(byol), ReLACallback(targets64), data=both)
    assert all(type(part.dataset).__name__ == "Head" for part in both.flattened), "the user's loaders come back"


def test_one_loader_in_a_combined_loader_comes_back_untagged(targets64: Any) -> None:
    data = loader()
    combined = CombinedLoader(data, "max_size_cycle")
    fit(seeded(byol), ReLACallback(targets64), data=combined)
    assert combined.flattened == [data]


def test_a_step_that_fetches_its_own_batches(targets64: Any) -> None:
    class Own(type(byol())):
        def training_step(self, dataloader_iter: Any) -> None: ...

    with pytest.raises(InjectionError, match="training_step"):
        fit(Own(), ReLACallback(targets64))


@pytest.mark.parametrize("schedule", [Switch(0.5), Mix()])
def test_a_backbone_never_called(schedule: Any, targets64: Any) -> None:
    class Bypass(type(simclr(name="zebra"))):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            features = self.zebra.body.forward(torch.cat(list(batch[0]))).mean(dim=(2, 3))
            return self.criterion(*self.head(features).chunk(2))

    with pytest.raises(InjectionError, match=r"(?s)never called.*zebra"):
        fit(seeded(Bypass), ReLACallback(targets64, schedule=schedule, backbone="zebra", step="swap_loss"))


def test_concatenated_views_changed_inside_the_step(targets64: Any) -> None:
    class Noisy(type(simclr())):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            views = torch.cat(list(batch[0]))
            return self.criterion(*self.head(self.backbone(views + 0.1 * torch.randn_like(views))).chunk(2))

    with pytest.raises(InjectionError, match="row_layout"):
        fit(seeded(Noisy), ReLACallback(targets64, schedule=Mix()))
    fit(seeded(Noisy), ReLACallback(targets64, schedule=Mix(), row_layout="cat"))


def test_targets_of_another_length(targets64: Any) -> None:
    with pytest.raises(TargetError, match=r"(?s)64.*48|48.*64"):
        fit(seeded(byol), ReLACallback(targets64), data=loader(count=48))


def test_targets_of_other_content_or_order(targets64: Any) -> None:
    other = Subset(make_digits(128, TwoViews()), list(range(64, 128)))
    head = make_digits(64, TwoViews())
    head.dataset = other
    with pytest.raises(TargetError, match="row"):
        fit(seeded(byol), ReLACallback(targets64), data=DataLoader(head, batch_size=16))


def test_training_on_other_views_of_the_same_images_warns_once(targets64: Any) -> None:
    class Wrapped(torch.utils.data.Dataset):
        """Another class: its content cannot be compared."""

        def __init__(self) -> None:
            self.inner, self.view = make_digits(64), TwoViews()

        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> Any:
            image, label = self.inner[index]
            return self.view(image), label

    with pytest.warns(UserWarning, match="length"):
        fit(seeded(byol), ReLACallback(targets64), data=DataLoader(Wrapped(), batch_size=16))


def test_a_prior_that_did_not_make_the_targets(targets64: Any) -> None:
    settings = {"width": 0.125, "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    right, wrong = (load_prior("random:lightly:resnet-9", seed=seed, **settings) for seed in (1, 2))
    fit(seeded(byol), ReLACallback(targets64, prior=right), max_epochs=1)
    with pytest.raises(TargetError, match="prior"):
        fit(seeded(byol), ReLACallback(targets64, prior=wrong), max_epochs=1)


def test_resuming_with_other_targets(targets64: Any, tmp_path: Any) -> None:
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=0.5, std=0.5, seed=9)
    build_targets(prior, make_digits(64), tmp_path / "other")
    run = fit(seeded(byol), ReLACallback(targets64), max_epochs=1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = L.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[ReLACallback(tmp_path / "other")], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(TargetError, match="other targets"):
        again.fit(byol(), loader(), ckpt_path=tmp_path / "a.ckpt")


def test_data_ratio_with_a_custom_sampler(targets64: Any) -> None:
    data = DataLoader(make_digits(64, TwoViews()), batch_size=8, sampler=WeightedRandomSampler(torch.ones(64), 64))
    with pytest.raises(ConfigError, match="WeightedRandomSampler"):
        fit(seeded(byol), ReLACallback(targets64, data_ratio=0.5), data=data)


def test_untried_strategies_are_refused_by_name() -> None:
    check_strategy(SingleDeviceStrategy("cpu"), allow_untested=False)
    check_strategy(DDPStrategy(), allow_untested=False)
    with pytest.raises(InjectionError, match=r"(?s)FSDPStrategy.*sharded.*allow_untested_strategy"):
        check_strategy(FSDPStrategy(), allow_untested=False)
    check_strategy(FSDPStrategy(), allow_untested=True)
    for name in ("DeepSpeedStrategy", "XLAStrategy", "ModelParallelStrategy", "HomeMadeStrategy"):
        bases = (DDPStrategy,) if name == "DeepSpeedStrategy" else ()
        with pytest.raises(InjectionError, match=name):
            check_strategy(type(name, bases, {})(), allow_untested=False)


def test_concatenated_data_sets_are_one(targets64: Any) -> None:
    """Joined data sets are followed into their parts, for labelling, for verification and for views."""
    whole = ConcatDataset([make_digits(32, TwoViews()), Subset(make_digits(64, TwoViews()), range(32, 64))])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        log = Log()
        fit(seeded(byol), ReLACallback(targets64, schedule=Switch(0.5)), log, data=DataLoader(whole, batch_size=16))
    assert [entry["rela/phase"] for entry in log.seen] == [0.0] * 4 + [2.0] * 4
    assert not [str(line.message) for line in said if "length" in str(line.message)], "its rows were compared"
    turned = ConcatDataset(whole.datasets[::-1])
    with pytest.raises(TargetError, match="row"):
        fit(seeded(byol), ReLACallback(targets64), data=DataLoader(turned, batch_size=16))


class Keeps(type(byol())):  # type: ignore[misc]
    """As Lightning's own guides have it: an epoch's losses in a list, and a number beside the loss."""

    def on_fit_start(self) -> None:
        self.losses: list[torch.Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.detach())
        return {"loss": loss, "size": 16}


class AtEpochEnd(Keeps):
    def on_train_epoch_end(self) -> None:
        torch.stack(self.losses).mean()


class AtBatchEnd(Keeps):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        outputs["size"]


class Reader(L.Callback):
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        outputs["size"]


@pytest.mark.parametrize(
    ("kind", "callbacks", "hook"),
    [
        (AtEpochEnd, (), "AtEpochEnd.on_train_epoch_end"),
        (AtBatchEnd, (), "AtBatchEnd.on_train_batch_end"),
        (Keeps, (Reader(),), "Reader.on_train_batch_end"),
    ],
)
def test_a_hook_that_misses_what_a_step_leaves(kind: Any, callbacks: Any, hook: str, targets64: Any) -> None:
    with (
        pytest.warns(UserWarning, match=rf'{hook} failed .*leaves training_step out.*step="swap_loss"'),
        pytest.raises((RuntimeError, KeyError)),
    ):
        fit(seeded(kind), ReLACallback(targets64, schedule=Switch(0.5)), *callbacks)
    fit(seeded(kind), ReLACallback(targets64, schedule=Switch(0.5), step="swap_loss"), *callbacks)


@pytest.mark.parametrize(("hook", "step"), [("on_train_batch_start", "auto"), ("on_train_batch_end", "swap_loss")])
def test_other_failures_are_not_laid_to_a_step_left_out(hook: str, step: Any, targets64: Any) -> None:
    def fails(self: Any, trainer: Any, *args: Any) -> None:
        if trainer.global_step > 1:
            raise ValueError("the user's own")

    with warnings.catch_warnings(record=True) as said, pytest.raises(ValueError, match="own"):
        warnings.simplefilter("always")
        fit(seeded(byol), ReLACallback(targets64, step=step), type("Own", (L.Callback,), {hook: fails})())
    assert not [entry for entry in said if "leaves training_step out" in str(entry.message)]


def test_nothing_to_build_from() -> None:
    with pytest.raises(ConfigError, match="on the fly"):
        ReLACallback()


def test_loaders_in_a_list_and_dropped_samples_have_their_own_messages(targets64: Any) -> None:
    with pytest.raises(DataError, match="not in a list"):
        fit(seeded(byol), ReLACallback(targets64), data=[loader()])

    def dropping(samples: list) -> Any:
        return torch.utils.data.default_collate(samples[:-2])

    with pytest.raises(DataError, match="keep every sample"):
        fit(seeded(byol), ReLACallback(targets64), data=loader(collate_fn=dropping))
