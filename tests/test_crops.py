"""Several views of each image: what is shown in the transport phase is exactly what the target was made from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset
from torchvision.transforms.v2 import functional as F

from rela_lightning import ReLACallback, TargetStore, build_targets, load_prior
from rela_lightning.data.crops import overlap
from rela_lightning.data.transforms import TransportViews
from rela_lightning.errors import ConfigError, DataError, TargetError
from rela_lightning.injection import transport_head
from rela_lightning.schedules import Blend, Mix, Schedule, Switch, TransportOnly
from rela_lightning.targets.lookup import TargetLookup
from tests.modules import byol, same, simclr, weights
from tests.parts import TwoViews, make_digits
from tests.test_callback import fit, loader, seeded, trainer

pytestmark = pytest.mark.usefixtures("all_images")

ROWS, CROPS = 64, 4


def prior() -> Any:
    return load_prior(
        "random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, seed=1
    )  # fmt: skip


def remade(image: Any, crop: Any, size: int) -> Tensor:
    """A crop of a PIL image as a student's view without colour jitter, written straight down."""
    top, left, height, width, mirrored = (int(value) for value in crop)
    part = F.pil_to_tensor(image)[:, top : top + height, left : left + width]
    part = F.resize(part, [size, size], antialias=True)
    return F.to_dtype(part.flip(-1) if mirrored else part, torch.float32, scale=True)


def test_the_store_holds_every_view_of_every_image(store: TargetStore, digits64: Any) -> None:
    own, kept = prior(), store.read(np.arange(ROWS))
    assert store.views == CROPS and kept.targets.shape == (ROWS, 1 + CROPS, store.dim)
    mean, components, scales = store.projection
    for row in (0, 17, 63):
        image = digits64[row][0]
        assert kept.crops[row, 0].tolist() == [0, 0, 32, 32, 0] and kept.sizes[row].tolist() == [32, 32]
        for view, (top, left, height, width, mirrored) in enumerate(kept.crops[row].tolist()):
            part = image.crop((left, top, left + width, top + height))
            part = part.transpose(0) if mirrored else part  # PIL's FLIP_LEFT_RIGHT
            expected = (own(own.preprocess(part)[None]).double() - mean) @ components * scales
            found = torch.from_numpy(kept.targets[row, view]).double()
            assert torch.cosine_similarity(expected[0], found, dim=0) > 0.999
    np.testing.assert_array_equal(store[torch.arange(ROWS)].numpy(), kept.targets[:, 0])


def test_crops_are_half_of_the_image_or_more_and_differ(store: TargetStore) -> None:
    crops = store.read(np.arange(ROWS)).crops[:, 1:].reshape(-1, 5)
    area = crops[:, 2] * crops[:, 3] / 32**2
    assert area.min() > 0.45 and area.max() <= 1.0 and area.std() > 0.1
    assert (crops[:, 0] + crops[:, 2]).max() <= 32 and (crops[:, 1] + crops[:, 3]).max() <= 32
    assert 0.4 < crops[:, 4].mean() < 0.6, "about half of them are mirrored"
    assert len(np.unique(crops, axis=0)) > 0.9 * len(crops)


def test_columns_are_standardised_over_all_views(store: TargetStore) -> None:
    rows = store.read(np.arange(ROWS)).targets.reshape(-1, store.dim)
    np.testing.assert_allclose(rows.mean(0), 0.0, atol=1e-3)
    assert store.manifest["views"] == CROPS and store.manifest["settings"]["views"] == CROPS


@pytest.mark.slow
@pytest.mark.parametrize("batch_size, workers", [(1, 0), (7, 0), (256, 2)])
def test_batches_and_workers_change_nothing(
    store: TargetStore, digits64: Any, tmp_path: Path, batch_size: int, workers: int
) -> None:
    again = build_targets(
        prior(), digits64, tmp_path / "t", views=CROPS, storage_dtype="float32", batch_size=batch_size,
        num_workers=workers,
    )  # fmt: skip
    rows = np.arange(ROWS)
    np.testing.assert_array_equal(again.read(rows).crops, store.read(rows).crops)
    np.testing.assert_allclose(again.read(rows).targets, store.read(rows).targets, atol=2e-2)
    assert again.fingerprint == store.fingerprint


