"""Data modules over folders of image files: anyone's, Tiny-ImageNet's and ImageNet's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.utilities import rank_zero_warn

from rela_lightning.data.files import check_folder, class_folders, first_few, has_images, list_images
from rela_lightning.data.folder import FolderImages, OnError
from rela_lightning.data.label_map import read_label_map
from rela_lightning.data.modules.base import ImageData, Split
from rela_lightning.errors import ConfigError, DataError

TRAINING = ("train", "training")
VALIDATION = ("val", "validation", "valid", "test", "testing")


def split_folder(root: Path, split: Split) -> Path | None:
    """The folder of a split: the first of `TRAINING` or `VALIDATION` below the root, in capitals or not.

    A root with none of these is its own training folder, without validation. A warning names other folders of images
    beside those of training: these may all be classes.

    Raises:
        DataError: If the root is not a folder, or has a folder for validation but none for training.
    """
    folders = class_folders(check_folder(root))
    named = {name.lower(): root / name for name in folders}
    train, validation = (next((named[n] for n in names if n in named), None) for names in (TRAINING, VALIDATION))
    if split == "val":
        return validation if train is not None else None
    if train is not None:
        others = [name for name in folders if name.lower() not in (*TRAINING, *VALIDATION) and has_images(root / name)]
        if others:
            rank_zero_warn(
                f"{train} holds the training images; folders of images beside it are left out: {first_few(others)}. "
                f"Where all of them are classes, pass train_dir={str(root)!r}."
            )
        return train
    if validation is not None:
        raise DataError(
            "There is no folder of training images.",
            expected=root / TRAINING[0],
            found=f"{validation} alone",
            do="name the folders with train_dir and val_dir",
        )
    return root


class ImageFolderData(ImageData):
    """Image files of your own.

    `root/train/<class>/<image>` and `root/val/<class>/<image>` (or `training`, and `validation`, `valid`, `test`,
    `testing`, in capitals or not), or two folders named by `train_dir` and `val_dir`. Without a validation folder there
    is no validation. Without class folders, flat or nested, images have the label -1, `num_classes` is None, and there
    is no validation either: enough for self-supervised training. How classes are told from other folders, and which
    files count, is said in `rela_lightning.data.FolderImages`.

    Args:
        root: Folder with `train` and `val`; or, with none of them, the training images themselves.
        train_dir: Folder of the training images, in place of `root/train`.
        val_dir: Folder of the validation images, in place of `root/val`.
        val_map: Text file with a line `file class` for each validation image, where these are not in class folders;
            see `rela_lightning.data.label_map.read_label_map`.
        labelled: Whether folders of training images are classes; None to tell from the layout.
        on_error: `raise` an error that names an unreadable image when it is read, or `skip` unreadable images: all
            files are decoded once before training, so that rows are fixed.
        options: Those of `ImageData`.

    Raises:
        ConfigError: For unknown views, values out of range, or no folder at all.
        DataError: Before training, if a folder is missing or a file, holds no images or an empty class, or if
            training and validation images have different classes; in training, for an unreadable image.

    Example:
        >>> data = ImageFolderData("photos", labelled=False, image_size=224, views="two")
        >>> # trainer.fit(BYOL("torchvision:resnet50"), data)
    """

    label_files: ClassVar[tuple[str, ...]] = ()
    """Files below the root that may hold the classes of flat validation images."""

    def __init__(
        self,
        root: str | None = None,
        *,
        train_dir: str | None = None,
        val_dir: str | None = None,
        val_map: str | None = None,
        labelled: bool | None = None,
        on_error: OnError = "raise",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if root is None and train_dir is None:
            raise ConfigError("No images were named.", expected="root, or train_dir", found="neither")
        if on_error not in ("raise", "skip"):
            raise ConfigError("Unknown `on_error`.", found=on_error, exists=("raise", "skip"))
        self.root, self.train_dir, self.val_dir, self.val_map = root, train_dir, val_dir, val_map
        self.labelled, self.on_error = labelled, on_error

    def source(self, split: Split) -> FolderImages | None:
        """The images of a split, without a transform."""
        if split == "train":
            folder = Path(self.train_dir) if self.train_dir is not None else split_folder(self._root(), "train")
            return FolderImages(folder or self._root(), labelled=self.labelled, on_error=self.on_error)
        validation = Path(self.val_dir) if self.val_dir is not None else self._validation()
        if validation is None or self.classes is None:
            return None
        label_map = self._label_file(check_folder(validation))
        return FolderImages(
            validation,
            classes=self.classes,
            label_map=read_label_map(label_map) if label_map is not None else None,
            on_error=self.on_error,
        )

    def _root(self) -> Path:
        return Path(self.root or "")

    def _validation(self) -> Path | None:
        return split_folder(self._root(), "val") if self.root is not None else None

    def _label_file(self, validation: Path) -> Path | None:
        """The list of labels to use: the one named, or a known one where the images are not in class folders."""
        if self.val_map is not None:
            return Path(self.val_map)
        beside = [folder / name for name in self.label_files for folder in (validation, validation.parent)]
        known = next((file for file in beside if file.is_file()), None)
        if known is None:
            return None
        folders = {name.rpartition("/")[0] for name in list_images(validation)}
        return known if folders <= {"", "images"} else None


class TinyImageNetData(ImageFolderData):
    """Tiny-ImageNet: 100,000 training and 10,000 validation images of 64 x 64 px in 200 classes.

    `root` is the unpacked `tiny-imagenet-200`, or the folder it is in. Validation images are read as they come, with
    `val/val_annotations.txt`, or sorted into class folders.

    Args:
        root: The folder.
        options: Those of `ImageFolderData`; `image_size` is 64.

    Raises:
        ConfigError: As `ImageFolderData`.
        DataError: As `ImageFolderData`.

    Example:
        >>> TinyImageNetData("tiny-imagenet-200", views="dino").image_size
        64
    """

    default_size = 64
    default_mean: ClassVar[Sequence[float]] = (0.480, 0.448, 0.398)
    default_std: ClassVar[Sequence[float]] = (0.277, 0.269, 0.282)
    expected_classes = 200
    label_files = ("val_annotations.txt",)

    def __init__(self, root: str | None = "data", **options: Any) -> None:
        super().__init__(root, **options)

    def _root(self) -> Path:
        root = super()._root()
        inside = root / "tiny-imagenet-200"
        return inside if inside.is_dir() else root


class ImageNetData(ImageFolderData):
    """ImageNet-1K in the ILSVRC layout: `train/<wnid>` and `val/<wnid>`, 1000 classes, 224 px.

    Validation images that lie flat in `val` need a list of their classes: `val_map`, or one of `val_map.txt`,
    `val.txt` and `LOC_val_solution.csv` in the root or in `val`.

    Args:
        root: Folder with `train` and `val`.
        options: Those of `ImageFolderData`.

    Raises:
        ConfigError: As `ImageFolderData`.
        DataError: As `ImageFolderData`.

    Example:
        >>> ImageNetData("imagenet", views="two", batch_size=256).image_size
        224
    """

    expected_classes = 1000
    label_files = ("val_map.txt", "val.txt", "LOC_val_solution.csv")

    def __init__(self, root: str | None = "data", **options: Any) -> None:
        super().__init__(root, **options)
