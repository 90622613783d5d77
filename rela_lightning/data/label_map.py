"""Lists of labels: the class of each image file, where folders do not say it."""

from __future__ import annotations

import codecs
import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from rela_lightning.data.files import first_few, image_suffixes
from rela_lightning.errors import DataError

_HEADS = {"class", "label", "labels", "category", "target", "predictionstring"}


def read_label_map(file: str | Path) -> dict[str, str]:
    """Class of each file, from a text file of lines `name class`.

    Between the two are a tab, comma or semicolon, or else blanks. Names may hold folders and blanks. What follows a
    class, as the boxes of Tiny-ImageNet's `val_annotations.txt` and Kaggle's `LOC_val_solution.csv`, is left out, and
    so is a head line. UTF-8, with or without a mark at its start, or else Latin-1.

    Raises:
        DataError: If there is no such file, a line has no class, or two lines give a name different classes.
    """
    path = Path(file)
    if not path.is_file():
        raise DataError("The list of labels is not there.", expected="a text file", found=path)
    labels: dict[str, str] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            name, label = _fields(line)
        except csv.Error as error:
            where = f"{path}, line {number}: {error}"
            raise DataError("A line of the list of labels cannot be read.", found=where) from error
        if number == 1 and label.lower() in _HEADS:
            continue
        if not label or labels.get(name, label) != label:
            raise DataError(
                "A line of the list of labels has no class." if not label else "A name has two classes in the list.",
                expected="name class",
                found=f"{path}, line {number}",
            )
        labels[name] = label
    return labels


def mapped_labels(root: Path, names: Sequence[str], classes: Sequence[str], label_map: Mapping[str, str]) -> list[int]:
    """Number of the class of each image, by a list of labels.

    An entry belongs to a file if one's path is the end of the other's, with or without suffix.

    Args:
        root: Folder of the images.
        names: Their paths below it.
        classes: Names of the classes.
        label_map: Class of each entry: names in all of them, or numbers from 0. Names go before numbers.

    Raises:
        DataError: If an image has no entry, two images share one or one image has two, a class is unknown, or some
            classes are names and others numbers.
    """
    whole: dict[str, set[str]] = defaultdict(set)
    ends: dict[str, set[str]] = defaultdict(set)
    for entry in label_map:
        forms = _forms(entry)
        for form in forms:
            ends[form].add(entry)
        for form in forms[:2]:
            whole[form].add(entry)
    found = [_first_in(whole, _forms(name)) or _first_in(ends, _forms(name)[:2]) for name in names]
    missing = [name for name, hits in zip(names, found, strict=True) if not hits]
    if missing:
        raise DataError(
            "Images are missing from the list of labels.",
            expected="a line for each file",
            found=f"{len(missing)} of {len(names)} images under {root} without one, as {missing[0]}",
        )
    owners: dict[str, list[str]] = defaultdict(list)
    for name, hits in zip(names, found, strict=True):
        for entry in hits:
            owners[entry].append(name)
    shared = next((both for both in owners.values() if len(both) > 1), None)
    doubled = next((hits for hits in found if len({label_map[entry] for entry in hits}) > 1), None)
    if shared or doubled:
        raise DataError(
            "The list of labels does not tell images of one name apart.",
            expected="a line for each file, with the folders of the file where names repeat",
            found=f"one line for {first_few(shared)}" if shared else f"lines {first_few(sorted(doubled or ()))}",
        )
    by_name = {name: index for index, name in enumerate(classes)}
    by_number = {str(index): index for index in range(len(classes))}
    labels = [label_map[min(hits)] for hits in found]
    unknown = sorted(set(labels) - set(by_name) - set(by_number))
    if unknown:
        raise DataError(
            "The list of labels has classes that the training images do not have.",
            expected=f"names of the {len(classes)} classes, as {classes[0]}, or numbers from 0 to {len(classes) - 1}",
            found=first_few(unknown),
        )
    named, nameless = sorted(set(labels) & set(by_name)), sorted(set(labels) - set(by_name))
    if named and nameless:
        raise DataError(
            "The list of labels mixes names and numbers of classes.",
            expected=f"names of the {len(classes)} classes, as {classes[0]}, in every line, or numbers in every line",
            found=f"{first_few(named)}: names; {first_few(nameless)}: numbers alone",
            do="write the names of the folders: where these are numbers, they go before numbers counted from 0",
        )
    read = by_number if nameless else by_name
    return [read[label] for label in labels]


def _text(path: Path) -> str:
    raw = path.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _fields(line: str) -> tuple[str, str]:
    """Name and class of a line; the class is empty where there is none."""
    between = next((mark for mark in "\t,;" if mark in line), None)
    if between is not None:
        name, *rest = next(csv.reader([line], delimiter=between))
        return name.strip(), _without_boxes(rest[0]) if rest else ""
    suffixes = "|".join(re.escape(suffix) for suffix in sorted(image_suffixes()))
    with_suffix = re.match(rf"(?i)\s*(.+?(?:{suffixes}))\s+(\S.*)", line)
    if with_suffix:
        return with_suffix[1], _without_boxes(with_suffix[2])
    name, _, rest_of_it = line.strip().partition(" ")
    return name, _without_boxes(rest_of_it)


def _without_boxes(text: str) -> str:
    """A class without the boxes that may follow it: four numbers each, the class again before all but the first."""
    box = r"(?:\s+-?[\d.]+){4}"
    return re.sub(rf"^(\S+){box}(?:\s+\1{box})*$", r"\1", text.strip())


def _first_in(entries: Mapping[str, set[str]], forms: Sequence[str]) -> set[str]:
    return next((entries[form] for form in forms if form in entries), set())


def _forms(name: str) -> list[str]:
    """A path and its ends, the longest first, each with its suffix and without."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    plain = [end[: -len(suffix)] for end in ends if (suffix := PurePosixPath(end).suffix).lower() in image_suffixes()]
    return [form for pair in zip(ends, plain or ends, strict=True) for form in pair]
