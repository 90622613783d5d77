import itertools
import math
from typing import Any

import pytest
import torch

from rela_lightning import ReLACallback
from rela_lightning.errors import ConfigError
from rela_lightning.schedules import AuthorsRule, Blend, Mix, Plateau, Schedule, Switch, TransportOnly


def restated_rule(losses: list[float]) -> int | None:
    """The authors' rule as paper.md states it; the 1-based update at which it fires."""
    slow, fast = 2.0, 1.0
    for step, loss in enumerate(losses, start=1):
        if math.exp(-max(slow - fast, 0.0)) >= 0.995:
            return step
        fast = 0.999 * fast + 0.001 * loss
        slow = 0.99 * slow + 0.01 * fast
    return None


def fired_at(losses: list[float], poll: int = 1) -> int | None:
    rule = AuthorsRule(poll)
    for step, loss in enumerate(losses, start=1):
        assert rule.weights(0.99) == (0.0, 1.0)
        rule.update(torch.tensor(loss, dtype=torch.float64), 0.5, 5.0)
        if rule.weights(0.0) == (1.0, 0.0):
            return step
    return None


CURVES = {
    "constant 1": ([1.0] * 4000, 528),
    "constant .3": ([0.3] * 4000, 2732),
    "slow fall": ([1.0 - 6e-5 * i for i in range(4000)], None),
    "1 to .5": ([0.5 + 0.5 * math.exp(-i / 2000) for i in range(6000)], None),
}


@pytest.mark.parametrize("name", CURVES)
def test_authors_rule_fires_at_the_authors_step(name: str) -> None:
    losses, known = CURVES[name]
    expected = restated_rule(losses)
    assert expected is not None and (known is None or expected == known)
    assert fired_at(losses) == expected


def test_authors_rule_polled_rarely_fires_late_but_never_elsewhere() -> None:
    losses, step = CURVES["constant 1"]
    assert step <= fired_at(losses, poll=16) < step + 16


@pytest.mark.parametrize("poll", [1, 7])
def test_authors_rule_survives_its_state(poll: int) -> None:
    losses = CURVES["constant 1"][0][:600]
    whole, first = AuthorsRule(poll), AuthorsRule(poll)
    for loss in losses:
        whole.update(torch.tensor(loss), 0.5, 5.0)
    for loss in losses[:300]:
        first.update(torch.tensor(loss), 0.5, 5.0)
    second = AuthorsRule(poll)
    second.load_state_dict(first.state_dict())
    for loss in losses[300:]:
        second.update(torch.tensor(loss), 0.5, 5.0)
    assert second.fired and (second.slow, second.fast) == (whole.slow, whole.fast)
    assert all(isinstance(value, torch.Tensor) for value in whole.state_dict().values())


def test_switch_mix_transport_only() -> None:
    assert [Switch(0.4).weights(p) for p in (0, 0.39, 0.4, 1.0)] == [(0, 1), (0, 1), (1, 0), (1, 0)]
    assert Mix(0.7).weights(0.5) == (1.0, 0.7)
    assert TransportOnly().weights(1.0) == (0.0, 1.0)
    assert [s.hands_over for s in (Switch(), Blend(), AuthorsRule(), Mix(), TransportOnly())] == [True] * 3 + [
        False
    ] * 2


@pytest.mark.parametrize("curve", ["linear", "cosine"])
def test_blend_goes_from_transport_to_ssl(curve: str) -> None:
    blend = Blend(curve, until=0.5)
    weights = [blend.weights(p / 100) for p in range(101)]
    assert weights[0] == (0.0, 1.0) and weights[50] == weights[100] == (1.0, 0.0)
    assert weights[25].ssl == pytest.approx(0.5)
    assert all(a.ssl <= b.ssl and a.ssl + a.transport == pytest.approx(1) for a, b in itertools.pairwise(weights))
    expected = 0.2 if curve == "linear" else (1 - math.cos(0.2 * math.pi)) / 2
    assert weights[10].ssl == pytest.approx(expected)


@pytest.mark.parametrize(
    "build", [lambda: Switch(0), lambda: Switch(1.1), lambda: Blend(until=0), lambda: Blend("square"),
              lambda: Mix(-1), lambda: Mix(float("nan")), lambda: AuthorsRule(0)],
)  # fmt: skip
def test_options_out_of_range_are_refused(build) -> None:
    with pytest.raises(ConfigError):
        build()


def run_plateau(plateau: Plateau, curve, steps: int = 3200, start: int = 0, epochs: float = 20.0) -> float | None:
    """Share of the budget at which it lets go of a loss curve over progress in [0, 1]; an epoch has 160 steps."""
    for step in range(start, steps):
        if plateau.weights(step / steps) == (1.0, 0.0):
            return step / steps
        plateau.update(torch.tensor(curve(step / steps)), step / steps, epochs * step / steps)
    return None


