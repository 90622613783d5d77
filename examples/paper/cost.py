"""What a plan of runs will take: hours and disk, by prior and by budget.

Disk is counted. Hours are a guess unless the images a second are given: no machine is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rela_lightning.targets.records import record_type
from rela_lightning.targets.shards import Shape, pass_bytes
from rela_lightning.units import size

EPOCHS = 100


class Facts(NamedTuple):
    """Of a data set: images to train and validate on, bytes of a checkpoint by method, guessed images a second."""

    train: int
    validation: int
    checkpoint: dict[str, int]
    training_rate: float
    labelling_rate: float


FACTS = {
    "cifar10": Facts(50_000, 10_000, {"byol": 198_000_000, "dino": 288_000_000}, 3000, 2000),
    "cifar100": Facts(50_000, 10_000, {"byol": 198_000_000, "dino": 288_000_000}, 3000, 2000),
    "tiny_imagenet": Facts(100_000, 10_000, {"byol": 198_000_000, "dino": 288_000_000}, 2500, 1500),
    "imagenet": Facts(1_281_167, 50_000, {"byol": 553_000_000, "dino": 536_000_000}, 700, 1500),
}
"""Checkpoints hold model and AdamW, counted from the networks. Rates: guesses for one recent GPU with eight workers."""


class Rates(NamedTuple):
    """Images a second as the user has measured them, of training and of labelling; None for the guess."""

    training: float | None = None
    labelling: float | None = None


class Cost(NamedTuple):
    """Of one step: whose prior and budget it is, and what it takes."""

    prior: str
    budget: str
    runs: int = 0
    hours: float = 0.0
    kept: int = 0
    passing: int = 0


def of_fit(data: str, method: str, budget: int, prior: str, rates: Rates) -> Cost:
    """A training run; the transport phase counts like any other step, though it is cheaper."""
    facts = FACTS[data]
    seconds = facts.train * EPOCHS * budget / 100 / (rates.training or facts.training_rate)
    return Cost(prior, f"{budget}%", 1, seconds / 3600, facts.checkpoint[method])


def of_probe(data: str, budget: int, prior: str, rates: Rates) -> Cost:
    """Features of all images; the classifier on them is not counted."""
    facts = FACTS[data]
    seconds = (facts.train + facts.validation) / (rates.labelling or facts.labelling_rate)
    return Cost(prior, f"{budget}%", hours=seconds / 3600)


def of_targets(data: str, prior: str, columns: int, rates: Rates) -> Cost:
    """A labelling pass, float16 targets, and the files that it needs until it is done."""
    facts = FACTS[data]
    seconds = facts.train / (rates.labelling or facts.labelling_rate)
    kept = facts.train * record_type(columns, "float16").itemsize + 8 * columns**2
    return Cost(prior, "labelling", 0, seconds / 3600, kept, pass_bytes(facts.train, Shape(1, columns)))


def table(costs: Sequence[Cost], rates: Rates) -> str:
    """Lines of a comment: by prior, by budget, in all, and what is a guess."""
    lines = [f"{'':24}{'runs':>6}{'hours':>10}{'disk':>12}"]
    for kind in ("prior", "budget"):
        lines.append(f"by {kind}")
        for name in sorted({getattr(cost, kind) for cost in costs}, key=lambda name: (len(name), name)):  # 10% < 100%
            lines.append(_row(name, (cost for cost in costs if getattr(cost, kind) == name)))
    lines.append(_row("in all", costs))
    most = max((cost.passing for cost in costs), default=0)
    if most:
        lines.append(f"and {size(most)} more while the largest targets are made")
    for kind, given in zip(Rates._fields, rates, strict=True):
        said = f"{given:g} images a second, as given" if given else f"a guess for one GPU: pass --{kind}-rate"
        lines.append(f"hours of {kind}: {said}")
    lines.append("not counted: validation, the probes' classifiers, downloads; what is done already")
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _row(name: str, costs: Iterable[Cost]) -> str:
    costs = list(costs)
    runs, hours = sum(cost.runs for cost in costs), sum(cost.hours for cost in costs)
    return f"  {name:22}{runs:6}{hours:10.1f}{size(sum(cost.kept for cost in costs)):>12}"
