"""Data sets, data modules, samplers and views."""

from __future__ import annotations

from rela_lightning.data.device import DeviceViews, decode
from rela_lightning.data.digits import Digits
from rela_lightning.data.folder import FolderImages
from rela_lightning.data.images import RGBImages
from rela_lightning.data.modules import (
    CIFAR10Data,
    CIFAR100Data,
    DigitsData,
    FashionMNISTData,
    HuggingFaceData,
    ImageData,
    ImageFolderData,
    ImageNetData,
    STL10Data,
    TinyImageNetData,
)
from rela_lightning.data.sampler import BudgetSampler
from rela_lightning.data.views import build_views, probe_view

__all__ = [
    "BudgetSampler",
    "CIFAR10Data",
    "CIFAR100Data",
    "DeviceViews",
    "Digits",
    "DigitsData",
    "FashionMNISTData",
    "FolderImages",
    "HuggingFaceData",
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
