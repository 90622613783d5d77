"""Data modules: images of a data set under the views of a method, and under the plain view of the probes."""

from __future__ import annotations

from rela_lightning.data.modules.base import ImageData
from rela_lightning.data.modules.digits import DigitsData
from rela_lightning.data.modules.downloads import CIFAR10Data, CIFAR100Data, FashionMNISTData, STL10Data
from rela_lightning.data.modules.folders import ImageFolderData, ImageNetData, TinyImageNetData
from rela_lightning.data.modules.hugging_face import HuggingFaceData

__all__ = [
    "CIFAR10Data",
    "CIFAR100Data",
    "DigitsData",
    "FashionMNISTData",
    "HuggingFaceData",
    "ImageData",
    "ImageFolderData",
    "ImageNetData",
    "STL10Data",
    "TinyImageNetData",
]