FALLS_TO_THIRTY_PERCENT = {"falls, then flat": lambda p: 1.0 - 2.0 * min(p, 0.3)}


def test_plateau_lets_go_when_the_loss_has_levelled_off() -> None:
    at = run_plateau(Plateau(0.002, window=0.03), FALLS_TO_THIRTY_PERCENT["falls, then flat"])
    assert 0.3 <= at <= 0.3 + 3 * 0.03 + 0.01, "two flat windows after the fall ends"


def test_plateau_stays_within_its_bounds() -> None:
    assert run_plateau(Plateau(), lambda p: 1.0) == pytest.approx(0.2, abs=0.01), "two windows, then a flat loss goes"
    assert run_plateau(Plateau(window=0.06), lambda p: 1.0) == pytest.approx(0.12, abs=0.01)
    assert run_plateau(Plateau(at_least=0.5), lambda p: 1.0) == pytest.approx(0.5, abs=0.11)
    assert run_plateau(Plateau(at_most=0.5), lambda p: 1.0 - p) == pytest.approx(0.5, abs=0.002)
    assert run_plateau(Plateau(), lambda p: 1.0 - p) is None, "it goes on for as long as the loss falls"
    assert Plateau().hands_over


def test_plateau_averages_enough_losses_to_tell() -> None:
    """A hundred steps of noise around a falling loss: a window of a tenth is ten steps, and would be fooled."""
    noise = 0.05 * torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert run_plateau(Plateau(), lambda p: 1.0 - 0.3 * p + float(noise[round(100 * p)]), steps=100) is None
    assert run_plateau(Plateau(), lambda p: 1.0, steps=125) == pytest.approx(0.8, abs=0.05), "two windows of fifty"
    noise = 0.05 * torch.randn(1000, generator=torch.Generator().manual_seed(0))  # 4 epochs of 5 steps are 20 losses
    noisy = run_plateau(Plateau(), lambda p: 1.0 - 0.6 * p + float(noise[round(1000 * p)]), steps=1000, epochs=200.0)
    assert noisy is None


def test_plateau_goes_by_the_shape_of_the_fall_not_by_its_height() -> None:
    slow = run_plateau(Plateau(), lambda p: 1.0 - 0.03 * p)
    assert slow is None, "below `slope` all the way, but as steep at its end as at its start"
    at = run_plateau(Plateau(), lambda p: math.exp(-p / 0.1))
    assert at == pytest.approx(0.6, abs=0.11), "10% windows fall to an eighth after .21, to .0005 after .5"


@pytest.mark.parametrize("scale", [7.0, 0.1, -1.0, 0.0])
def test_plateau_does_not_see_the_scale_of_the_loss(scale: float) -> None:
    def noisy(p: float) -> float:
        return math.exp(-p / 0.1) + 0.01 * math.sin(997 * p)

    at = run_plateau(Plateau(), noisy)
    assert 0.2 < at < 1.0
    if scale > 0.0:
        assert run_plateau(Plateau(), lambda p: scale * noisy(p)) == at
    else:
        flat = run_plateau(Plateau(), lambda p: scale)
        assert flat == run_plateau(Plateau(), lambda p: 1.0), "a loss that lies still, also below zero, is level"


@pytest.mark.parametrize("epochs", [40, 80, 160])
def test_plateau_lets_go_after_as_many_epochs_in_a_long_run_as_in_a_longer_one(epochs: int) -> None:
    def loss(p: float) -> float:
        return 0.7 + 0.3 * math.exp(-p * epochs / 4)

    at = run_plateau(Plateau(), loss, steps=150 * epochs, epochs=epochs)
    slope_reached = 4 * math.log(0.3 / 4 / 0.00175)  # where the derivative of the loss is .00175 an epoch
    assert slope_reached <= at * epochs <= slope_reached + 2 * 4.0, "in one of the two windows of 4 epochs after it"


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_plateau_takes_no_small_steps_for_a_level(share: float) -> None:
    """The same steps on a share of the images, or in larger batches, are more epochs: no reason to leave sooner."""

    def left(epochs: float) -> float | None:
        return run_plateau(Plateau(), lambda p: 0.7 + 0.3 * math.exp(-10 * p), steps=150 * 80, epochs=epochs)

    assert left(80 / share) == pytest.approx(left(80), abs=0.001)


def test_plateau_keeps_to_the_targets_where_the_run_is_short() -> None:
    epochs = 8
    assert run_plateau(Plateau(), lambda p: 0.7 + 0.3 * math.exp(-p * epochs / 4), epochs=epochs) is None


def test_plateau_waits_for_whole_epochs_where_their_length_is_not_known() -> None:
    plateau = Plateau()
    for step in range(1000):
        plateau.update(torch.ones(()), step / 1000, 0.0)
    assert not plateau.fired, "of a first epoch without an end nothing can be said"
    for step in range(1000, 2000):
        plateau.update(torch.ones(()), step / 2000, float(step >= 1100) + float(step >= 1500))
    assert plateau.fired


