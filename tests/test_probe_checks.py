"""Every probe asks the same of features and labels: finite, integer, paired; rows without a label are left out."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rela_lightning import KNNProbe, LinearProbe, OnlineLinearProbe
from rela_lightning.errors import DataError
from rela_lightning.probe import few_label_evaluation, knn_predict, linear_evaluation

G = torch.Generator().manual_seed(0)
CENTRES = 3 * torch.randn(3, 8, generator=G)
Y = torch.arange(90) % 3
X = CENTRES[Y] + torch.randn(90, 8, generator=G)
TEST_Y = torch.arange(60) % 3
TEST_X = CENTRES[TEST_Y] + torch.randn(60, 8, generator=G)


def accuracy(features: Any, labels: Any, test: Any, truth: Any) -> float:
    return float((knn_predict(features, labels, test, k=5) == torch.as_tensor(truth)).double().mean())


PROBES = {
    "knn": accuracy,
    "linear": lambda *parts: linear_evaluation(*parts, solver="lbfgs")["top1"],
    "adam": lambda *parts: linear_evaluation(*parts, epochs=3)["top1"],
    "few": lambda *parts: few_label_evaluation(*parts, labels_per_class=5, folds=2)["top1_mean"],
}


@pytest.mark.parametrize("name", PROBES)
def test_arrays_and_unlabelled_rows(name: str) -> None:
    probe = PROBES[name]
    plain = probe(X, Y, TEST_X, TEST_Y)
    assert probe(X.numpy(), Y.numpy(), TEST_X.numpy(), TEST_Y.numpy()) == plain
    assert probe(X.double(), Y.int(), TEST_X.half().float(), TEST_Y) == pytest.approx(plain, abs=0.05)
    some = torch.where(torch.arange(90) % 5 == 0, -1, Y)
    assert probe(X, some, TEST_X, TEST_Y) == probe(X[some >= 0], Y[some >= 0], TEST_X, TEST_Y)


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.where(torch.arange(90)[:, None] == 7, torch.nan, X)}, "1 of 90 rows, the first is row 7"),
        ({0: np.where(np.arange(90)[:, None] == 7, np.inf, X.numpy())}, "1 of 90 rows, the first is row 7"),
        ({2: TEST_X * torch.nan}, "60 of 60 rows"),
        ({1: Y.float()}, r"integer labels \[N\]"),
        ({1: Y[:-1]}, "do not pair up"),
        ({1: torch.full_like(Y, -1)}, "has a label"),
        ({0: X[0]}, "have no rows"),
    ],
)
def test_what_no_probe_can_use_is_refused(name: str, change: dict[int, Any], message: str) -> None:
    parts = [X, Y, TEST_X, TEST_Y]
    for place, value in change.items():
        parts[place] = value
    with pytest.raises(DataError, match=message):
        PROBES[name](*parts)


class Diverged(L.LightningModule):
    """A backbone whose weights are not numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
        nn.init.constant_(self.backbone[1].weight, float("nan"))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.backbone(batch[0]).nan_to_num().sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("loaders", [1, 2])
def test_a_backbone_that_diverged_has_no_accuracy(loaders: int) -> None:
    data = TensorDataset(torch.rand(48, 3, 8, 8), torch.arange(48) % 3)
    probes = [KNNProbe(k=3), OnlineLinearProbe(num_classes=3)]
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=probes,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(Diverged(), DataLoader(data, 16), [DataLoader(data, 16)] * loaders)
    for name in ("knn/top1", "probe/top1", "probe/train_top1", "probe/loss"):
        assert trainer.callback_metrics[name].isnan(), name
    assert any("diverged" in str(warning.message) for warning in said)


def test_an_offline_probe_of_it_is_refused() -> None:
    probe = LinearProbe(Diverged().backbone, 3, feature_dim=4)
    with pytest.raises(DataError, match="backbone's features hold NaN"):
        probe(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e22, 1e30])
def test_a_vote_goes_by_directions_at_any_size_of_features(size: float) -> None:
    plain = knn_predict(X, Y, TEST_X, k=5)
    assert (knn_predict(X * size, Y, TEST_X * size, k=5) == plain).all()


@pytest.mark.parametrize("name", PROBES)
def test_widths_and_types_of_both_parts(name: str) -> None:
    probe = PROBES[name]
    with pytest.raises(DataError, match="do not pair up"):
        probe(X, Y, TEST_X[:, :4], TEST_Y)
    with pytest.raises(DataError, match="complex"):
        probe(X.to(torch.complex64), Y, TEST_X, TEST_Y)
    with pytest.raises(DataError, match="labels are no numbers"):
        probe(X, ["a"] * len(X), TEST_X, TEST_Y)
    assert probe(X, Y.numpy().astype(np.uint16), TEST_X, TEST_Y) == probe(X, Y, TEST_X, TEST_Y)
