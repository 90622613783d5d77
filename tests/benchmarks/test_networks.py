"""Priors of the benchmarks: the one that learnt digits has learnt them, and comes with them."""

from __future__ import annotations

import torch

from rela_lightning import load_prior
from rela_lightning.data import Digits
from rela_lightning.probe import knn_predict


def nearest_is_right(prior) -> float:
    """Share of digits whose nearest among others, by the cosine, has their label."""
    parts = []
    for split, count in (("train", 300), ("test", 100)):
        digits = Digits(split)
        images = torch.stack([prior.preprocess(digits[row][0]) for row in range(count)])
        with torch.no_grad():
            parts.append((prior(images), torch.tensor(digits.targets[:count])))
    (there, known), (asked, labels) = parts
    return float((knn_predict(there, known, asked, k=1) == labels).float().mean())


def test_the_digits_prior_knows_digits(script) -> None:
    networks = script("networks")
    untrained = load_prior("random:lightly:resnet-9", width=0.25, image_size=32, mean=0.5, std=0.5, seed=0)
    assert nearest_is_right(networks.prior_of("digits")) > max(0.95, nearest_is_right(untrained))
    assert networks.DIGITS_PRIOR.stat().st_size < 1_000_000
