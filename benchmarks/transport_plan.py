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


def plan() -> list[Job]:
    """Jobs, first things first, each once."""
    found = [*runs(0, 1000, VIEWS), *runs(0, 1000, ["k0"], LOSSES), *runs(0, 1000, ["k0"], LOSSES, prior=RANDOM)]
    found += runs(0, 8000, ["k0"], ["cosine", "contrastive"])
    found += runs(0, 8000, ["k8", "k16", "nearest16", "blend16"])
    found += runs(0, 8000, ["k8", "blend16"], ["contrastive"])
    found += runs(0, 8000, ["k0"], ["cosine+relational"]) + runs(0, 8000, ["k4"]) + runs(0, 8000, ["online"])
    found += [job for kind in ("isotropic", "frozen", "rank") for job in runs(0, 1000, ["k0"], kind=kind)]
    found += [job for kind in ("isotropic", "frozen", "rank") for job in runs(0, 1000, ["k0"], kind=kind, prior=RANDOM)]
    found += runs(0, 1000, ["k0"], ["cosine", "contrastive"], batch=256)
    found += runs(0, 8000, ["k0"], ["cosine", "contrastive"], prior=RANDOM)
    for seed in (1, 2):
        found += runs(seed, 1000, VIEWS)
        found += runs(seed, 1000, ["k0"], LOSSES) + runs(seed, 1000, ["k0"], LOSSES, prior=RANDOM)
        found += runs(seed, 1000, ["k0"], ["cosine", "contrastive"], batch=256)
        found += runs(seed, 1000, ["k0"], kind="isotropic") + runs(seed, 1000, ["k0"], kind="frozen")
    for seed in (1, 2):
        found += runs(seed, 8000, ["k0"], ["cosine", "contrastive"])
        found += runs(seed, 8000, ["k8", "k16", "nearest16", "blend16"])
        found += runs(seed, 8000, ["k0"], ["cosine", "contrastive"], prior=RANDOM)
        found += runs(seed, 8000, ["online"])
    return [job for place, job in enumerate(found) if job not in found[:place]]
