"""Data modules over torchvision's data sets: their own files, or the same images in folders."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from rela_lightning.data.few_labels import FewLabels
from rela_lightning.data.files import check_folder
from rela_lightning.data.folder import FolderImages
from rela_lightning.data.modules.base import ImageData, Split
from rela_lightning.data.modules.folders import split_folder
from rela_lightning.errors import ConfigError, DataError

_BROKEN = (RuntimeError, OSError, ValueError, AssertionError, EOFError, KeyError, IndexError, pickle.UnpicklingError)

STL10Split = Literal["train", "unlabeled", "train+unlabeled"]


class TorchvisionData(ImageData):
    """Base of the data sets that torchvision can read and download.

    Args:
        root: Folder that torchvision's own folder is in (or that folder itself); or a folder of image files with
            `train` and `test` (or `val`), a folder in them for each class.
        download: Let torchvision download the files into `root` where they are missing.
        options: Those of `ImageData`.

    Raises:
        ConfigError: For unknown views or values out of range.
        DataError: If the files are missing or broken and `download` is False, or the download fails.
    """

    dataset_class: ClassVar[str]
    """Its name in `torchvision.datasets`."""
    folder: ClassVar[str]
    """The folder that torchvision reads."""
    known_classes: ClassVar[int]

    def __init__(self, root: str = "data", *, download: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.download = root, download

    def read(self, root: str, split: Split) -> Any:
        """The data set of torchvision for a split, from `root`, without a transform."""
        return self._of_torchvision(root, train=split == "train")

    def _of_torchvision(self, root: str, **options: Any) -> Any:
        from torchvision import datasets

        return getattr(datasets, self.dataset_class)(root, download=self.download, **options)

    def source(self, split: Split) -> Any:
        """The images of a split, without a transform."""
        root = Path(self.root)
        if root.name == self.folder:
            root = root.parent
        if not (root / self.folder).is_dir() and (root / "train").is_dir():
            return self._from_folders(root, split)
        if root.is_file():
            check_folder(root)
        try:
            return self.read(str(root), split)
        except _BROKEN as error:
            raise self._missing(root, error) from error

    @property
    def num_classes(self) -> int | None:
        """Number of classes; files are not read for it."""
        return (super().num_classes if "train" in self._sources else None) or self.known_classes

    def _from_folders(self, root: Path, split: Split) -> FolderImages | None:
        folder = split_folder(root, split)
        if folder is None:
            return None
        return FolderImages(folder, labelled=True, classes=None if split == "train" else self.classes)

    def _missing(self, root: Path, error: Exception) -> DataError:
        name = type(self).__name__.removesuffix("Data")
        if self.download:
            return DataError(f"{name} could not be downloaded.", expected=root / self.folder, found=error)
        there = (root / self.folder).is_dir()
        return DataError(
            f"The files of {name} are broken or incomplete." if there else f"The files of {name} are not there.",
            expected=f"{root / self.folder}, as torchvision writes it, or class folders in {root / 'train'}",
            found=error,
            exists=sorted(entry.name for entry in root.iterdir())[:12] if root.is_dir() else None,
            do="pass download=True, the folder where the files are, or a folder of images with train/ and test/",
        )


class CIFAR10Data(TorchvisionData):
    """CIFAR-10: 50,000 training and 10,000 validation images of 32 x 32 px in 10 classes.

    Args:
        options: Those of `TorchvisionData` and `ImageData`; `image_size` is 32.

    Raises:
        ConfigError: As `TorchvisionData`.
        DataError: As `TorchvisionData`.

    Example:
        >>> data = CIFAR10Data("data", views="two", batch_size=256)
        >>> data.num_classes, data.image_size
        (10, 32)
    """

    default_size = 32
    default_mean: ClassVar[Sequence[float]] = (0.4914, 0.4822, 0.4465)
    default_std: ClassVar[Sequence[float]] = (0.2470, 0.2435, 0.2616)
    dataset_class, folder = "CIFAR10", "cifar-10-batches-py"
    known_classes = expected_classes = 10


class CIFAR100Data(TorchvisionData):
    """CIFAR-100: 50,000 training and 10,000 validation images of 32 x 32 px in 100 classes.

    Args:
        options: Those of `TorchvisionData` and `ImageData`; `image_size` is 32.

    Raises:
        ConfigError: As `TorchvisionData`.
        DataError: As `TorchvisionData`.

    Example:
        >>> CIFAR100Data("data", views="two", batch_size=256).num_classes
        100
    """

    default_size = 32
    default_mean: ClassVar[Sequence[float]] = (0.5071, 0.4865, 0.4409)
    default_std: ClassVar[Sequence[float]] = (0.2673, 0.2564, 0.2762)
    dataset_class, folder = "CIFAR100", "cifar-100-python"
    known_classes = expected_classes = 100


class FashionMNISTData(TorchvisionData):
    """Fashion-MNIST: 60,000 training and 10,000 validation images of 28 x 28 px in 10 classes, grey made RGB.

    Args:
        options: Those of `TorchvisionData` and `ImageData`; `image_size` is 32, to which images are enlarged.

    Raises:
        ConfigError: As `TorchvisionData`.
        DataError: As `TorchvisionData`.

    Example:
        >>> FashionMNISTData("data", views="two", batch_size=256).num_classes
        10
    """

    default_size = 32
    default_mean: ClassVar[Sequence[float]] = (0.286, 0.286, 0.286)
    default_std: ClassVar[Sequence[float]] = (0.353, 0.353, 0.353)
    dataset_class, folder = "FashionMNIST", "FashionMNIST"
    known_classes = expected_classes = 10


class STL10Data(TorchvisionData):
    """STL-10: 5,000 labelled and 100,000 unlabelled training images, 8,000 for validation, 96 x 96 px, 10 classes.

    Unlabelled images have the label -1. Probes learn from the 5,000 labelled ones, whatever is trained on:
    `dataset("train", "probe")`, `probe_train_dataloader` and the bank hold these.

    Args:
        train_split: Images to train on: `train+unlabeled` (labelled ones first), `unlabeled`, or `train` for
            supervised training. For torchvision's files; folders have their own `train`.
        options: Those of `TorchvisionData` and `ImageData`; `image_size` is 96.

    Raises:
        ConfigError: As `TorchvisionData`, or for an unknown `train_split`.
        DataError: As `TorchvisionData`.

    Example:
        >>> STL10Data("data", views="two", batch_size=256).image_size
        96
    """

    default_size = 96
    default_mean: ClassVar[Sequence[float]] = (0.4467, 0.4398, 0.4066)
    default_std: ClassVar[Sequence[float]] = (0.2603, 0.2566, 0.2713)
    dataset_class, folder = "STL10", "stl10_binary"
    known_classes = expected_classes = 10

    def __init__(self, root: str = "data", *, train_split: STL10Split = "train+unlabeled", **options: Any) -> None:
        super().__init__(root, **options)
        if train_split not in get_args(STL10Split):
            raise ConfigError("Unknown `train_split`.", found=train_split, exists=get_args(STL10Split))
        self.train_split = train_split

    def read(self, root: str, split: Split) -> Any:
        """The STL10 of torchvision."""
        return self._of_torchvision(root, split=self.train_split if split == "train" else "test")

    def probe_source(self) -> Any:
        """The 5,000 labelled training images; with `labels_per_class` those that are trained on."""
        train = self._source("train")
        if isinstance(train, (FolderImages, FewLabels)) or self.train_split == "train":
            return train
        if "probe" not in self._sources:
            self._sources["probe"] = self._of_torchvision(str(train.root), split="train")
        return self._sources["probe"]
