"""A folder of image files as a data set: with class folders, with a list of labels, or without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset

from rela_lightning.data.files import check_folder, class_folders, first_few, list_images, listing
from rela_lightning.data.label_map import mapped_labels
from rela_lightning.data.readable import UNREADABLE, open_rgb, unreadable
from rela_lightning.errors import ConfigError, DataError

OnError = Literal["raise", "skip"]
UNLABELLED = -1
"""Label of images without one; the probes leave such rows out."""


class FolderImages(Dataset[tuple[Any, int]]):
    """Image files under a folder: `dataset[i] -> (image, label)`.

    With at least two folders in `root` and no image beside them, the folders are classes, in the order of their
    names; images may lie deeper in them. Otherwise the images have no labels. Rows are in the order of the classes,
    then of the paths, the same on every machine. Names that start with `.` or `__` are left out.

    Args:
        root: The folder.
        labelled: Whether folders in `root` are classes; None to tell from the layout.
        classes: Names of the classes, where another split has set them; the folders must have the same.
        label_map: Class of each file by its name, with or without extension: a class's name, or its number in
            `classes`. For validation folders without class folders.
        on_error: What becomes of images that cannot be decoded. `raise`: an error that names the file, when it is
            read. `skip`: all files are decoded once, before anything else, and unreadable ones have no row. The list
            of these is kept (`rela_lightning.data.readable`), so that rows stay the same in all processes and
            later runs; targets built before the first `skip` do not fit then, and are refused.
        transform: Called on the PIL image; None returns the image itself.

    Attributes:
        samples: Path relative to `root`, and label, of each row.
        targets: List of the labels, 0 to C - 1; -1 without.
        classes: Their names; None without.

    Raises:
        ConfigError: For an unknown `on_error`.
        DataError: If the folder is missing, is a file, holds no images or an empty class, or if its classes are
            not the expected ones; on reading, if an image cannot be decoded.

    Example:
        >>> images = FolderImages("photos", labelled=False)  # doctest: +SKIP
        >>> # build_targets(prior, images, "targets/photos")
    """

    def __init__(
        self,
        root: str | Path,
        *,
        labelled: bool | None = None,
        classes: Sequence[str] | None = None,
        label_map: Mapping[str, str] | None = None,
        on_error: OnError = "raise",
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ConfigError("Unknown `on_error`.", found=on_error, exists=("raise", "skip"))
        self.root = check_folder(Path(root))
        self.transform = transform
        names = list_images(self.root)
        if not names:
            raise _no_images(self.root)
        if on_error == "skip":
            names = self._readable(names)
        self.classes: list[str] | None
        if label_map is not None and classes is not None:
            self.classes = list(classes)
            labels = mapped_labels(self.root, names, self.classes, label_map)
        else:
            self.classes = _classes(self.root, names, labelled if classes is None else True)
            if classes is not None:
                _check_known(self.root, self.classes or [], classes)
                self.classes = list(classes)
            names, labels = _by_folder(self.root, names, self.classes)
        self.samples = list(zip(names, labels, strict=True))
        self.targets = labels

    def _readable(self, names: list[str]) -> list[str]:
        broken = unreadable(self.root, names)
        if broken:
            shown = first_few(sorted(broken))
            rank_zero_warn(f"{len(broken)} of {len(names)} images under {self.root} are unreadable, left out: {shown}")
        if len(broken) == len(names):
            raise DataError("None of the images can be decoded.", found=f"{len(names)} files under {self.root}")
        return [name for name in names if name not in broken]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Image (PIL RGB, or what `transform` makes of it) and label."""
        name, label = self.samples[index]
        try:
            image = open_rgb(self.root / name)
        except UNREADABLE as error:
            raise DataError(
                f"The image of row {index} cannot be read.",
                expected="an image file",
                found=f"{self.root / name} ({str(error).splitlines()[0]})",
                do='replace or remove the file, or leave out all unreadable ones with on_error="skip"; then build '
                "targets again, as rows may have moved",
            ) from error
        return (image if self.transform is None else self.transform(image)), label


def _no_images(root: Path) -> DataError:
    return DataError(
        "The data folder holds no images.",
        expected="files with the suffix of a format that Pillow can read, such as .jpg or .png",
        found=root,
        exists=listing(root),
    )


def _classes(root: Path, names: Sequence[str], labelled: bool | None) -> list[str] | None:
    """Names of the class folders, or None for images without labels."""
    if labelled is False:
        return None
    folders = class_folders(root)
    flat = [name for name in names if "/" not in name]
    if labelled is None and (flat or len(folders) < 2):
        if flat and len(flat) < len(names):
            rank_zero_warn(
                f"{root} holds images (as {flat[0]}) beside folders of images: all are taken without labels. Where the "
                "folders are classes, pass labelled=True."
            )
        return None
    if not folders:
        raise DataError(
            "There are no class folders.",
            expected=f"{root}/<class>/<image>",
            found=f"{len(flat)} images in {root} itself",
            do="sort them into class folders; validation images may have a list of labels instead (val_map)",
        )
    filled = {name.partition("/")[0] for name in names if "/" in name}
    empty = [name for name in folders if name not in filled]
    if empty:
        raise DataError(
            "A class folder holds no (readable) images.",
            expected=f"at least one image in each folder of {root}",
            found=first_few(empty),
            do="fill or remove it; pass labelled=False where the folders are not classes",
        )
    return folders


def _by_folder(root: Path, names: list[str], classes: Sequence[str] | None) -> tuple[list[str], list[int]]:
    if classes is None:
        return names, [UNLABELLED] * len(names)
    number = {name: index for index, name in enumerate(classes)}
    inside = [name for name in names if "/" in name]
    inside.sort(key=lambda name: (number[name.partition("/")[0]], name))
    return inside, [number[name.partition("/")[0]] for name in inside]


def _check_known(root: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse classes that training images do not have; warn of those that are missing here."""
    other = sorted(set(found) - set(expected))
    missing = [name for name in expected if name not in found]
    if other:
        raise DataError(
            "Training and validation images have different classes.",
            expected=f"only class folders that the training images have, as {first_few(expected)}",
            found=f"{root} with {len(found)} class folders; only here: {first_few(other)}"
            + (f"; missing here: {first_few(missing)}" if missing else ""),
            do="give both the same class folders",
        )
    if missing:
        rank_zero_warn(f"{root} has no images of {len(missing)} of {len(expected)} classes: {first_few(missing)}.")
