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
    from rela_lightning.export import export_backbone
    from rela_lightning.module import ReLAMixin, ReLAModule, accelerate
    from rela_lightning.priors import Prior, load_prior
    from rela_lightning.probe import KNNProbe, LinearProbe, OnlineLinearProbe
    from rela_lightning.targets import TargetStore, build_targets
    from rela_lightning.transport import LinearTransport, transport_loss

_EXPORTS = {
    "BudgetSampler": ".data.sampler",
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
    "build_targets": ".targets",
    "export_backbone": ".export",
    "load_prior": ".priors",
    "transport_loss": ".transport",
    "data": ".data",
    "errors": ".errors",
    "export": ".export",
    "methods": ".methods",
    "priors": ".priors",
    "probe": ".probe",
    "schedules": ".schedules",
    "targets": ".targets",
    "transport": ".transport",
}
__getattr__, __dir__ = lazy(__name__, _EXPORTS)

__all__ = [
    "BudgetSampler",
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
    "build_targets",
    "export_backbone",
    "load_prior",
    "transport_loss",
]
