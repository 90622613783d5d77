"""When and how much: from the share of the budget spent to the weights of the two losses.

A schedule is all there is to "how ReLA is used". `(0, w)` is the cheap phase: the user's training
step is not run. `(s, w)`, both positive, adds the transport loss to the user's own. `(s, 0)` leaves
the user's run alone, whatever s is.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rela_lightning.errors import ConfigError


class Weights(NamedTuple):
    """Weights of the SSL objective and of the transport loss, each >= 0.

    Example:
        >>> Weights(0.0, 1.0).transport_only
        True
    """

    ssl: float
    transport: float

    @property
    def transport_only(self) -> bool:
        """Whether the user's training step is not run."""
        return self.ssl == 0.0


SSL_ONLY = Weights(1.0, 0.0)
_FEWEST_LOSSES = 50  # in a window of Plateau: the mean of fewer says little
_LONGEST = 4.0  # epochs of a window, whatever the budget
_STEPS_OF_AN_EPOCH = 150  # at least: fewer steps teach less, however many images are in them
_OF_STEEPEST = 0.5  # of the steepest fall: more is left only where the loss falls slowly from the start
_TOO_LATE = 2  # times `window` before the end: a switch there never gained anything
_NO_FALL = 0.2  # of `slope`: a loss that never fell faster than that had nothing to level off from
_FEW, _MANY = 10.0, 100.0  # directions of a prior that has little to say, and of one that has much
_SLOPES = 0.0135, 0.00175  # of Plateau for the two; see docs/convergence.md
TRANSPORT_ONLY = Weights(0.0, 1.0)


def _share(name: str, value: float) -> float:
    if not 0.0 < value <= 1.0:
        raise ConfigError(
            f"`{name}` is a share of the budget.",
            expected="a number in (0, 1]",
            found=value,
            do="pass 0.4 for 40%; leave the callback out to use no transport at all",
        )
    return value


