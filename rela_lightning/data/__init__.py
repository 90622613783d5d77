"""Data sets, data modules, samplers and views.

Names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rela_lightning.data.digits import Digits
    from rela_lightning.data.folder import FolderImages
    from rela_lightning.data.modules import (
        CIFAR10Data,
        CIFAR100Data,
        DigitsData,
        FashionMNISTData,
        ImageData,
        ImageFolderData,
        ImageNetData,
        STL10Data,
        TinyImageNetData,
    )
    from rela_lightning.data.rgb import RGBImages
    from rela_lightning.data.sampler import BudgetSampler
    from rela_lightning.data.views import build_views, probe_view

_EXPORTS = {
    "BudgetSampler": "sampler",
    "CIFAR10Data": "modules",
    "CIFAR100Data": "modules",
    "Digits": "digits",
    "DigitsData": "modules",
    "FashionMNISTData": "modules",
    "FolderImages": "folder",
    "ImageData": "modules",
    "ImageFolderData": "modules",
    "ImageNetData": "modules",
    "RGBImages": "rgb",
    "STL10Data": "modules",
    "TinyImageNetData": "modules",
    "build_views": "views",
    "probe_view": "views",
}

__all__ = [
    "BudgetSampler",
    "CIFAR10Data",
    "CIFAR100Data",
    "Digits",
    "DigitsData",
    "FashionMNISTData",
    "FolderImages",
    "ImageData",
    "ImageFolderData",
    "ImageNetData",
    "RGBImages",
    "STL10Data",
    "TinyImageNetData",
    "build_views",
    "probe_view",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"rela_lightning.data.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