def test_drawing_crops_seeds_no_gpu(digits64: Any, tmp_path: Path) -> None:
    """It would change the random state there; and where none is in use, torch formats the stack at each call."""
    remembered = []
    with mock.patch("torch.cuda._lazy_call", remembered.append), mock.patch("torch.mps.manual_seed", remembered.append):
        build_targets(prior(), digits64, tmp_path / "t", views=1)
    assert not remembered


def test_an_interrupted_pass_draws_the_same_crops(store: TargetStore, digits64: Any, tmp_path: Path) -> None:
    class Interrupted(torch.utils.data.Dataset):
        fail_at = 120

        def __init__(self) -> None:
            self.reads: list[int] = []  # by all copies

        def __len__(self) -> int:
            return ROWS

        def __getitem__(self, row: int) -> Any:
            self.reads.append(row)
            if len(self.reads) == self.fail_at:
                raise RuntimeError("interrupted")
            return digits64[row]

    data = Interrupted()
    with pytest.raises(RuntimeError, match="interrupted"):
        build_targets(prior(), data, tmp_path / "t", views=CROPS, batch_size=10)
    again = build_targets(prior(), data, tmp_path / "t", views=CROPS, batch_size=10)
    np.testing.assert_array_equal(again.read(np.arange(ROWS)).crops, store.read(np.arange(ROWS)).crops)


class Shown:
    """Which stored view each row of the backbone's input was, beside the target it met."""

    def __init__(self, store: TargetStore, data: Any, size: int = 16) -> None:
        kept = store.read(np.arange(ROWS))
        self.targets = torch.from_numpy(kept.targets)
        self.views = torch.stack([
            torch.stack([remade(data[row][0], crop, size) for crop in kept.crops[row]]) for row in range(ROWS)
        ])  # fmt: skip
        self.input: Tensor | None = None
        self.met: list[tuple[int, int]] = []  # (row, view)
        self.batches: list[list[tuple[int, int]]] = []

    @contextmanager
    def watching(self, backbone: nn.Module) -> Iterator[None]:
        def see(module: nn.Module, args: Any) -> None:
            if torch.is_grad_enabled():
                self.input = args[0].detach() * 0.4 + 0.3  # undoes TwoViews' normalisation

        real = transport_head.pair

        def pair(targets: Tensor, features: Any) -> Tensor:
            picked = real(targets, features)
            self._check(picked)
            return picked

        plain = lambda self, image, crops=None: _without_colour(self, image, crops)  # noqa: E731
        handle = backbone.register_forward_pre_hook(see)
        try:
            with (
                mock.patch.object(transport_head, "pair", pair),
                mock.patch.object(TransportViews, "__call__", plain),
            ):
                yield
        finally:
            handle.remove()

    def _check(self, picked: Tensor) -> None:
        assert self.input is not None
        distance = (self.input[:, None, None] - self.views[None]).abs().flatten(3).amax(dim=3)  # [R, ROWS, V]
        batch = []
        for row, target in enumerate(picked):
            image, view = divmod(int(distance[row].argmin()), self.views.shape[1])
            assert distance[row, image, view] < 0.01, "a view that is no stored crop"
            alike = (self.targets[..., : len(target)] - target[None, None, :]).abs().amax(dim=2) < 1e-6
            assert bool(alike[image, view]), "the target of another view"
            batch.append((image, view))
        self.batches.append(batch)
        self.met += batch


def _without_colour(views: TransportViews, image: Any, crops: Any) -> Any:
    colour, views.colour = (
        views.colour,
        lambda part: F.normalize(F.to_dtype(torch.as_tensor(part), torch.float32, scale=True), [0.3] * 3, [0.4] * 3),
    )
    try:
        return REAL_CALL(views, image, crops)
    finally:
        views.colour = colour


REAL_CALL = TransportViews.__call__


