"""Batches and options that a method takes, and those it refuses; the supervised method's labels."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from rela_lightning.errors import ConfigError, DataError
from tests.test_methods import IMAGES, LABELS, QUIET
from tests.test_methods_every import METHODS, batches, build, fit, optimizer

V, S = IMAGES[:4], IMAGES[:4, :, :6, :6]
TWO = [name for name in METHODS if METHODS[name][0] not in ("DINO", "SwAV", "Supervised", "FineTune")]


@pytest.mark.parametrize("batch", [V, (V, LABELS[:4]), [V], ([V, V, V], 0), (V, V, V), [V, V[:2]], [V, S], {"a": V}, [],
                                   (V.byte(), V.byte())])  # fmt: skip
@pytest.mark.parametrize("name", TWO)
def test_pairs_are_needed(name: str, batch: Any) -> None:
    with pytest.raises(DataError, match=f"{name} needs two views of each image"):
        build(name).training_step(batch, 0)


@pytest.mark.parametrize("batch", [V, (V, LABELS[:4]), [V], ([V, S], 0), ([V, V, S[:2]], 0), ([V, V, LABELS[:4]], 0)])
@pytest.mark.parametrize("name", ["DINO", "SwAV"])
def test_two_large_views_are_needed(name: str, batch: Any) -> None:
    with pytest.raises(DataError, match=f"{name} needs two views or more of each image"):
        build(name).training_step(batch, 0)


class Stream(IterableDataset):
    """Two batches, one sample after another; nobody knows how many there are."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return (self.rows[number] for number in range(32))


@pytest.mark.parametrize("name", METHODS)
def test_a_stream_over_planned_epochs(name: str) -> None:
    module = build(name)
    before = [p.detach().clone() for p in module.backbone.parameters()]
    trainer = fit(module, DataLoader(Stream(batches(name).dataset), batch_size=16), max_epochs=2)
    assert trainer.global_step == 4
    assert not any(torch.equal(old, new) for old, new in zip(before, module.backbone.parameters(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_one_image(name: str) -> None:
    module, data = build(name), batches(name, 1, 1)
    if name in ("DINO", "MoCoV2", "Supervised", "FineTune"):
        fit(module, data)
        return
    with pytest.raises(DataError, match="drop_last"):
        fit(module, data)


@pytest.mark.parametrize("batch", [(V, LABELS[:4]), ([V, V], LABELS[:4]), (V, V, LABELS[:4]), ((V, S), LABELS[:4], 7)])
def test_supervised_classifies_every_view(batch: Any) -> None:
    module = build("Supervised", labels="auto", label_smoothing=0.2).eval()
    module.log = lambda *args, **kwargs: None
    views = batch[0] if isinstance(batch[0], (list, tuple)) else [part for part in batch if part.ndim == 4]
    log_q = torch.cat([module.classifier(module.backbone(view)).log_softmax(dim=1) for view in views])
    p = (0.8 * torch.eye(10)[LABELS[:4]] + 0.02).repeat(len(views), 1)
    torch.testing.assert_close(module.training_step(batch, 0), -(p * log_q).sum(dim=1).mean())


def test_supervised_validates_on_labels() -> None:
    module = build("Supervised", labels="auto", optimizer=optimizer)
    val = DataLoader(TensorDataset(IMAGES[:100], LABELS[:100]), batch_size=30)
    trainer = L.Trainer(max_epochs=2, **QUIET)
    trainer.fit(module, DataLoader(TensorDataset(IMAGES[:256], LABELS[:256]), batch_size=32), val)
    logits = module.classifier(module.eval()(IMAGES[:100]))
    found = trainer.callback_metrics
    assert found["val_top1"].item() == pytest.approx((logits.argmax(dim=1) == LABELS[:100]).float().mean().item())
    assert found["val_loss"].item() == pytest.approx(torch.nn.functional.cross_entropy(logits, LABELS[:100]).item())


def test_supervised_validates_on_the_last_loader_only() -> None:
    """Loaders before it are banks for kNN: their rows are no part of `val_top1`."""
    model = build("Supervised").eval()
    bank, queries = (DataLoader(TensorDataset(V[:4], torch.full((4,), label)), batch_size=4) for label in (0, 1))
    validated = L.Trainer(**QUIET).validate(model, [bank, queries], verbose=False)
    alone = L.Trainer(**QUIET).validate(model, queries, verbose=False)
    both = {name: value for part in validated for name, value in part.items()}
    assert both == pytest.approx(alone[0])


@pytest.mark.parametrize(
    ("options", "batch", "text"),
    [
        ({}, (V, torch.tensor([0, 1, 10, 2])), "0 to 9"),
        ({}, (V, torch.tensor([0, -1, 3, 2])), "found:    -1 to 3"),
        ({"labels": "auto"}, (V, torch.tensor([0, 1, 10, 2])), "values below num_classes=10"),
        ({}, (LABELS[:4], V), "needs a view"),
        ({}, [V], "does not name the labels"),
    ],
)
def test_supervised_refuses(options: Any, batch: Any, text: str) -> None:
    with pytest.raises((DataError, ConfigError), match=text):
        build("Supervised", **options).training_step(batch, 0)


BAD = {
    "BYOL": [{"projector_dim": 0}, {"hidden_dim": -1}, {"momentum": 1.5}, {"momentum_end": -0.1}],
    "DINO": [{"output_dim": 0}, {"student_temperature": 0.0}, {"teacher_temperature": -1.0}],
    "SimCLR": [{"temperature": 0.0}, {"projector_layers": 1}],
    "MoCoV2": [{"queue_size": 0}, {"temperature": float("nan")}, {"momentum": 2.0}],
    "MoCoV3": [{"temperature": 0.0}, {"projector_layers": 1}],
    "SimSiam": [{"projector_dim": 0}, {"hidden_dim": 0}],
    "BarlowTwins": [{"projector_dim": 0}, {"redundancy_weight": 0.0}],
    "VICReg": [{"projector_dim": 0}, {"invariance_weight": 0.0}, {"projector_layers": 1}],
    "SwAV": [{"num_prototypes": 0}, {"epsilon": 0.011}, {"queue_size": -1}, {"sinkhorn_iterations": 0}],
    "Supervised": [{"num_classes": 1}, {"label_smoothing": 1.0}],
    "FineTune": [{"num_classes": 1}, {"backbone_rate": 0.0}],
}


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in BAD for options in BAD[name]])
def test_bad_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        build(name, **options)


@pytest.mark.parametrize("name", ["DINO, crops", "SwAV, crops and queue"])
def test_small_crops_through_a_vision_transformer(name: str) -> None:
    options = {"img_size": 32, "patch_size": 8, "depth": 2, "dynamic_img_size": True}
    module = build(name, "timm:vit_tiny_patch16_224", backbone_kwargs=options)
    large, small = torch.nn.functional.interpolate(IMAGES[:4], 32), torch.nn.functional.interpolate(IMAGES[:4], 16)
    trainer = fit(module, DataLoader([([large, large.flip(-1), small, small.flip(-1)], 0)], batch_size=None))
    assert trainer.callback_metrics["train_loss"].isfinite()
