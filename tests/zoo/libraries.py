"""Modules in the manner of other libraries: solo-learn's base class, stable-pretraining's forward function."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.utils.lars import LARS
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.case import zoo
from tests.zoo.data import multi_crop, two_views
from tests.zoo.networks import DIM, VIT_DIM, cnn, timm_vit

SOLO = "In the manner of solo-learn"
STABLE = "In the manner of stable-pretraining"


class BaseMethod:
    """Runs the backbone on every view, trains an online classifier, leaves the loss to subclasses."""

    large = 2

    def __init__(self) -> None:
        super().__init__()
        self.backbone = cnn()
        self.classifier = nn.Linear(DIM, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        feats = self.backbone(x)
        return {"feats": feats, "logits": self.classifier(feats.detach())}

    def _shared_step(self, views: list[Tensor], targets: Tensor) -> dict[str, Any]:
        outs = [self.forward(view) for view in views]
        merged: dict[str, Any] = {key: [out[key] for out in outs] for key in outs[0]}
        merged["class_loss"] = sum(F.cross_entropy(logits, targets) for logits in merged["logits"]) / len(views)
        return merged

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        _, views, targets = batch
        outs = self._shared_step(views[: self.large], targets)
        outs["loss"] = outs["class_loss"]
        self.log_dict({"train_class_loss": outs["class_loss"]}, on_epoch=True)
        return outs

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        return [
            {"name": "backbone", "params": self.backbone.parameters()},
            {"name": "classifier", "params": self.classifier.parameters(), "lr": 0.1, "weight_decay": 0},
        ]

    def configure_optimizers(self) -> Any:
        optimizer = LARS(self.learnable_params, lr=0.1, weight_decay=1e-4)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])]


SOLO_BATCH: dict[str, Any] = {"views": two_views, "wrap": lambda views, label, row: (row, views, label)}


@zoo("Barlow Twins, own loss added to the base class's", SOLO, batch="[index, [v0, v1], label]", **SOLO_BATCH)
class SoloBarlow(BaseMethod):
    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.ReLU(), nn.Linear(DIM, DIM))
        self.criterion = BarlowTwinsLoss()

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        return [*super().learnable_params, {"name": "projector", "params": self.projector.parameters()}]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outs = super().training_step(batch, batch_idx)
        z0, z1 = (self.projector(feats) for feats in outs["feats"])
        return self.criterion(z0, z1) + outs["class_loss"]


@zoo(
    "BYOL, teacher in on_train_batch_end",
    SOLO,
    batch="[index, [v0, v1], label]",
    teachers=("momentum_backbone", "momentum_projector"),
    **SOLO_BATCH,
)
class SoloBYOL(BaseMethod):
    """The momentum update is the module's own and runs in every phase."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.ReLU(), nn.Linear(DIM, 8))
        self.predictor = nn.Linear(8, 8)
        self.momentum_backbone, self.momentum_projector = cnn(), copy.deepcopy(self.projector)
        self.momentum_backbone.load_state_dict(self.backbone.state_dict())
        self.momentum_backbone.requires_grad_(False)
        self.momentum_projector.requires_grad_(False)
        self.criterion = NegativeCosineSimilarity()

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        heads = [*self.projector.parameters(), *self.predictor.parameters()]
        return [*super().learnable_params, {"name": "heads", "params": heads}]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outs = super().training_step(batch, batch_idx)
        views = batch[1]
        p0, p1 = (self.predictor(self.projector(feats)) for feats in outs["feats"])
        with torch.no_grad():
            z0, z1 = (self.momentum_projector(self.momentum_backbone(view)) for view in views)
        return {"loss": self.criterion(p0, z1) + self.criterion(p1, z0) + outs["class_loss"], "feats": outs["feats"]}

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for student, teacher in (
            (self.backbone, self.momentum_backbone),
            (self.projector, self.momentum_projector),
        ):
            for mine, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
                theirs.lerp_(mine, 0.01)


@zoo(
    "SimCLR, local crops unused",
    SOLO,
    batch="[index, 2 global + 2 local crops, label]",
    views=multi_crop,
    wrap=lambda views, label, row: (row, views, label),
)
class SoloSimCLR(BaseMethod):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = NTXentLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outs = super().training_step(batch, batch_idx)
        return self.criterion(*outs["feats"]) + outs["class_loss"]


def simclr_forward(self: Any, batch: Any, stage: str) -> dict[str, Any]:
    """A forward function as users hand it in: the module is `self`, the batch a list of dicts."""
    embeddings = [self.backbone(view["image"]) for view in batch["views"]]
    loss = self.criterion(*(self.projector(embedding) for embedding in embeddings))
    return {"embedding": torch.cat(embeddings), "loss": loss}


