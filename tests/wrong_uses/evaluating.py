"""Wrong uses of the probes and of export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rela_lightning import KNNProbe, OnlineLinearProbe, export_backbone
from rela_lightning.probe import extract_features, knn_predict, linear_evaluation
from tests.wrong_uses.place import Place
from tests.wrong_uses.place import WrongUse as Use

FEATURES, LABELS = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4


def pickled(place: Place) -> Path:
    """A checkpoint with an object in it."""
    path = place.folder / "objects.ckpt"
    torch.save({"state_dict": {}, "extra": nn.Linear(2, 2)}, path)
    return path


def export(place: Place, name: str = "backbone.safetensors", **options: Any) -> Any:
    """Export the backbone of a checkpoint."""
    return export_backbone(place.checkpoint, place.folder / name, **options)


def twice(place: Place) -> Any:
    """Export to one file, two times."""
    export(place, "twice.safetensors")
    return export(place, "twice.safetensors")


EVALUATING = [
    Use("more neighbours than there are", lambda p: knn_predict(FEATURES, LABELS, FEATURES, k=41, num_classes=4)),
    Use("no neighbours", lambda p: knn_predict(FEATURES, LABELS, FEATURES, k=0, num_classes=4)),
    Use("features of two widths", lambda p: knn_predict(FEATURES, LABELS, FEATURES[:, :2], k=5, num_classes=4)),
    Use("fewer labels than features", lambda p: linear_evaluation(FEATURES, LABELS[:9], FEATURES, LABELS)),
    Use("a solver that does not exist", lambda p: linear_evaluation(*2 * (FEATURES, LABELS), solver="newton")),
    Use("features of no images", lambda p: extract_features(nn.Flatten(), [])),
    Use(
        "a precision that does not exist",
        lambda p: extract_features(nn.Flatten(), [(FEATURES, LABELS)], precision="bf16"),
    ),
    Use("a pooling that no probe has", lambda p: KNNProbe(pooling="max")),
    Use("an online probe for one class", lambda p: OnlineLinearProbe(num_classes=1)),
    Use("an online probe that never runs", lambda p: KNNProbe(every_n_epochs=0)),
    Use("a checkpoint that is not there", lambda p: export_backbone("none.ckpt", "b.safetensors")),
    Use("a checkpoint that holds objects", lambda p: export_backbone(pickled(p), "b.safetensors")),
    Use("a submodule that the checkpoint does not have", lambda p: export(p, key="trunk")),
    Use("a format that does not exist", lambda p: export(p, format="pickle")),
    Use("a file that is there already", twice),
    Use("ONNX without an image size", lambda p: export(p, "b.onnx")),
]  # fmt: skip
