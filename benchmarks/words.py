"""What stands in the tables for a variant, a lever, a method, a data set and a prior."""

from __future__ import annotations

from collections.abc import Iterable

NAMES = {
    "a": "(a) SSL alone, tuned",
    "b": "(b) transport alone",
    "b2": "(b) transport alone, two views",
    "c": "(c) authors' rule, frozen map",
    "s10": "(d) Switch(0.1)",
    "s20": "(d) Switch(0.2)",
    "s30": "(d) Switch(0.3)",
    "switch": "(d) Switch(0.4)",
    "s50": "(d) Switch(0.5)",
    "s60": "(d) Switch(0.6)",
    "s70": "(d) Switch(0.7)",
    "late": "(d) Switch(0.8)",
    "last": "(d) Switch(0.9)",
    "blend": "(d) Blend",
    "anchor20": "(d) transport for 20%, then both",
    "plateau": "(d) Plateau, the default",
    "mix": "(d) Mix",
    "e": "(e) online distillation",
    "f": "(f) supervised",
}
_IN_WORDS = {
    "byol": "BYOL", "simclr": "SimCLR", "barlow_twins": "Barlow Twins",
    "cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST",
    "efficientnet_lite0": "EfficientNet-Lite0", "random": "an untrained ResNet-18", "digits": "a net trained on digits",
}  # fmt: skip
LEVERS = {
    "warm": "heads warmed for the 5% before",
    "rate": "learning rate warmed up and annealed anew",
    "rewarmed": "learning rate warmed up anew, then as planned",
    "annealed": "learning rate annealed anew, without warm-up",
    "optimizer": "optimizer's moments forgotten",
    "slow": "teacher momentum .99 from then on",
    "teacher": "teacher begins as a copy of the student",
    "target": "cached target in place of the teacher's branch",
    "anchor": "transport stays, at a weight of .1",
    "decay": "transport stays, its weight falls from 1 to 0",
    "views": "transport to 4 stored views an image",
    "neighbours": "neighbours of the targets as positives",
}
DEFAULT = "plateau"
USUAL = 10_000  # training images


def known_as(name: str) -> str:
    """A method, a data set or a prior in words; its own name where there are none."""
    return _IN_WORDS.get(name, name)


def if_unusual(images: int) -> str:
    """`, 1,000 images`; nothing for the number that most runs have."""
    return "" if images == USUAL else f", {images:,} images"


def in_levers(levers: str) -> str:
    """The levers of a variant's name, in words: `rate+views`."""
    return "; ".join(LEVERS[lever] for lever in levers.split("+"))


def named(variant: str) -> str:
    """A variant in words, its levers after it."""
    base, _, levers = variant.partition("+")
    return f"{NAMES[base]}: {in_levers(levers)}" if levers else NAMES[base]


def in_order(variants: Iterable[str]) -> list[str]:
    """Variants in the order of their names, those with levers after the one without."""
    return sorted(variants, key=lambda variant: (list(NAMES).index(variant.partition("+")[0]), variant))