class ForwardFunctionModule:
    """Manual optimization around a forward function that was passed in, submodules by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        for name, part in self.parts().items():
            setattr(self, name, part)
        self.forward = simclr_forward.__get__(self)

    def parts(self) -> dict[str, nn.Module]:
        return {"backbone": cnn(), "projector": nn.Linear(DIM, 8), "criterion": NTXentLoss()}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        state = self.forward(batch, "fit")
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(state["loss"])
        for optimizer in optimizers:
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()
        return state

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


STABLE_BATCH: dict[str, Any] = {
    "batch": '{"views": [{"image", "label"}, ...]}',
    "views": two_views,
    "wrap": lambda views, label, row: {"views": [{"image": view, "label": label} for view in views]},
    "swaps": True,
}


@zoo("forward function, manual optimization", STABLE, **STABLE_BATCH)
class OneOptimizer(ForwardFunctionModule):
    pass


@zoo("two optimizers, manual optimization", STABLE, **STABLE_BATCH)
class TwoOptimizers(ForwardFunctionModule):
    def configure_optimizers(self) -> Any:
        return [
            torch.optim.AdamW(self.backbone.parameters(), lr=1e-3),
            torch.optim.SGD(self.projector.parameters(), lr=1e-2),
        ]


class StudentAndTeacher(nn.Module):
    """A wrapper that holds both and answers for the teacher; a step calls one or the other by a method."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, copy.deepcopy(student)
        self.teacher.requires_grad_(False)
        self.register_buffer("momentum", torch.tensor(0.99))

    def forward_student(self, images: Tensor) -> Tensor:
        return self.student(images)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.teacher(images)

    @torch.no_grad()
    def follow(self) -> None:
        for mine, theirs in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
            theirs.lerp_(mine, 1.0 - float(self.momentum))


WRAPPED: dict[str, Any] = {"called": "backbone.student", "teachers": ("backbone.teacher",)}


def byol_forward(self: Any, batch: Any, stage: str) -> dict[str, Any]:
    views = [view["image"] for view in batch["views"]]
    first, second = (self.predictor(self.projector(self.backbone.forward_student(view))) for view in views)
    targets = [self.projector(self.backbone(view)).detach() for view in views]
    self.backbone.follow()
    return {"loss": self.criterion(first, targets[1]) + self.criterion(second, targets[0])}


@zoo("student and teacher in one wrapper, manual optimization", STABLE, **STABLE_BATCH, **WRAPPED)
class Wrapper(ForwardFunctionModule):
    def __init__(self) -> None:
        super().__init__()
        self.forward = byol_forward.__get__(self)

    def parts(self) -> dict[str, nn.Module]:
        heads = {"projector": nn.Linear(DIM, 8), "predictor": nn.Linear(8, 8)}
        return {"backbone": StudentAndTeacher(cnn()), **heads, "criterion": NegativeCosineSimilarity()}


@zoo(
    "student and teacher in one wrapper, automatic optimization",
    STABLE,
    **{**STABLE_BATCH, "swaps": False},
    **WRAPPED,
)
class WrapperAutomatic(Wrapper):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = True

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.forward(batch, "fit")


OWN: dict[str, Any] = {"own_forward": True}


@zoo(
    "I-JEPA that calls patch_embed and blocks one by one, manual optimization",
    STABLE,
    **STABLE_BATCH,
    **WRAPPED,
    needs={"switch": [OWN], "mix": [OWN]},
    note="no call of the whole network can be heard, so it is called once more",
)
class PartByPart(ForwardFunctionModule):
    """The context is made of some of the tokens, the targets of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.predict_tokens

    def parts(self) -> dict[str, nn.Module]:
        return {"backbone": StudentAndTeacher(timm_vit()), "predictor": nn.Linear(VIT_DIM, VIT_DIM)}

    def encode(self, vit: Any, images: Tensor, kept: Tensor) -> Tensor:
        tokens = (vit.patch_embed(images) + vit.pos_embed[:, 1:])[:, kept]
        for block in vit.blocks:
            tokens = block(tokens)
        return vit.norm(tokens)

    def predict_tokens(self, batch: Any, stage: str) -> dict[str, Any]:
        images = batch["views"][0]["image"]
        kept = torch.randperm(16)[:8]
        with torch.no_grad():
            targets = self.encode(self.backbone.teacher, images, torch.arange(16))[:, kept]
        loss = F.smooth_l1_loss(self.predictor(self.encode(self.backbone.student, images, kept)), targets)
        self.backbone.follow()
        return {"loss": loss}