def test_plateau_does_not_switch_when_little_is_left() -> None:
    assert run_plateau(Plateau(), lambda p: 1.0 - min(p, 0.5)) == pytest.approx(0.7, abs=0.11)
    assert run_plateau(Plateau(), lambda p: 1.0 - min(p, 0.75)) is None


@pytest.mark.parametrize(
    ("directions", "slope"),
    [
        (1.0, 0.0135),
        (10.0, 0.0135),
        (1000**0.5, (0.0135 * 0.00175) ** 0.5),
        (100.0, 0.00175),
        (768.0, 0.00175),
        (None, 0.00175),
    ],
)
def test_plateau_leaves_a_prior_of_few_directions_sooner(directions: float | None, slope: float) -> None:
    epochs = 60

    def loss(p: float) -> float:
        return 0.7 + 0.3 * math.exp(-p * epochs / 10)

    def left(plateau: Plateau) -> float | None:
        plateau.begin(directions)
        return run_plateau(plateau, loss, steps=160 * epochs, epochs=epochs)

    at = left(Plateau(window=1 / epochs))
    assert at * epochs == pytest.approx(10 * math.log(0.3 / 10 / slope), abs=2.0), (
        "where the loss falls by `slope` an epoch"
    )
    assert left(Plateau(0.005, window=1 / epochs)) * epochs == pytest.approx(10 * math.log(6.0), abs=2.0), (
        "a slope of one's own"
    )


@pytest.mark.parametrize("stop", [100, 817])
def test_plateau_survives_its_state(stop: int) -> None:
    curve = FALLS_TO_THIRTY_PERCENT["falls, then flat"]
    whole = run_plateau(Plateau(), curve)
    first, second = Plateau(), Plateau()
    for step in range(stop):
        first.update(torch.tensor(curve(step / 3200)), step / 3200, step / 160)
    second.load_state_dict(first.state_dict())
    assert run_plateau(second, curve, start=stop) == whole


@pytest.mark.parametrize(
    "options",
    [
        {"slope": 0.0},
        {"window": 0.0},
        {"window": 0.3},
        {"at_most": 2.0},
        {"at_least": 0.9, "at_most": 0.8},
        {"at_least": 0.9},
    ],
)
def test_plateau_options_out_of_range_are_refused(options) -> None:
    with pytest.raises(ConfigError):
        Plateau(**options)


@pytest.mark.parametrize(
    "build",
    [Switch, lambda: Mix(0.5), Blend, TransportOnly, lambda: AuthorsRule(3), Plateau, lambda: Plateau(at_most=0.3)],
)
def test_asking_for_weights_changes_nothing(build) -> None:
    asked, plain, random = build(), build(), random_numbers(0)
    for step in range(400):
        for _ in range(3):
            asked.weights(float(next(random)))
        assert asked.weights(step / 400) == plain.weights(step / 400)
        for schedule in (asked, plain):
            schedule.update(torch.tensor(math.exp(-step / 60)), step / 400, step / 40)
    for one, two in zip(asked.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def random_numbers(seed: int):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.rand((), generator=generator)


def test_a_plateau_that_ends_where_it_may_begin_is_a_switch() -> None:
    plateau = Plateau(at_least=0.01, at_most=0.01)
    assert plateau.weights(0.5) == (1.0, 0.0) and plateau.weights(0.0) == (0.0, 1.0)
    assert run_plateau(plateau, lambda p: 1.0) == pytest.approx(0.01)


@pytest.mark.parametrize("at", [0.001, 0.37, 0.4, 1.0])
def test_what_is_certain_of_a_switch_is_all_of_it(at: float) -> None:
    class Scanned(Schedule):
        weights = Switch(at).weights

    assert Switch(at).least_transport == at == pytest.approx(Scanned().least_transport, abs=0.001)


def test_head_warmup_needs_a_schedule_that_knows_its_end(targets64: Any) -> None:
    for schedule in (AuthorsRule(), Plateau(), Blend()):
        with pytest.raises(ConfigError, match="head_warmup"):
            ReLACallback(targets64, schedule=schedule, head_warmup=0.1)


def test_losses_not_yet_looked_at_are_kept_in_full_and_looked_at_with_the_next() -> None:
    rule, again = AuthorsRule(poll=4), AuthorsRule(poll=4)
    rule.update(torch.tensor(1.0), 0.5, 5.0)
    again.load_state_dict(rule.state_dict())
    assert torch.equal(again.state_dict()["unread"], torch.ones(1, dtype=torch.float64))
    for _ in range(3):
        again.update(torch.tensor(1.0), 0.5, 5.0)
    assert again.state_dict()["unread"].numel() == 0
    assert again.state_dict()["averages"][0] != rule.state_dict()["averages"][0]
