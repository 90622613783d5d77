"""A folder of image files as a data set: with class folders, with a list of labels, or without labels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset

from rela_lightning.data.readable import UNREADABLE, open_rgb, unreadable
from rela_lightning.errors import ConfigError, DataError

OnError = Literal["raise", "skip"]
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
UNLABELLED = -1
"""Label of images without one; the probes leave such rows out."""
_SHOWN = 5


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
            labels = _mapped(self.root, names, self.classes, label_map)
        else:
            self.classes = _class_folders(self.root, names, labelled if classes is None else True)
            if classes is not None:
                _check_same(self.root, self.classes or [], classes)
            names, labels = _by_folder(self.root, names, self.classes)
        self.samples = list(zip(names, labels, strict=True))
        self.targets = labels

    def _readable(self, names: list[str]) -> list[str]:
        broken = unreadable(self.root, names)
        if broken:
            shown = ", ".join(sorted(broken)[:_SHOWN]) + (", ..." if len(broken) > _SHOWN else "")
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
                found=f"{self.root / name} ({error})",
                do='replace or remove the file, or leave out all unreadable ones with on_error="skip"; then build '
                "targets again, as rows may have moved",
            ) from error
        return (image if self.transform is None else self.transform(image)), label


def check_folder(path: Path) -> Path:
    """The path itself, if it is a folder.

    Raises:
        DataError: If it is a file, or not there; then what lies beside it is listed.
    """
    if path.is_dir():
        return path
    if path.exists():
        raise DataError(
            "The data folder is a file.", expected="a folder", found=path, do="unpack it, or name the folder it is in"
        )
    beside = path.absolute().parent
    raise DataError(
        "The data folder is not there.",
        expected="an existing folder",
        found=path,
        exists=_listing(beside) if beside.is_dir() else None,
        do="check the path; relative paths start at the current folder",
    )


def list_images(folder: Path) -> list[str]:
    """Paths of all image files under a folder, relative to it, with `/`, sorted."""
    names: list[str] = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(name)]
        base = Path(where).relative_to(folder).as_posix()
        prefix = "" if base == "." else f"{base}/"
        names.extend(prefix + name for name in files if not _hidden(name) and name.lower().endswith(EXTENSIONS))
    return sorted(names)


def read_label_map(file: str | Path) -> dict[str, str]:
    """Class of each file, from a text file of lines `name class ...` (blanks, tabs or commas between).

    Reads Tiny-ImageNet's `val_annotations.txt`, Kaggle's `LOC_val_solution.csv` (its header is left out) and Caffe's
    `val.txt`. Names are kept without extension.

    Raises:
        DataError: If there is no such file, or a line has no class.
    """
    path = Path(file)
    if not path.is_file():
        raise DataError("The list of labels is not there.", expected="a text file", found=path)
    labels: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = re.split(r"[\s,]+", line.strip())
        if fields == [""] or fields[0] == "ImageId":
            continue
        if len(fields) < 2:
            raise DataError(
                "A line of the list of labels has no class.", expected="name class", found=f"{path}, line {number}"
            )
        labels[Path(fields[0]).stem] = fields[1]
    return labels


def _hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not _hidden(entry.name))[:12]


def _no_images(root: Path) -> DataError:
    return DataError(
        "The data folder holds no images.",
        expected=f"files that end in {', '.join(EXTENSIONS)}",
        found=root,
        exists=_listing(root),
    )


def _class_folders(root: Path, names: Sequence[str], labelled: bool | None) -> list[str] | None:
    """Names of the class folders, or None for images without labels."""
    if labelled is False:
        return None
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not _hidden(entry.name))
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
            found=", ".join(empty[:_SHOWN]) + (f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else ""),
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


def _mapped(root: Path, names: Sequence[str], classes: Sequence[str], label_map: Mapping[str, str]) -> list[int]:
    number = {str(index): index for index in range(len(classes))}
    number.update({name: index for index, name in enumerate(classes)})  # names go before numbers
    found = [label_map.get(Path(name).stem, label_map.get(Path(name).name)) for name in names]
    missing = [name for name, label in zip(names, found, strict=True) if label is None]
    if missing:
        raise DataError(
            "Images are missing from the list of labels.",
            expected="a line for each file",
            found=f"{len(missing)} of {len(names)} images under {root} without one, as {missing[0]}",
        )
    unknown = sorted({str(label) for label in found} - set(number))
    if unknown:
        raise DataError(
            "The list of labels has classes that the training images do not have.",
            expected=f"names of the {len(classes)} classes, as {classes[0]}, or numbers from 0 to {len(classes) - 1}",
            found=", ".join(unknown[:_SHOWN]),
        )
    return [number[str(label)] for label in found]


def _check_same(root: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    if list(found) == list(expected):
        return
    parts = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}"
        for what, names in (
            ("missing here", sorted(set(expected) - set(found))),
            ("only here", sorted(set(found) - set(expected))),
        )
        if names
    ]
    raise DataError(
        "Training and validation images have different classes.",
        expected=f"the {len(expected)} class folders of the training images",
        found=f"{root} with {len(found)} class folders; {'; '.join(parts)}",
        do="give both the same class folders",
    )
