"""Cheaper self-supervised pre-training for any Lightning module.

A frozen prior model embeds every training image once; early in training the student's features are
pulled to those targets through one linear map; later the ordinary objective takes over. See
"Efficiency for Free: Ideal Data Are Transportable Representations" (arXiv 2405.14669).

Names are imported when first used, so that `import rela_lightning` and `rela --help` are quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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
    "BudgetSampler": "rela_lightning.data.sampler",
    "KNNProbe": "rela_lightning.probe",
    "LinearProbe": "rela_lightning.probe",
    "LinearTransport": "rela_lightning.transport",
    "OnlineLinearProbe": "rela_lightning.probe",
    "Prior": "rela_lightning.priors",
    "ReLACallback": "rela_lightning.callback",
    "ReLAMixin": "rela_lightning.module",
    "ReLAModule": "rela_lightning.module",
    "TargetStore": "rela_lightning.targets",
    "accelerate": "rela_lightning.module",
    "build_targets": "rela_lightning.targets",
    "export_backbone": "rela_lightning.export",
    "load_prior": "rela_lightning.priors",
    "transport_loss": "rela_lightning.transport",
}
_SUBMODULES = ("data", "errors", "export", "methods", "priors", "probe", "schedules", "targets", "transport")

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


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"rela_lightning.{name}")
    raise AttributeError(f"module 'rela_lightning' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES})
