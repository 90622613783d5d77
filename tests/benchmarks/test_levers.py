"""Levers act where BYOL's own loss takes over, and there alone."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rela_lightning import TargetStore
from rela_lightning.schedules import Weights

COSTS = {"ssl": 1.0, "transport1": 0.4, "mixed": 1.2}
SETTINGS = {"lr": 1e-3, "momentum": 0.9, "batch_size": 8}


class Watch(L.Callback):
    """What stands at the start and at the end of every step."""

    def __init__(self, rela: Any) -> None:
        self.rela = rela
        self.decided: list[bool] = []
        self.phases: list[float] = []
        self.rates: list[float] = []
        self.moments: list[int] = []
        self.momenta: list[float] = []
        self.apart: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.decided.append(not self.rela.phase.weights.transport_only)
        pairs = zip(module.backbone.parameters(), module.teacher_backbone.parameters(), strict=True)
        self.apart.append(max(float((a - b).detach().abs().max()) for a, b in pairs))

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.phases.append(float(trainer.callback_metrics["rela/phase"]))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.moments.append(int(trainer.optimizers[0].state[next(module.backbone.parameters())]["step"]))
        self.momenta.append(module.momentum)


@pytest.fixture(scope="module")
def data():
    from rela_lightning.data import Digits

    digits = Digits("train")
    images = torch.stack([torch.from_numpy(np.array(digits[row][0])).permute(2, 0, 1) for row in range(64)])
    return images, torch.tensor(digits.targets[:64])


@pytest.fixture
def train(script, data, targets64):
    """Trains a variant for six seconds and watches; its targets are those of the same 64 images."""

    def train(variant: str) -> Watch:
        images, networks, variants = script("images"), script("networks"), script("variants")
        callback = variants.callback_of(variant, targets64, "random")
        callback.verify_targets = 0
        clock = script("virtual_clock").VirtualClock(6.0, COSTS, None, callback)
        levers, watch = variants.levers_of(variant, callback, clock), Watch(callback)
        module = networks.build("byol", SETTINGS, 0)
        views = images.Images(*data, images.SSLViews(2))
        networks.fit(module, views, SETTINGS, 0, clock, callback, *levers, watch)
        assert 0.0 in watch.phases and watch.phases[-1] > 0.0
        return watch

    return train


def test_each_lever_changes_one_thing_from_the_hand_over_on(train):
    plain = train("s30")
    at = plain.decided.index(True)
    own = plain.phases.index(2.0)
    assert at <= own <= at + 1  # a batch may be on its way
    assert plain.moments == list(range(1, len(plain.phases) + 1)) and set(plain.momenta) == {0.9}
    assert plain.apart[at] > 0.0

    rate = train("s30+rate")
    assert rate.rates[:at] == plain.rates[:at]
    begun = np.cumsum([0.0] + [0.4 if phase == 0.0 else 1.0 for phase in rate.phases[:-1]])
    share = (begun[at:] - begun[at]) / (6.0 - begun[at])
    expected = np.where(share < 0.1, np.maximum(share / 0.1, 0.02), 0.5 * (1 + np.cos(np.pi * (share - 0.1) / 0.9)))
    np.testing.assert_allclose(rate.rates[at:], 1e-3 * expected, rtol=1e-6)

    rise, fall = train("s30+rewarmed"), train("s30+annealed")
    assert rise.rates[:at] == fall.rates[:at] == plain.rates[:at]
    np.testing.assert_allclose(rise.rates[at:], plain.rates[at:] * np.clip(share / 0.1, 0.02, 1.0), rtol=1e-6)
    np.testing.assert_allclose(fall.rates[at:], 1e-3 * 0.5 * (1 + np.cos(np.pi * share)), rtol=1e-6)

    fresh = train("s30+optimizer")
    assert fresh.moments[:at] == plain.moments[:at] and fresh.moments[at:] == plain.moments[: len(fresh.moments) - at]
    assert train("s30+slow").momenta == [0.9] * at + [0.99] * (len(plain.momenta) - at)
    teacher = train("s30+teacher")
    assert teacher.apart[:at] == pytest.approx(plain.apart[:at], rel=1e-4) and teacher.apart[at] == 0.0


def test_the_cached_target_takes_the_place_of_the_teacher(script, data, targets64):
    networks, levers = script("networks"), script("levers")
    module = networks.build("byol", SETTINGS, 0)
    images, rows = data[0][:8].float() / 255, torch.tensor([5, 0, 63, 7, 9, 12, 2, 30])
    rela = type("Rela", (), {"targets": targets64, "phase": type("Phase", (), {"weights": Weights(1.0, 0.0)})})
    lever = levers.LEVERS["target"](rela, type("Clock", (), {"budget_share": lambda self: 0.3})())
    lever.on_train_batch_start(None, module, ([images, images], rows), 0)
    module.log_loss, module.move_teacher = (lambda loss, size: loss), (lambda: None)
    p = module.predictor(module.projector(module(images)))
    store = TargetStore(targets64)
    wanted = store[rows].float()
    expected = -F.cosine_similarity(p, F.pad(wanted, (0, p.shape[1] - wanted.shape[1]))).mean()
    torch.testing.assert_close(module.training_step(([images, images], rows), 0), expected)


def test_an_anchor_stays_or_decays(script):
    anchor = script("levers").Anchor
    assert anchor(0.3, 0.1).weights(0.29) == Weights(0.0, 1.0)
    assert anchor(0.3, 0.1).weights(0.3) == anchor(0.3, 0.1).weights(1.0) == Weights(1.0, 0.1)
    decaying = [anchor(0.3, 1.0, decay=True).weights(progress).transport for progress in (0.3, 0.65, 1.0)]
    assert decaying == pytest.approx([1.0, 0.5, 0.0])


def test_the_default_may_fade(script):
    plain, fading = script("levers").Plateau(), script("levers").Fading()
    for schedule in (plain, fading):
        for step in range(1000):  # level from 30% on
            schedule.update(torch.tensor(max(1.0 - step / 600, 0.5)), step / 1000, step / 100)
            if schedule.fired:
                break
    assert step / 1000 == fading.at and plain.fired
    half = (1.0 + fading.at) / 2
    assert fading.weights(fading.at) == Weights(1.0, 1.0) and fading.weights(half).transport == pytest.approx(0.5)
    assert not fading.is_over(half) and plain.is_over(half)


def test_neighbours_are_the_nearest_others_and_the_second_view(script, data, targets64):
    levers, images = script("levers"), script("images")
    targets = torch.randn(50, 8, dtype=torch.float64)
    unit = (targets / targets.norm(dim=1, keepdim=True)).numpy()
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    np.testing.assert_array_equal(levers.nearest(targets, 3), np.argsort(-cosines, axis=1)[:, :3])

    labels = torch.arange(64)  # an image's views are its own row, so that we see whose they are
    rows = images.Images(labels.view(64, 1, 1, 1).expand(64, 3, 4, 4), labels, lambda image: [image, image])
    store = script("convergence").TargetStore(targets64)
    near = levers.WithNeighbours(rows, store, 2)
    seen = {row: {int(near[row][0][1][0, 0, 0]) for _ in range(40)} for row in range(0, 64, 9)}
    assert all(int(near[row][0][0][0, 0, 0]) == row == near[row][1] for row in seen)
    assert all(found == set(near.neighbours[row].tolist()) for row, found in seen.items())
    near.transform = lambda image: image  # as in the transport phase: one view, of the image itself
    assert all(int(near[row][0][0, 0, 0]) == row for row in range(64))


def test_neighbours_want_views_of_single_images(script, monkeypatch, capsys):
    convergence = script("convergence")
    words = ["x", "explore", "--data-root", "d", "--views", "batch", "--variants", "s30+neighbours"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        convergence.main()
    assert "--views image" in capsys.readouterr().err


def test_a_result_names_its_levers(script):
    variants = script("variants")
    assert variants.in_words("s30+rate").endswith("lever=rate")
    assert "lever" not in variants.in_words("s30+warm") and "head_warmup=0.05" in variants.in_words("s30+warm")
    assert variants.levers_of("s30+warm", None, None) == []


def test_a_lever_may_need_targets_of_its_own(script):
    variants = script("variants")
    assert variants.store_in("plateau+views+rate") == variants.store_in("s30+views") == "views"
    assert "views=4" in variants.in_words("plateau+views+rate")
    assert variants.VARIANTS["plateau+target"]["verify_targets"] == 0  # a lever brings its options to any schedule
    assert variants.store_in("rank") == "rank" and variants.store_in("s30+rate") == variants.store_in("b") == ""
