"""How good are the features? Linear probes, kNN, few labels; in a run, after it, or on cached features."""

from __future__ import annotations

from rela_lightning.probe.extract import extract_features
from rela_lightning.probe.knn import knn_predict
from rela_lightning.probe.knn_online import KNNProbe
from rela_lightning.probe.linear import LinearProbe
from rela_lightning.probe.offline import few_label_evaluation, linear_evaluation
from rela_lightning.probe.online import OnlineLinearProbe

__all__ = [
    "KNNProbe",
    "LinearProbe",
    "OnlineLinearProbe",
    "extract_features",
    "few_label_evaluation",
    "knn_predict",
    "linear_evaluation",
]
