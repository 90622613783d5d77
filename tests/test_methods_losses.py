"""Each method's loss and gradients against a straight restatement from its paper, over a run of eight steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.test_methods_every import TEACHERS, batches, build, fit, optimizer

STEPS, EPOCHS, BATCH = 8, 2, 16
Memory = dict[str, Any]  # what a method remembers between steps, kept by the restatement itself


def unit(rows: Tensor) -> Tensor:
    return rows / rows.square().sum(dim=1, keepdim=True).sqrt()


def project(module: Any, images: Tensor) -> Tensor:
    return module.projector(module.backbone(images))


def taught(module: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return module.teacher_projector(module.teacher_backbone(images))


def simclr(module: Any, views: list[Tensor], memory: Memory, temperature: float = 0.5) -> Tensor:
    """Eq. 1 of arXiv 2002.05709, pair by pair."""
    z = unit(project(module, torch.cat(views)))
    n = len(views[0])
    total = torch.zeros(())
    for i in range(2 * n):
        others = [torch.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i]
        total = total - torch.log(torch.exp(z[i] @ z[(i + n) % (2 * n)] / temperature) / sum(others))
    return total / (2 * n)


def moco_v2(module: Any, views: list[Tensor], memory: Memory, temperature: float = 0.2) -> Tensor:
    """Eq. 1 of arXiv 1911.05722; the queue is a list, first in, first out."""
    queue = memory.setdefault("queue", list(module.queue.rows.clone()))
    q, k = unit(project(module, views[0])), unit(taught(module, views[1]))
    total = torch.zeros(())
    for query, key in zip(q, k, strict=True):
        negatives = sum(torch.exp(query @ other / temperature) for other in queue)
        positive = torch.exp(query @ key / temperature)
        total = total - torch.log(positive / (positive + negatives))
    queue.extend(k)
    del queue[: len(k)]
    return total / len(q)


def moco_v3(module: Any, views: list[Tensor], memory: Memory, temperature: float = 0.2) -> Tensor:
    """Algorithm 1 of arXiv 2104.02057."""
    q = [unit(module.predictor(project(module, view))) for view in views]
    k = [unit(taught(module, view)) for view in views]

    def contrast(queries: Tensor, keys: Tensor) -> Tensor:
        similar = torch.exp(queries @ keys.T / temperature)
        return 2 * temperature * -torch.log(similar.diagonal() / similar.sum(dim=1)).mean()

    return contrast(q[0], k[1]) + contrast(q[1], k[0])


def simsiam(module: Any, views: list[Tensor], memory: Memory) -> Tensor:
    """Algorithm 1 of arXiv 2011.10566."""
    z = [project(module, view) for view in views]
    p = [module.predictor(part) for part in z]
    return sum(-(unit(p[a]) * unit(z[b].detach())).sum(dim=1).mean() / 2 for a, b in ((0, 1), (1, 0)))


def barlow_twins(module: Any, views: list[Tensor], memory: Memory, weight: float = 5e-3) -> Tensor:
    """Eq. 1 and 2 of arXiv 2103.03230."""
    a, b = (z - z.mean(dim=0) for z in (project(module, view) for view in views))
    a, b = (z / (z.square().mean(dim=0) + 1e-5).sqrt() for z in (a, b))  # 1e-5: ours, against division by zero
    total = torch.zeros(())
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            c = (a[:, i] * b[:, j]).sum() / len(a)
            total = total + ((1 - c) ** 2 if i == j else weight * c**2)
    return total


def vicreg(module: Any, views: list[Tensor], memory: Memory) -> Tensor:
    """Eq. 1 to 6 of arXiv 2105.04906; its code's weights 25, 25, 1 are 25 / d, 25 / 2 and 1 in these equations."""
    z = [project(module, view) for view in views]
    n, d = z[0].shape

    def variance(rows: Tensor) -> Tensor:
        deviation = ((rows - rows.mean(dim=0)).square().sum(dim=0) / (n - 1) + 1e-4).sqrt()
        return torch.clamp(1 - deviation, min=0).sum() / d

    def covariance(rows: Tensor) -> Tensor:
        centred = rows - rows.mean(dim=0)
        matrix = sum(torch.outer(row, row) for row in centred) / (n - 1)
        return (matrix.square().sum() - matrix.diagonal().square().sum()) / d

    invariance = sum((a - b).square().sum() for a, b in zip(*z, strict=True)) / n
    return 25 / d * invariance + sum(25 / 2 * variance(part) + covariance(part) for part in z)


