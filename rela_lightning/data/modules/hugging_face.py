"""Data sets of Hugging Face: from the hub, from files of theirs or yours, or saved to disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rela_lightning.data.hugging_face import HuggingFaceImages, image_column, label_column
from rela_lightning.data.modules.base import ImageData, Split
from rela_lightning.data.modules.folders import VALIDATION
from rela_lightning.errors import ConfigError, DataError


class HuggingFaceData(ImageData):
    """A data set that `datasets` can read, with images in one column. Needs the extra `hf`.

    Args:
        path: A folder that `save_to_disk` wrote; or what `datasets.load_dataset` takes: a folder with image, parquet or
            other files, the name of a format (`parquet`, `imagefolder`, `webdataset`) with `load_kwargs`, or the name
            of a data set on the hub, which is downloaded into Hugging Face's cache.
        name: Name of a configuration of the data set.
        image: Column of the images; `auto` to find it.
        label: Column of the labels: classes, whole numbers or texts; `auto` to find it, None for no labels. Without
            labels `num_classes` is None, and there is no validation.
        train_split: Split of the training images; a data set of one split is for training, whatever its name.
        val_split: Split of the validation images; `auto` takes `val`, `validation`, `valid` or `test`, None does
            without. A split of which no image has a label is not one.
        load_kwargs: Further options of `datasets.load_dataset`: `data_files`, `data_dir`, `revision`, `cache_dir`.
        options: Those of `ImageData`.

    Raises:
        ConfigError: For unknown views, values out of range or columns that do not exist, or if `datasets` is not
            installed.
        DataError: Before training, if there is no such data set or split, or a column holds something else; in
            training, for an unreadable image.

    Example:
        >>> data = HuggingFaceData("folder_of_save_to_disk", image_size=96, views="two")
        >>> # trainer.fit(BYOL("torchvision:resnet50"), data)
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        *,
        image: str = "auto",
        label: str | None = "auto",
        train_split: str = "train",
        val_split: str | None = "auto",
        load_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.path, self.name, self.image, self.label = path, name, image, label
        self.train_split, self.val_split, self.load_kwargs = train_split, val_split, load_kwargs
        self._read: Mapping[str, Any] | None = None

    def source(self, split: Split) -> HuggingFaceImages | None:
        """The images of a split, without a transform."""
        name = self._split_name(split)
        if name is None:
            return None
        found = self._splits()[name]
        label = label_column(found.features, self.label)
        if split == "train":
            return HuggingFaceImages(found, image_column(found.features, self.image), label)
        if self.classes is None or label is None:
            return None
        images = HuggingFaceImages(found, image_column(found.features, self.image), label, self.classes)
        return images if any(number >= 0 for number in images.targets) else None

    def _split_name(self, split: Split) -> str | None:
        """The name of a split in the data set; None where there is no validation."""
        splits = self._splits()
        if split == "train":
            alone = len(splits) == 1 and self.train_split == "train"
            return next(iter(splits)) if alone else self._named(self.train_split)
        if self.val_split == "auto":
            own = self._split_name("train")
            return next((name for name in VALIDATION if name in splits and name != own), None)
        return None if self.val_split is None else self._named(self.val_split)

    def _named(self, name: str) -> str:
        if name not in self._splits():
            raise DataError(
                f"The data set has no split {name!r}.",
                found=self.path,
                exists=self._splits(),
                do="name the splits with train_split and val_split",
            )
        return name

    def _splits(self) -> Mapping[str, Any]:
        """All splits by name."""
        if self._read is None:
            found = self._load(_library())
            if not isinstance(found, Mapping):
                found = {"train": found}
            streams = [name for name, split in found.items() if not hasattr(split, "__len__")]
            if streams:
                raise ConfigError(
                    "A stream of Hugging Face has no rows.",
                    expected="load_kwargs without streaming",
                    found=f"splits {', '.join(streams)} of {self.path}",
                    do="leave streaming out; in Python, targets of a stream are found by the keys of its samples",
                )
            self._read = found
        return self._read

    def _load(self, library: Any) -> Any:
        folder, options = Path(self.path).expanduser(), self.load_kwargs or {}
        try:
            if any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
                return library.load_from_disk(str(folder))
            return library.load_dataset(str(folder) if folder.is_dir() else self.path, self.name, **options)
        except (OSError, ValueError, library.exceptions.DatasetsError) as error:
            inner: BaseException = error
            while inner.__cause__ is not None:
                inner = inner.__cause__
            raise DataError(
                f"`datasets` cannot load {self.path!r}.",
                expected="a folder of save_to_disk, a folder of files, a format with load_kwargs, or a name on the hub",
                found=f"{type(inner).__name__}: {' '.join(str(inner).split())[:300]}",
                do="try datasets.load_dataset with the same arguments; offline, set HF_HUB_OFFLINE=1",
            ) from error


def _library() -> Any:
    """The package `datasets`; not a folder of that name in the current one."""
    try:
        import datasets

        _ = datasets.load_dataset
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "Data sets of Hugging Face are read by the package datasets, which is not installed.",
            expected="the extra `hf`",
            found=f"{type(error).__name__}: {error}",
            do="pip install 'rela-lightning[hf]'",
        ) from error
    return datasets