@pytest.mark.slow
@pytest.mark.parametrize(
    "workers, options, extra",
    [
        (0, {}, {}),
        (2, {}, {}),
        (2, {"persistent_workers": True, "prefetch_factor": 4}, {}),
        (0, {}, {"accumulate_grad_batches": 3}),
        (2, {"in_order": False}, {}),
    ],
)
@pytest.mark.parametrize("num_views", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_crop_meets_its_own_target(
    store: TargetStore, digits64: Any, workers: int, options: Any, extra: Any, num_views: int
) -> None:
    module = seeded(byol)
    shown = Shown(store, digits64)
    with shown.watching(module.backbone):
        fit(
            module, ReLACallback(store.path, schedule=TransportOnly(), num_views=num_views, crops="stored"),
            data=loader(workers, **options), max_epochs=4, **extra,
        )  # fmt: skip
    assert len(shown.met) == 4 * ROWS * num_views
    assert {view for _, view in shown.met} == {1, 2, 3, 4}, "the whole image is not shown, every crop is"
    seen = sorted(shown.met)
    assert seen == sorted([(row, view) for row in range(ROWS) for view in range(1, 5)] * num_views)
    for batch in shown.batches if num_views == 2 else ():
        first, second = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        assert [row for row, _ in first] == [row for row, _ in second]
        assert all(a[1] != b[1] for a, b in zip(first, second, strict=True)), "two views a step show two crops"


@pytest.mark.parametrize(("draws", "batches"), [(10**6, False), (4 * ROWS, False), (4 * ROWS, True)])
def test_epochs_without_end_show_every_crop(store: TargetStore, digits64: Any, draws: int, batches: bool) -> None:
    """A sampler that draws each image many times in one epoch: crops are drawn at random instead of by epoch."""
    module, shown = seeded(byol), Shown(store, digits64)
    data = make_digits(ROWS, TwoViews())
    sampler = RandomSampler(data, replacement=True, num_samples=draws)
    by = {"batch_sampler": BatchSampler(sampler, 16, drop_last=False)} if batches else {"batch_size": 16}
    endless = DataLoader(data, **by, sampler=None if batches else sampler)
    with shown.watching(module.backbone):
        fit(
            module,
            ReLACallback(store.path, schedule=TransportOnly(), crops="stored"),
            data=endless,
            max_steps=8,
            max_epochs=-1,
        )
    assert {view for _, view in shown.met} == {1, 2, 3, 4}


def test_rows_of_a_subset_are_those_that_were_labelled(tmp_path: Path, digits64: Any) -> None:
    rows = list(range(63, 31, -1))
    kept = build_targets(prior(), Subset(digits64, rows), tmp_path / "t", views=2, storage_dtype="float32")
    data = Subset(make_digits(ROWS, TwoViews()), rows)
    module = seeded(byol)
    seen: list[Any] = []
    real = transport_head.pair
    with mock.patch.object(transport_head, "pair", lambda t, f: seen.append(real(t, f)) or seen[-1]):
        fit(
            module,
            ReLACallback(kept.path, schedule=TransportOnly(), crops="stored"),
            data=DataLoader(data, 16),
            max_epochs=1,
        )
    expected = kept.read(np.arange(32), np.ones((32, 1), np.int64)).targets[:, 0]
    np.testing.assert_array_equal(torch.cat(seen).numpy(), expected[:, :16])


@pytest.mark.parametrize("crops", ["auto", "stored", "free"])
@pytest.mark.parametrize("schedule", [Mix(), Blend("linear", 1.0)])
def test_the_users_own_views_meet_the_mean_of_the_views(store: TargetStore, schedule: Schedule, crops: Any) -> None:
    met: list[Tensor] = []
    real = transport_head.pair

    def pair(targets: Tensor, features: Any) -> Tensor:
        met.append(real(targets, features))
        return met[-1]

    module = seeded(simclr)
    with mock.patch.object(transport_head, "pair", pair):
        callback = ReLACallback(store.path, schedule=schedule, transform=None, crops=crops)
        fit(module, callback, data=loader(shuffle=False))
    first = met[-1][:16]
    targets = store.read(torch.arange(48, 64)).targets
    expected = targets[:, 0] if crops == "free" else targets.mean(axis=1)
    np.testing.assert_allclose(first.numpy(), expected[:, :16], rtol=1e-6)


def test_views_go_back_to_the_users_at_the_switch(store: TargetStore) -> None:
    module = seeded(byol)
    fit(module, ReLACallback(store.path, schedule=Switch(0.5)), data=loader(2, persistent_workers=True), max_epochs=2)
    assert module.steps_run == 4


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_with_the_same_crops(store: TargetStore, tmp_path: Path, workers: int) -> None:
    def still(self: Any, image: Any, crops: Any = None) -> Any:
        return _without_colour(self, image, crops)

    def data() -> Any:
        return loader(workers, shuffle=False)

    class Save(L.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    with mock.patch.object(TransportViews, "__call__", still):
        whole, resumed = seeded(byol), byol()
        fit(
            whole, ReLACallback(store.path, schedule=TransportOnly(), crops="stored"), Save(), data=data(), max_epochs=4
        )
        run = trainer(
            "lightning.pytorch", ReLACallback(store.path, schedule=TransportOnly(), crops="stored"), max_epochs=4
        )
        run.fit(resumed, data(), ckpt_path=tmp_path / "mid.ckpt")
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize("crops", ["nearest", "blended"])
def test_fresh_crops_take_targets_of_the_views_that_overlap(store: TargetStore, crops: str) -> None:
    torch.manual_seed(0)
    lookup, rows = TargetLookup(store, crops=crops, num_views=2), np.arange(ROWS)  # type: ignore[arg-type]
    plan, kept = lookup.plan(rows, 0), store.read(rows)
    assert plan.crops.shape == (ROWS, 2, 5) and plan.targets.shape == (ROWS, 2, store.dim)
    assert len(np.unique(plan.crops.reshape(-1, 5), axis=0)) > 100, "the crops are fresh ones"
    for row in range(ROWS):
        for crop, target in zip(plan.crops[row], plan.targets[row], strict=True):
            shared = np.array([_iou(crop, known) for known in kept.crops[row]])
            known = kept.targets[row]
            if crops == "nearest":
                alike = kept.crops[row, :, 4] == crop[4]
                np.testing.assert_allclose(target, known[(shared + 0.05 * alike).argmax()], rtol=1e-6)
            else:
                weight = np.exp(shared / 0.1) / np.exp(shared / 0.1).sum()
                np.testing.assert_allclose(target, weight @ known, rtol=1e-4, atol=1e-4)


def _iou(a: Any, b: Any) -> float:
    """By counting pixels."""
    masks = np.zeros((2, 32, 32), dtype=bool)
    for mask, (top, left, height, width, _) in zip(masks, (a, b), strict=True):
        mask[top : top + height, left : left + width] = True
    return float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def test_overlap_counts_pixels(store: TargetStore) -> None:
    crops = store.read(np.arange(8)).crops.reshape(-1, 5)
    expected = [[_iou(crop, other) for other in crops] for crop in crops[::7]]
    np.testing.assert_allclose(overlap(crops[::7], crops), expected, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("crops", ["free", "nearest", "blended"])
def test_fresh_crops_train(store: TargetStore, crops: Any) -> None:
    module = seeded(byol)
    before = weights(module.backbone)
    assert TargetLookup(store).crops == "blended"
    fit(module, ReLACallback(store.path, schedule=TransportOnly(), crops=crops), data=loader(2))
    assert not same(before, weights(module.backbone))


def test_views_that_the_store_has_not_are_refused(store: TargetStore, targets64: Any) -> None:
    with pytest.raises(ConfigError, match=r"too few crops[\s\S]*expected: 5 crops[\s\S]*found:    4 in"):
        fit(byol(), ReLACallback(store.path, num_views=5, crops="stored"))
    with pytest.raises(ConfigError, match=r"too few crops[\s\S]*views=8"):
        fit(byol(), ReLACallback(targets64, crops="stored"))
    with pytest.raises(ConfigError, match="crops"):
        ReLACallback(store.path, crops="best")  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="no such views"):
        store.read([0], [[5]])
    with pytest.raises(ConfigError, match="`views` counts crops"):
        build_targets(prior(), make_digits(8), "unused", views=-1)


@pytest.mark.parametrize("crops", ["stored", "blended"])
def test_images_of_another_size_than_labelled_are_refused(store: TargetStore, crops: Any) -> None:
    from rela_lightning.data import Digits
    from tests.parts import Head

    larger = Head(Digits("train", transform=TwoViews(), image_size=40), ROWS)
    with pytest.raises(DataError, match=r"row \d+ has another size[\s\S]*32 x 32[\s\S]*40 x 40"):
        fit(byol(), ReLACallback(store.path, verify_targets=0, crops=crops), data=DataLoader(larger, 16))


def test_verify_makes_the_crops_again(store: TargetStore, digits64: Any, tmp_path: Path) -> None:
    store.verify(digits64, prior())
    with pytest.raises(TargetError, match="sees other images"):
        shifted = Subset(digits64, [*range(1, ROWS), 0])
        store.verify(_Unnamed(shifted), prior())


class _Unnamed(torch.utils.data.Dataset):
    """Another class, that says nothing of the order of its rows."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, row: int) -> Any:
        return self._inner[row]