def dino(module: Any, views: list[Tensor], memory: Memory) -> Tensor:
    """Eq. 1 to 4 of arXiv 2104.14294 and its Algorithm 1, with the head and the temperatures spelled out."""
    centre = memory.setdefault("centre", torch.zeros(24))
    sharp = 0.04 if memory["step"] < STEPS // EPOCHS else 0.07  # warm-up over two epochs

    def head(projector: Any, features: Tensor) -> Tensor:
        directions = unit(projector.layers(features))
        return directions @ unit(projector.last_layer.weight).T

    sizes: dict[Any, list[Tensor]] = {}
    for view in views:
        sizes.setdefault(view.shape[2:], []).append(view)
    student = head(module.projector, torch.cat([module.backbone(torch.cat(same)) for same in sizes.values()]))
    with torch.no_grad():
        teacher = head(module.teacher_projector, module.teacher_backbone(torch.cat(views[:2])))
    s, t = student.chunk(len(views)), teacher.chunk(2)
    terms = [
        -(torch.softmax((t[i] - centre) / sharp, dim=1) * torch.log(torch.softmax(s[j] / 0.1, dim=1))).sum(dim=1).mean()
        for i in range(2)
        for j in range(len(views))
        if i != j
    ]
    memory["centre"] = 0.9 * centre + 0.1 * teacher.mean(dim=0)
    return sum(terms) / len(terms)


def sinkhorn(scores: np.ndarray, epsilon: float = 0.05, iterations: int = 3) -> np.ndarray:
    """Listing 1 of arXiv 2006.09882: rows are made to sum to 1 / K, then columns to 1 / B."""
    codes = np.exp(scores / epsilon).T
    codes /= codes.sum()
    prototypes, rows = codes.shape
    for _ in range(iterations):
        codes *= (1 / prototypes / codes.sum(axis=1))[:, None]
        codes *= (1 / rows / codes.sum(axis=0))[None, :]
    return (codes / codes.sum(axis=0, keepdims=True)).T


def swav(module: Any, views: list[Tensor], memory: Memory) -> Tensor:
    """Eq. 2, eq. 3 and section 3.3 of arXiv 2006.09882; the queue holds the last 48 projections of a global crop."""
    with torch.no_grad():
        module.prototypes.weight.copy_(unit(module.prototypes.weight))
    queues = memory.setdefault("queues", [[], []])
    sizes: dict[Any, list[Tensor]] = {}
    for view in views:
        sizes.setdefault(view.shape[2:], []).append(view)
    features = torch.cat([module.backbone(torch.cat(same)) for same in sizes.values()])
    z = unit(module.projector(features)).chunk(len(views))
    scores = [part @ module.prototypes.weight.T for part in z]
    total = torch.zeros(())
    for i in range(2):
        earlier = queues[i][-48:] if module.queue is not None and memory["step"] >= STEPS // EPOCHS else []
        assigned = torch.stack([*z[i], *earlier]).detach() @ module.prototypes.weight.detach().T
        q = torch.from_numpy(sinkhorn(assigned.numpy()))[: len(z[i])]
        for j in range(len(views)):
            if j != i:
                cross = -(q * torch.log(torch.softmax(scores[j] / 0.1, dim=1))).sum(dim=1).mean()
                total = total + cross / (len(views) - 1) / 2
    for queue, part in zip(queues, z, strict=False):
        queue.extend(part.detach())
    return total


