"""What is compared: the callback's options by a short name, and the kinds of steps they make."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from levers import LEVERS, Anchor, AtHandOver, Fading
from networks import prior_of
from virtual_clock import VirtualClock

from rela_lightning import ReLACallback, TargetStore, load_prior
from rela_lightning.schedules import AuthorsRule, Blend, Mix, Plateau, Schedule, Switch, TransportOnly
from rela_lightning.targets.source import PriorTargets

VARIANTS: dict[str, dict[str, Any] | None] = {
    "a": None,  # the SSL method alone, tuned
    "b": {"schedule": TransportOnly},
    "b2": {"schedule": TransportOnly, "num_views": 2},
    "c": {"schedule": AuthorsRule, "transport_optimizer": None, "num_views": 2},
    "switch": {"schedule": Switch},
    "s10": {"schedule": functools.partial(Switch, 0.1)},
    "s20": {"schedule": functools.partial(Switch, 0.2)},
    "anchor20": {"schedule": functools.partial(Anchor, 0.2)},
    "s70": {"schedule": functools.partial(Switch, 0.7)},
    "late": {"schedule": functools.partial(Switch, 0.8)},
    "last": {"schedule": functools.partial(Switch, 0.9)},
    "blend": {"schedule": Blend},
    "plateau": {"schedule": Plateau},
    "mix": {"schedule": Mix},
    "frozen": {"schedule": TransportOnly, "transport_optimizer": None},
    "small": {"schedule": TransportOnly, "transport_resolution": 24},
    "isotropic": {"schedule": TransportOnly},
    "rank": {"schedule": TransportOnly},
    "s30": {"schedule": functools.partial(Switch, 0.3)},
    "s50": {"schedule": functools.partial(Switch, 0.5)},
    "s60": {"schedule": functools.partial(Switch, 0.6)},
    "e": {"schedule": TransportOnly},  # the teacher in the loop: it embeds the student's view at every step
    "f": None,  # supervised: the ceiling
}
"""Options of ReLACallback by variant; None for runs without it. Those with levers are added below."""
LEVERED = {
    "switch": ("warm",),
    "s30": ("warm", "anchor", "decay", "views", "neighbours", *LEVERS),
    "plateau": ("decay", *LEVERS, "views+rate", "decay+rate"),
}
"""Levers that are put to a schedule."""
SCHEDULES: dict[tuple[str, str], Any] = {
    ("s30", "anchor"): functools.partial(Anchor, 0.3, 0.1),
    ("s30", "decay"): functools.partial(Anchor, 0.3, 1.0, decay=True),
    ("plateau", "decay"): Fading,
}
"""What stands for a schedule where a lever changes it."""
OPTIONS: dict[str, dict[str, Any]] = {
    "warm": {"head_warmup": 0.05},
    "target": {"verify_targets": 0},  # labels are rows: other data
}
"""Options of ReLACallback that a lever brings."""


def with_levers(base: str, levers: list[str]) -> dict[str, Any]:
    """Options of a schedule with levers."""
    options = dict(VARIANTS[base] or {})
    for lever in levers:
        options |= {"schedule": SCHEDULES.get((base, lever), options["schedule"]), **OPTIONS.get(lever, {})}
    return options


VARIANTS |= {
    f"{base}+{levers}": with_levers(base, levers.split("+")) for base, found in LEVERED.items() for levers in found
}
STORES: dict[str, dict[str, Any]] = {
    "isotropic": {"standardise": "isotropic"},
    "rank": {"target_dim": 0.95},
    "views": {"views": 4},
}
"""Options of build_targets for the variants, or for a lever in their name, that need targets of their own."""
KINDS: dict[str, tuple[str, Any]] = {
    "ssl": ("a", None),
    "transport": ("b2", None),
    "transport1": ("b", None),
    "transport1@24": ("small", None),
    "mixed": ("b", Mix),
    "online": ("e", None),
}
"""Kind of a step: (variant, schedule in its place) that it is calibrated with."""


def kinds_of(method: str) -> list[str]:
    """Kinds of steps of a method: the supervised has one, and only BYOL stands beside online distillation."""
    if method == "supervised":
        return ["ssl"]
    return [kind for kind in KINDS if kind not in ("online", "transport1@24") or method == "byol"]


def callback_of(variant: str, store: Path, prior: str, schedule: Any = None) -> ReLACallback | None:
    """The callback of a variant, with another schedule if one is given; None for the plain method."""
    options = VARIANTS[variant]
    if options is None:
        return None
    options = {**options, "schedule": (schedule or options["schedule"])()}
    if variant == "e":
        return OnlineDistillation(store, prior=prior_of(prior), **options)
    return ReLACallback(store, **options)


def levers_in(variant: str) -> list[str]:
    """What a variant's name says after its schedule: `s30+rate+teacher` has `rate` and `teacher`."""
    return variant.split("+")[1:]


def store_in(variant: str) -> str:
    """The part of a variant's name that asks for targets of its own; empty where none does."""
    return next((part for part in variant.split("+") if part in STORES), "")


def levers_of(variant: str, rela: ReLACallback, clock: VirtualClock) -> list[AtHandOver]:
    """Callbacks of the levers in a variant's name."""
    return [LEVERS[name](rela, clock) for name in levers_in(variant) if name in LEVERS]


def schedule_in_words(schedule: Schedule) -> str:
    """`Switch(at=0.4)`: a schedule with every value."""
    values = ", ".join(f"{name}={value}" for name, value in vars(schedule).items() if name[0] != "_")
    return f"{type(schedule).__name__}({values})"


def in_words(variant: str) -> str | None:
    """A variant's options with every value, for the results: names may come to mean something else."""
    options = VARIANTS[variant]
    if options is None:
        return None
    rest = {"num_views": 1, **options, **STORES.get(store_in(variant), {})}
    words = [f"{name}={value}" for name, value in rest.items() if name != "schedule"]
    words += [f"lever={name}" for name in levers_in(variant) if name in (*LEVERS, "neighbours")]
    return ", ".join([schedule_in_words(options["schedule"]()), *words])


class OnlineDistillation(ReLACallback):
    """The prior embeds the student's view at every step.

    The projection is the store's, and its cost is not counted: no step is spent on learning it.
    """

    def _open_targets(self) -> PriorTargets:
        source = PriorTargets(load_prior(self.prior))
        source.load_state_dict({"projection": [part.float() for part in TargetStore(self.targets).projection]})
        return source