class Schedule:
    """Base class: two weights from the progress and, for adaptive schedules, from the losses seen.

    Example:
        >>> class Halves(Schedule):
        ...     def weights(self, progress):
        ...         return Weights(0.5, 0.5)
        >>> Halves().weights(0.3)
        Weights(ssl=0.5, transport=0.5)
    """

    adaptive = False
    """Whether `update` matters; only then are losses averaged over ranks and handed over."""

    def begin(self, directions: float | None) -> None:
        """Learn of the targets: before each fit, and during it where more is known of them.

        Args:
            directions: How many directions the prior's features fill, see `TargetStore.directions`; None where nobody
                knows yet: targets on the fly are learnt from the first images.
        """

    def weights(self, progress: float) -> Weights:
        """Weights of the next optimizer step. Changes nothing: it may be asked for any progress, at any time.

        Args:
            progress: Share of the planned budget already spent, in `[0, 1]`. Where a run is resumed with a longer plan
                it goes back for an adaptive schedule that is not over, and for no other.

        Returns:
            `(ssl, transport)`.
        """
        raise NotImplementedError

    def update(self, loss: Tensor, progress: float, epochs: float) -> None:
        """Take in an optimizer step; the one place where a schedule's state changes.

        Args:
            loss: Transport loss of the step: a scalar, equal on all ranks.
            progress: What `weights` was asked for before it.
            epochs: Passes over the training images before it, with the share of the one under way where that is known.
                An epoch of the Trainer that draws half of the images is half of one.
        """

    @functools.cached_property
    def fresh(self) -> dict[str, Tensor]:
        """State when first asked, before any fit: what a fit that is not resumed begins with."""
        return self.state_dict()

    @property
    def hands_over(self) -> bool:
        """Whether the transport loss is off by the end of the budget, as far as can be known."""
        return self.adaptive or self.weights(1.0).transport == 0.0

    @property
    def least_transport(self) -> float:
        """Share of the budget, from its start, that is transport alone whatever happens; in `[0, 1]`."""
        if self.adaptive:
            return 0.0
        return next((p / 1000 for p in range(1001) if not self.weights(p / 1000).transport_only), 1.0)

    def is_over(self, progress: float) -> bool:
        """Whether the transport loss is off from `progress` to the end of the budget, whatever happens.

        All that ReLA has attached to the step is taken off then. An adaptive schedule of your own whose switch is for
        good says so here; by default nobody can know.
        """
        left = 1.0 - progress
        return not self.adaptive and all(self.weights(progress + left * p / 1000).transport == 0.0 for p in range(1001))

    def state_dict(self) -> dict[str, Tensor]:
        """State as tensors; empty for schedules that depend on progress alone."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""


class Switch(Schedule):
    """Transport alone for the first share `at` of the budget, then SSL alone.

    The authors' static rule (Fig. 4b of the paper, `conlam` in their code).

    Args:
        at: Share of the budget given to transport, in `(0, 1]`.

    Example:
        >>> [Switch(0.4).weights(progress) for progress in (0.0, 0.4)]
        [Weights(ssl=0.0, transport=1.0), Weights(ssl=1.0, transport=0.0)]
    """

    def __init__(self, at: float = 0.4) -> None:
        self.at = _share("at", at)

    @property
    def least_transport(self) -> float:
        """All of it."""
        return self.at

    def weights(self, progress: float) -> Weights:
        """`(0, 1)` before `at`, `(1, 0)` from there on."""
        return TRANSPORT_ONLY if progress < self.at else SSL_ONLY


class TransportOnly(Schedule):
    """Transport alone, to the end: distillation without an SSL objective.

    Example:
        >>> TransportOnly().weights(1.0)
        Weights(ssl=0.0, transport=1.0)
    """

    def weights(self, progress: float) -> Weights:
        """Always `(0, 1)`."""
        return TRANSPORT_ONLY


class Mix(Schedule):
    """The user's own objective plus `weight` times the transport loss, to the end.

    Args:
        weight: Weight of the transport loss, >= 0.

    Example:
        >>> Mix(0.3).weights(0.9)
        Weights(ssl=1.0, transport=0.3)
    """

    def __init__(self, weight: float = 1.0) -> None:
        if not (weight >= 0.0 and math.isfinite(weight)):
            raise ConfigError("`weight` of the transport loss.", expected="a finite number >= 0", found=weight)
        self.weight = float(weight)

    def weights(self, progress: float) -> Weights:
        """Always `(1, weight)`."""
        return Weights(1.0, self.weight)


class Blend(Schedule):
    """Transport fades out while SSL fades in.

    Args:
        curve: `linear`, or `cosine` (half a cosine wave: slow at both ends).
        until: Share of the budget at which only SSL is left, in `(0, 1]`.

    Example:
        >>> Blend("linear", until=0.5).weights(0.25)
        Weights(ssl=0.5, transport=0.5)
    """

    def __init__(self, curve: Literal["cosine", "linear"] = "cosine", until: float = 1.0) -> None:
        if curve not in ("cosine", "linear"):
            raise ConfigError("Unknown curve.", found=curve, exists=("cosine", "linear"))
        self.curve = curve
        self.until = _share("until", until)

    def weights(self, progress: float) -> Weights:
        """`(s, 1 - s)` with s rising from 0 to 1."""
        share = min(max(progress / self.until, 0.0), 1.0)
        ssl = share if self.curve == "linear" else 0.5 * (1.0 - math.cos(math.pi * share))
        return Weights(ssl, 1.0 - ssl)


class AuthorsRule(Schedule):
    """The authors' adaptive rule, for comparison: transport alone until two averages meet.

    Once per optimizer step: `rho = exp(-max(slow - fast, 0))`, then `fast <- .999 fast + .001 loss`
    and `slow <- .99 slow + .01 fast`, from slow = 2 and fast = 1; SSL takes over for good when
    `rho >= .995`. It counts steps, not budget, and mostly times its own start-up: a constant loss of 1
    fires it at step 528. (LINs-lab/ReLA, January 2025.)

    Args:
        poll: Look at the losses every `poll` steps. Each look waits for the device; with 1 the rule
            fires at the authors' step, with more up to `poll - 1` steps later.

    Example:
        >>> AuthorsRule().weights(0.9)  # no loss seen yet
        Weights(ssl=0.0, transport=1.0)
    """

    adaptive = True

    def __init__(self, poll: int = 1) -> None:
        if poll < 1:
            raise ConfigError("`poll` counts steps.", expected="an integer >= 1", found=poll)
        self.poll = poll
        self.slow, self.fast, self.fired = 2.0, 1.0, False
        self._unread: list[Tensor] = []

    def weights(self, progress: float) -> Weights:
        """`(0, 1)` until the rule has fired, `(1, 0)` from the next step on."""
        return SSL_ONLY if self.fired else TRANSPORT_ONLY

    def is_over(self, progress: float) -> bool:
        """Whether the rule has fired."""
        return self.fired

    def update(self, loss: Tensor, progress: float, epochs: float) -> None:
        """Advance both averages by one step."""
        self._unread.append(loss.detach().reshape(()))
        if len(self._unread) >= self.poll:
            self._read()

    def _read(self) -> None:
        if not self._unread:
            return
        device = self._unread[-1].device  # those restored from a checkpoint may lie elsewhere
        for loss in torch.stack([loss.to(device) for loss in self._unread]).double().tolist():
            self.fired = self.fired or math.exp(-max(self.slow - self.fast, 0.0)) >= 0.995
            self.fast = 0.999 * self.fast + 0.001 * loss
            self.slow = 0.99 * self.slow + 0.01 * self.fast
        self._unread.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """Both averages, the flag and the losses not yet looked at."""
        unread = torch.stack(self._unread).double().cpu() if self._unread else torch.zeros(0, dtype=torch.double)
        averages = torch.tensor([self.slow, self.fast], dtype=torch.double)
        return {"averages": averages, "fired": torch.tensor(self.fired), "unread": unread}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore both averages, the flag and the unread losses."""
        self.slow, self.fast = state["averages"].tolist()
        self.fired = bool(state["fired"])
        self._unread = list(state["unread"].unbind())


