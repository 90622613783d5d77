"""The images of a data module as commands need them: as they are, or under the view of a probe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from rela_lightning.data.modules import ImageData
from rela_lightning.data.swap import transform_owners, with_transform
from rela_lightning.data.views import probe_view
from rela_lightning.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rela_lightning.runs.rebuild import Subject


def training_images(data: Any) -> Any:
    """The training images of a data module, without views.

    Raises:
        DataError: If the data module has no `dataset`, as those of other packages.
    """
    if not callable(getattr(data, "dataset", None)):
        raise DataError(
            f"{type(data).__name__} does not say which images it trains on.",
            expected='a data module with `dataset("train", None)`, as those of rela_lightning.data',
            found=type(data).__name__,
            do="subclass rela_lightning.data.ImageData, or label the images in Python",
        )
    data.prepare_data()
    return data.dataset("train", None)


def probe_images(data: Any, split: Literal["train", "val"], subject: Subject) -> Any:
    """A data module's images under the probe view, or a prior's own preprocessing.

    What a run has trained sees the images of other data normalised as it was trained.

    Raises:
        ConfigError: If there is no data module.
        DataError: If it gives no images under a probe view.
    """
    if data is None:
        raise ConfigError(
            "There are no images.",
            expected="a data module",
            found="none in the run's config" if subject.folder is not None else "a prior alone",
            do="pass for example --data CIFAR10Data --data.root DIR",
        )
    if not callable(getattr(data, "dataset", None)):
        raise DataError(
            f"{type(data).__name__} does not give images under a probe view.",
            expected='a data module with `dataset(split, "probe")`, as those of rela_lightning.data',
            do="pass one by --data",
        )
    if split == "train":
        data.prepare_data()
    images = data.dataset(split, "probe")
    if subject.preprocess is not None:
        if not transform_owners(images):
            rank_zero_warn(
                f"{subject.name} sees the images as {type(data).__name__} gives them, not through its own "
                "preprocessing: they have no `transform` that could be set."
            )
        return with_transform(images, subject.preprocess)
    if other_scale(data, subject.data):
        return with_transform(images, probe_view(data.image_size, mean=subject.data.mean, std=subject.data.std))
    return images


def has_no_labels(data: Any) -> bool:
    """Whether a data module says that its images have no labels, and so no validation either."""
    return data is not None and getattr(data, "num_classes", 0) is None


def other_scale(data: Any, own: Any) -> bool:
    """Whether a data module normalises images in another way than that of a run."""
    both = isinstance(data, ImageData) and isinstance(own, ImageData)
    return both and (data.mean, data.std) != (own.mean, own.std)


def say_other_size(data: Any, own: Any, done: str) -> None:
    """Say so where images are of another size than those a run was trained on, and is now probed or embedded by."""
    given, size = (getattr(one, "image_size", None) for one in (data, own))
    if None not in (given, size) and given != size:
        rank_zero_warn(
            f"The run was trained at {size} px, and is {done} at {given} px; --data.image_size {size} keeps its size."
        )


def say_other_view(data: Any, own: Any, done: str) -> None:
    """Say what images of other data are to a run that is probed or embedded by: of another size, normalised its way."""
    say_other_size(data, own, done)
    if other_scale(data, own):
        rank_zero_info(
            f"The images are normalised as the run was trained, by mean {own.mean} and std {own.std}, not as in "
            f"{type(data).__name__}."
        )
