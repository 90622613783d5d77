"""How good are the features? Linear probes, kNN, few labels; in a run, after it, or on cached features.

Names are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rela_lightning._lazy import lazy

if TYPE_CHECKING:
    from rela_lightning.probe.extract import extract_features
    from rela_lightning.probe.knn import knn_predict
    from rela_lightning.probe.knn_online import KNNProbe
    from rela_lightning.probe.linear import LinearProbe
    from rela_lightning.probe.offline import few_label_evaluation, linear_evaluation
    from rela_lightning.probe.online import OnlineLinearProbe

_EXPORTS = {
    "KNNProbe": ".knn_online",
    "LinearProbe": ".linear",
    "OnlineLinearProbe": ".online",
    "extract_features": ".extract",
    "few_label_evaluation": ".offline",
    "knn_predict": ".knn",
    "linear_evaluation": ".offline",
}
__getattr__, __dir__ = lazy(__name__, _EXPORTS)

__all__ = [
    "KNNProbe",
    "LinearProbe",
    "OnlineLinearProbe",
    "extract_features",
    "few_label_evaluation",
    "knn_predict",
    "linear_evaluation",
]