class Plateau(Schedule):
    """Transport alone for as long as it teaches something: until its loss has levelled off, then SSL alone.

    The loss is averaged over windows: a share of the budget of 50 steps or more, in a long run 4 epochs. It has
    levelled off when it falls, from one window to the next, by less than `slope` of the first loss per epoch, and by
    less than half of the steepest fall seen. A fall per epoch says the same of a short run and of a long one: what a
    prior has to say is learnt in a number of passes over the images, and the rest of the budget, be it long, is the
    objective's. Where an epoch has fewer than 150 steps (few images, large batches), 150 steps count as one: a loss
    that falls little in few steps has not levelled off. A loss that never fell counts as level. The same curve on
    another scale ends at the same step. The switch is for good, within the bounds `at_least` and `at_most`, and does
    not come where less than twice `window` of the budget is left, which is too little for the objective. With a prior
    that has little to say it comes early; in a budget too short to learn what a prior says, it never comes. See
    docs/convergence.md for measurements.

    The loss to the targets of an untrained network falls for ever, and long after the backbone has ceased to gain. So
    the fewer directions the prior's features fill (`TargetStore.directions`), the steeper a fall has to be to count.

    Args:
        slope: Fall per epoch below which the loss has levelled off, as a share of the first loss (which is about 1 for
            the cosine), > 0. None goes by the prior: .0135 where its features fill 10 directions or fewer, .00175 from
            100 on or as long as that is not known, geometric means between.
        window: Share of the budget that is averaged at most, in `(0, 0.25]`.
        at_least: No switch before this share of the budget, in `(0, 1]`; nor before two windows are through.
        at_most: The switch comes here at the latest, in `(0, 1]`; 1 leaves it to the loss.

    Example:
        >>> Plateau(at_most=0.5).weights(0.5)  # at half of the budget at the latest
        Weights(ssl=1.0, transport=0.0)
    """

    adaptive = True

    def __init__(
        self, slope: float | None = None, *, window: float = 0.1, at_least: float = 0.05, at_most: float = 1.0
    ) -> None:
        if slope is not None and not slope > 0.0:
            raise ConfigError("`slope` is a share of the first loss per epoch.", expected="> 0", found=slope)
        if not 0.0 < window <= 0.25:
            said = "`window` is a share of the budget: two are compared, and two are left to the objective."
            raise ConfigError(said, expected="a number in (0, 0.25]", found=window)
        self.slope, self.window = slope, window
        self.at_least, self.at_most = _share("at_least", at_least), _share("at_most", at_most)
        if at_least > at_most:
            raise ConfigError("`at_least` is above `at_most`.", found=f"{at_least} and {at_most}")
        self._last = 1.0 - _TOO_LATE * window
        if at_least > self._last and at_most == 1.0:
            raise ConfigError(
                "`at_least` leaves no time for a switch by the loss.",
                expected=f"at most {self._last:.2f}, as what is left then is too little for the objective",
                found=at_least,
                do="pass a smaller window or at_least; TransportOnly() is transport to the end",
            )
        self.fired, self._level = False, self._slope_for(None)
        self._start = self._start_epochs = 0.0
        self._sum, self._count = torch.zeros(()), 0
        self._first: Tensor | None = None
        self._before = math.inf
        self._steepest = 0.0

    def begin(self, directions: float | None) -> None:
        """Choose the slope by the prior, unless one was given."""
        self._level = self._slope_for(directions)

    def _slope_for(self, directions: float | None) -> float:
        knows = math.log(max(directions or _MANY, 1.0) / _FEW) / math.log(_MANY / _FEW)
        few, many = _SLOPES
        return self.slope or few * (many / few) ** min(max(knows, 0.0), 1.0)

    @property
    def least_transport(self) -> float:
        """`at_least`: two windows may be through before."""
        return self.at_least

    def weights(self, progress: float) -> Weights:
        """`(0, 1)` until the loss has levelled off, `(1, 0)` from then on."""
        return SSL_ONLY if self.fired or progress >= self.at_most < 1.0 else TRANSPORT_ONLY

    def is_over(self, progress: float) -> bool:
        """Whether the switch has come."""
        return self.weights(progress) == SSL_ONLY

    def update(self, loss: Tensor, progress: float, epochs: float) -> None:
        """Add a step's loss to the window, on its device; the device is waited for once a window."""
        loss = loss.detach()
        self._first = loss.abs() if self._first is None else self._first
        self._sum = self._sum.to(loss.device) + loss
        self._count += 1
        self._start = min(self._start, progress)  # resumed with a longer plan
        passes = min(epochs - self._start_epochs, self._count / _STEPS_OF_AN_EPOCH)
        by_share = progress - self._start >= self.window and self._count >= _FEWEST_LOSSES
        if passes <= 0.0 or not (by_share or passes >= _LONGEST):
            return
        mean = float(self._sum) / self._count
        if math.isfinite(self._before):
            fall, slope = (self._before - mean) / passes, self._level * float(self._first)
            self._steepest = max(self._steepest, fall)
            left = fall < _OF_STEEPEST * self._steepest or self._steepest <= _NO_FALL * slope
            timely = self.at_least <= progress <= self._last
            self.fired = self.fired or (fall <= slope and left and timely)
        self._before, self._start, self._start_epochs = mean, progress, epochs
        self._sum, self._count = torch.zeros_like(self._sum), 0

    def state_dict(self) -> dict[str, Tensor]:
        """The current window, the one before, the first loss, and whether the switch has come."""
        numbers = [self._start, self._start_epochs, float(self._sum), float(self._count), self._before, self._steepest]
        first = torch.zeros(0) if self._first is None else self._first.cpu().reshape(1)
        window = torch.tensor(numbers, dtype=torch.double)
        return {"window": window, "first": first.double(), "fired": torch.tensor(self.fired)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._start, self._start_epochs, total, count, self._before, self._steepest = state["window"].tolist()
        self._first = state["first"][0] if len(state["first"]) else None
        self._sum, self._count = torch.tensor(total), int(count)
        self.fired = bool(state["fired"])