def supervised(module: Any, views: list[Tensor], memory: Memory) -> Tensor:
    logits = module.classifier(module.backbone(torch.cat(views)))
    labels = memory["labels"].repeat(2)
    return -torch.log(torch.softmax(logits, dim=1))[torch.arange(len(labels)), labels].mean()


PAPERS: dict[str, Callable[..., Tensor]] = {
    "SimCLR": simclr, "MoCoV2": moco_v2, "MoCoV3": moco_v3, "SimSiam": simsiam, "BarlowTwins": barlow_twins,
    "VICReg": vicreg, "DINO": dino, "DINO, crops": dino, "SwAV": swav, "SwAV, crops and queue": swav,
    "Supervised": supervised,
}  # fmt: skip
OPTIONS = {"DINO": {"warmup_teacher_epochs": 2}, "DINO, crops": {"warmup_teacher_epochs": 2}}
CLOSE = {"rtol": 1e-6, "atol": 1e-8}  # lightly keeps DINO's temperatures in float32


class Compare(L.Callback):
    """Restates each step on a copy: teacher, loss, gradients."""

    def __init__(self, name: str) -> None:
        self.name, self.memory, self.losses = name, {"step": 0}, []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.twin = copy.deepcopy(module)
        if self.name in TEACHERS:
            end = 0.9 if self.name == "MoCoV2" else 1.0
            m = end - (end - 0.9) * (1 + math.cos(math.pi * self.memory["step"] / (STEPS - 1))) / 2
            with torch.no_grad():
                for part in ("backbone", "projector"):
                    student, teacher = getattr(self.twin, part), getattr(self.twin, f"teacher_{part}")
                    for theta, xi in zip(student.parameters(), teacher.parameters(), strict=True):
                        xi.copy_(m * xi + (1 - m) * theta)
        self.memory["labels"] = batch[1]
        self.loss = PAPERS[self.name](self.twin, batch[0], self.memory)
        self.loss.backward()

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        for (name, ours), paper in zip(module.named_parameters(), self.twin.parameters(), strict=True):
            if name.startswith("teacher_"):
                torch.testing.assert_close(ours, paper)
            elif ours.requires_grad:
                torch.testing.assert_close(ours.grad, paper.grad, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        assert outputs["loss"].item() == pytest.approx(self.loss.item(), rel=1e-6)
        self.losses.append(self.loss.item())
        self.memory["step"] += 1


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_loss_and_gradients_are_the_papers(name: str) -> None:
    options = {**OPTIONS.get(name, {}), **({"momentum": 0.9} if name in TEACHERS else {})}
    module, compare = build(name, optimizer=optimizer, **options), Compare(name)
    fit(module, batches(name, STEPS // EPOCHS * BATCH, BATCH), compare, max_epochs=EPOCHS, precision="64-true")
    assert len(set(compare.losses)) == STEPS
    if name == "MoCoV2":
        assert sorted(module.queue.rows[:, 0].tolist()) == pytest.approx(
            sorted(key[0].item() for key in compare.memory["queue"])
        )


@pytest.mark.parametrize("unused", ["queue_start", "size"])
def test_swav_without_a_full_queue_is_swav_without_a_queue(unused: str) -> None:
    """A queue that is due but not full stays out: at the switch from transport to SSL it holds random rows."""
    name, runs = "SwAV, crops and queue", []
    late = {"queue_start": 9} if unused == "queue_start" else {"queue_start": 0, "queue_size": 1000}
    for options in (late, {"queue_size": 0}):
        module = build(name, optimizer=optimizer, **options)
        fit(module, batches(name, 64, 16), max_epochs=2)
        runs.append({k: v for k, v in module.state_dict().items() if not k.startswith("queue")})
    torch.testing.assert_close(*runs, rtol=0, atol=0)
