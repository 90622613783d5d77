"""The runs of the docs, in the order of what is worth knowing first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

STRONG, RANDOM = "efficientnet_lite0", "random"
VIEWS = (
    "k0",
    "k2",
    "k4",
    "k8",
    "k16",
    "nearest8",
    "nearest16",
    "blend8",
    "blend16",
    "mean8",
    "online",
    "online_jitter",
)
LOSSES = (
    "cosine", "contrastive", "smooth_l1", "relational", "cosine+relational", "cosine+contrastive",
    "contrastive+relational",
)  # fmt: skip
Job = dict[str, Any]


def runs(seed: int, steps: int, views: Iterable[str], losses: Iterable[str] = ("cosine",), **more: Any) -> list[Job]:
    """Every view with every loss; per-dimension targets of the strong prior and batches of 64 unless said."""
    base = {"seed": seed, "steps": steps, "prior": STRONG, "kind": "per_dim", "batch": 64, **more}
    return [{**base, "view": view, "loss": loss} for view in views for loss in losses]


def plan(length: str) -> list[Job]:
    """Jobs of 1,000 steps (`short`) or of 8,000 (`long`), first things first, each once."""
    short = [*runs(0, 1000, VIEWS), *runs(0, 1000, ["k0"], LOSSES), *runs(0, 1000, ["k0"], LOSSES, prior=RANDOM)]
    for seed in (1, 2):
        short += runs(seed, 1000, VIEWS) + runs(seed, 1000, ["k0"], LOSSES)
    for seed in (0, 1, 2):
        for kind in ("shrunk", "isotropic", "frozen", "rank"):
            short += runs(seed, 1000, ["k0"], kind=kind)
        short += runs(seed, 1000, ["k0"], ["cosine", "contrastive"], batch=256)
        short += runs(seed, 1000, ["k0"], LOSSES, prior=RANDOM)
    long = []
    for seed in (0, 1, 2):
        long += runs(seed, 8000, ["k0"], ["cosine", "contrastive"]) + runs(seed, 8000, ["blend16"])
    for seed in (0, 1, 2):
        long += runs(seed, 8000, ["k16", "nearest16", "online", "k8"])
    long += runs(0, 8000, ["blend16"], ["contrastive"]) + runs(0, 8000, ["k0"], ["cosine+contrastive"])
    for seed in (0, 1, 2):
        long += runs(seed, 8000, ["k0"], ["cosine", "contrastive"], prior=RANDOM)
    found = short if length == "short" else long
    return [job for place, job in enumerate(found) if job not in found[:place]]
