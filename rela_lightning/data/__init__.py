"""Data sets, data modules, samplers and views.

Names are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rela_lightning._lazy import lazy

if TYPE_CHECKING:
    from rela_lightning.data.device import DeviceViews, decode
    from rela_lightning.data.digits import Digits
    from rela_lightning.data.folder import FolderImages
    from rela_lightning.data.images import RGBImages
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
    from rela_lightning.data.sampler import BudgetSampler
    from rela_lightning.data.views import build_views, probe_view

_EXPORTS = {
    "BudgetSampler": ".sampler",
    "CIFAR10Data": ".modules",
    "CIFAR100Data": ".modules",
    "DeviceViews": ".device",
    "Digits": ".digits",
    "DigitsData": ".modules",
    "FashionMNISTData": ".modules",
    "FolderImages": ".folder",
    "ImageData": ".modules",
    "ImageFolderData": ".modules",
    "ImageNetData": ".modules",
    "RGBImages": ".images",
    "STL10Data": ".modules",
    "TinyImageNetData": ".modules",
    "build_views": ".views",
    "decode": ".device",
    "probe_view": ".views",
}
__getattr__, __dir__ = lazy(__name__, _EXPORTS)

__all__ = [
    "BudgetSampler",
    "CIFAR10Data",
    "CIFAR100Data",
    "DeviceViews",
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
    "decode",
    "probe_view",
]
