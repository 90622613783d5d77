"""One run of the transport phase: views and targets of each batch, the steps, and the probe."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from convergence import accuracy, now
from images import Splits
from networks import build
from torch import Tensor
from transport_costs import steps_of
from transport_store import Labelled
from transport_views import Colours, draw_boxes, normalise, overlap, render

from rela_lightning.losses import NAMED, Loss, WeightedSum
from rela_lightning.targets.reduce import project
from rela_lightning.transport import LinearTransport

TEMPERATURE = 0.1
"""Of the weights of `blend`, the softmax of overlap / temperature: at this value the mean comes closest to a crop's own
target, by the cosine, for crops held out."""


class Feed:
    """Views and targets of a batch, by the name of the view.

    Args:
        labelled: The images with what the prior says of them.
        view: `k0`, `k8`, `nearest8`, `blend8`, `mean8`, `online`, `online_jitter`.
        kind: Kind of targets.
        seed: Seed of boxes, choices and colours.
    """

    def __init__(self, labelled: Labelled, view: str, kind: str, seed: int) -> None:
        self.labelled, self.images = labelled, labelled.images
        self.way, self.crops = re.fullmatch(r"([a-z_]+?)(\d*)", view).groups()  # type: ignore[union-attr]
        self.crops = int(self.crops or 0)
        self.targets, self.projection = labelled.targets(self.crops, kind)
        self.boxes = torch.stack([labelled.boxes(v) for v in range(1 + self.crops)], dim=1)
        self.generator = torch.Generator().manual_seed(seed)
        self.colours = Colours()

    def __call__(self, rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Views `[B, 3, size, size]`, normalised, and targets `[B, D]` of some rows."""
        images = self.images[rows].float() / 255
        if self.way == "k" and self.crops:
            chosen = torch.randint(1, 1 + self.crops, (len(rows),), generator=self.generator)
            boxes, targets = self.boxes[rows, chosen], self.targets[rows, chosen]
        else:
            boxes = draw_boxes(len(rows), images.shape[-1], self.generator)
            targets = self.mixed(rows, boxes)
        crops = render(images, boxes, size)
        coloured = self.colours(crops)
        if self.way.startswith("online"):
            prior, seen = self.labelled.network, coloured if self.way == "online_jitter" else crops
            targets = project(prior(prior.preprocess(seen)), self.projection)
        return normalise(coloured).contiguous(memory_format=torch.channels_last), targets

    def mixed(self, rows: Tensor, boxes: Tensor) -> Tensor:
        """Targets `[B, D]` of free crops, from the stored views of their images."""
        if self.crops == 0:
            return self.targets[rows, 0]
        shared = overlap(boxes, self.boxes[rows])
        if self.way == "nearest":
            return self.targets[rows, shared.argmax(dim=1)]
        weights = (shared / (math.inf if self.way == "mean" else TEMPERATURE)).softmax(dim=1)
        return (weights[:, :, None] * self.targets[rows]).sum(dim=1)


def loss_of(text: str) -> Loss:
    """`cosine`, `contrastive@0.2`, `cosine+0.5*relational`."""
    parts = []
    for part in text.split("+"):
        weight, _, name = part.rpartition("*")
        name, _, option = name.partition("@")
        maker: Any = NAMED[name]
        parts.append((float(weight or 1.0), maker(float(option)) if option else maker()))
    return WeightedSum(parts)


def batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Rows of batch after batch, every row once an epoch, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator)[: count // size * size].split(size)


def learning_rate(step: int, steps: int) -> float:
    """Share of the learning rate: up over a tenth of the steps (100 at most), then down half a cosine wave."""
    warm = max(1, min(100, steps // 10))
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, steps - warm))))


class Phase:
    """The network, the map W and their optimizers, a step at a time.

    Args:
        job: `seed`, `view`, `loss`, `kind`, `batch`, `lr`, `resolution`.
        labelled: The images with what the prior says of them.
    """

    def __init__(self, job: dict[str, Any], labelled: Labelled) -> None:
        seed = job["seed"]
        self.feed = Feed(labelled, job["view"], job["kind"], seed)
        self.module: Any = build("byol", {"lr": job["lr"], "momentum": 0.99}, seed)
        self.backbone = self.module.backbone.train().to(memory_format=torch.channels_last)
        self.rows = batches(len(labelled.images), job["batch"], seed)
        width = self.backbone(torch.zeros(2, 3, 32, 32)).flatten(1).shape[1]
        self.map = LinearTransport(width, self.feed.targets.shape[2], seed=seed)
        self.map.requires_grad_(job["kind"] != "frozen")
        self.loss, self.resolution = loss_of(job["loss"]), job["resolution"]
        self.lr = job["lr"]
        groups = [self.backbone.parameters(), self.map.parameters()]
        self.optimizers = [torch.optim.AdamW(part, lr=1e-3, weight_decay=1e-2, fused=True) for part in groups]
        torch.manual_seed(seed)

    def step(self, progress: float, rate: float) -> float:
        """One optimizer step; the loss."""
        size = self.resolution if progress < 0.75 else 32
        views, targets = self.feed(next(self.rows), size)
        loss = self.loss(self.map(self.backbone(views).flatten(1)), targets)
        self.optimizers[0].param_groups[0]["lr"] = self.lr * rate
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return float(loss.detach())


def trained(job: dict[str, Any], labelled: Labelled, steps: int) -> tuple[Any, dict[str, Any]]:
    """The module after the steps, and what they took."""
    phase, losses = Phase(job, labelled), []
    begun = now()
    for step in range(steps):
        losses.append(phase.step(step / steps, learning_rate(step, steps)))
    spent = (now() - begun) / steps
    last = losses[-max(1, steps // 20) :]
    return phase.module, {"steps_made": steps, "step_seconds": round(spent, 5), "last_loss": sum(last) / len(last)}


def train_and_probe(
    job: dict[str, Any], labelled: Labelled, splits: Splits, root: Path, results: Path
) -> dict[str, Any]:
    """Accuracies of a run, on the split it names; a network trained before is not trained again."""
    name = json.dumps({key: value for key, value in sorted(job.items()) if key != "split"})
    kept = root / ".transport-backbones" / f"{hashlib.sha1(name.encode()).hexdigest()[:16]}.pt"
    if kept.exists():
        known = torch.load(kept, weights_only=True)
        module, made = build("byol", {"lr": job["lr"], "momentum": 0.99}, job["seed"]), known["made"]
        module.backbone.load_state_dict(known["backbone"])  # type: ignore[union-attr]
    else:
        module, made = trained(job, labelled, steps_of(job, results))
        kept.parent.mkdir(exist_ok=True)
        torch.save({"backbone": module.backbone.state_dict(), "made": made, "job": job}, kept)
    return {**made, **accuracy(module, splits.train, splits.test if job["split"] == "test" else splits.validation)}
