"""How well stored views speak for a free crop: the cosine of what they say with what the prior says of that crop."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from common import header
from convergence import private_paths
from images import load_splits
from journal import without_paths
from torch import Tensor
from transport_store import Labelled
from transport_views import overlap

FILE = "transport_agreement.json"
HELD_OUT = 4
"""Crops that play the free ones."""
TEMPERATURES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, math.inf)
MIRRORED = (0.0, 0.05, 0.1, 0.2, math.inf)
"""What an equal mirror adds to the overlap: nothing, something, or everything."""


def agreement(targets: Tensor, boxes: Tensor, stored: int) -> dict[str, float]:
    """Mean cosine with the targets of the last `HELD_OUT` views, by way of answering for them.

    Args:
        targets: `[N, V, D]`, view 0 of the whole image.
        boxes: `[N, V, 5]`.
        stored: Crops that may be used, besides the whole image.
    """
    known, places, rows = targets[:, : stored + 1], boxes[:, : stored + 1], torch.arange(len(targets))
    found: dict[str, list[float]] = {}
    for held in range(targets.shape[1] - HELD_OUT, targets.shape[1]):
        shared = overlap(boxes[:, held], places)
        equal = (places[..., 4] == boxes[:, held, None, 4]).float()
        answers = {"whole image": known[:, 0]}
        for bonus in MIRRORED:
            score = shared + (equal * min(bonus, 9.0))
            answers[f"nearest, equal mirror +{bonus:g}"] = known[rows, score.argmax(dim=1)]
        for temperature in TEMPERATURES:
            weights = (shared / temperature).softmax(dim=1)
            answers[f"blend, temperature {temperature:g}"] = (weights[:, :, None] * known).sum(dim=1)
        for name, answer in answers.items():
            found.setdefault(name, []).append(float(F.cosine_similarity(answer, targets[:, held], dim=1).mean()))
    return {name: round(sum(values) / HELD_OUT, 4) for name, values in found.items()}


def agree(options: argparse.Namespace, results: Path) -> None:
    """Print and keep the agreement for each prior and 2, 4, 8 and 12 stored crops."""
    train = load_splits(options.data, options.data_root, options.images).train
    head = header()
    head["command"] = without_paths(head["command"], private_paths(options))
    made: dict[str, dict[str, float]] = {}
    for prior in options.priors:
        labelled = Labelled(options.data_root, options.data, train, prior)
        views = 1 + 12 + HELD_OUT
        targets, _ = labelled.targets(views - 1, "per_dim")
        boxes = torch.stack([labelled.boxes(view) for view in range(views)], dim=1)
        for stored in (2, 4, 8, 12):
            made[f"{options.data}/{prior}/{stored}"] = agreement(targets, boxes, stored)
            print(prior, stored, made[f"{options.data}/{prior}/{stored}"], flush=True)
    (results / FILE).write_text(json.dumps({**made, "made": head}, indent=2) + "\n")
