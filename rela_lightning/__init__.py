"""Cheaper self-supervised pre-training for any Lightning module.

A frozen prior model embeds every training image once; early in training the student's features are
pulled to those targets through one linear map; later the ordinary objective takes over. See
"Efficiency for Free: Ideal Data Are Transportable Representations" (arXiv 2405.14669).

Names are imported when first used, so that `import rela_lightning` and `rela --help` are quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rela_lightning._lazy import lazy
from rela_lightning._version import __version__

if TYPE_CHECKING:
    from rela_lightning.callback import ReLACallback
    from rela_lightning.data.sampler import BudgetSampler
    from rela_lightning.diagnostics import (
        CollapseMonitor,
        alignment,
        effective_rank,
        feature_deviation,
        fitness,
        linear_cka,
        mutual_knn,
        rank_priors,
        representation_similarity,
        transport_distance,
        uniformity,
    )
    from rela_lightning.export import export_backbone
    from rela_lightning.module import ReLAMixin, ReLAModule, accelerate
    from rela_lightning.priors import Prior, load_prior
    from rela_lightning.probe import KNNProbe, LinearProbe, OnlineLinearProbe
    from rela_lightning.targets import TargetStore, build_targets
    from rela_lightning.transport import LinearTransport, transport_loss

_EXPORTS = {
    "BudgetSampler": ".data.sampler",
    "CollapseMonitor": ".diagnostics",
    "KNNProbe": ".probe",
    "LinearProbe": ".probe",
    "LinearTransport": ".transport",
    "OnlineLinearProbe": ".probe",
    "Prior": ".priors",
    "ReLACallback": ".callback",
    "ReLAMixin": ".module",
    "ReLAModule": ".module",
    "TargetStore": ".targets",
    "accelerate": ".module",
    "alignment": ".diagnostics",
    "build_targets": ".targets",
    "effective_rank": ".diagnostics",
    "export_backbone": ".export",
    "feature_deviation": ".diagnostics",
    "fitness": ".diagnostics",
    "linear_cka": ".diagnostics",
    "load_prior": ".priors",
    "mutual_knn": ".diagnostics",
    "rank_priors": ".diagnostics",
    "representation_similarity": ".diagnostics",
    "transport_distance": ".diagnostics",
    "transport_loss": ".transport",
    "uniformity": ".diagnostics",
    "data": ".data",
    "diagnostics": ".diagnostics",
    "errors": ".errors",
    "export": ".export",
    "methods": ".methods",
    "optim": ".optim",
    "priors": ".priors",
    "probe": ".probe",
    "schedules": ".schedules",
    "targets": ".targets",
    "transport": ".transport",
}
__getattr__, __dir__ = lazy(__name__, _EXPORTS)

__all__ = [
    "BudgetSampler",
    "CollapseMonitor",
    "KNNProbe",
    "LinearProbe",
    "LinearTransport",
    "OnlineLinearProbe",
    "Prior",
    "ReLACallback",
    "ReLAMixin",
    "ReLAModule",
    "TargetStore",
    "__version__",
    "accelerate",
    "alignment",
    "build_targets",
    "effective_rank",
    "export_backbone",
    "feature_deviation",
    "fitness",
    "linear_cka",
    "load_prior",
    "mutual_knn",
    "rank_priors",
    "representation_similarity",
    "transport_distance",
    "transport_loss",
    "uniformity",
]
