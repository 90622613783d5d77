"""What all data modules share: views by name, a probe view, loaders, a share of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Subset

from rela_lightning.compat import DualDataModule
from rela_lightning.data.device.translate import recipe_of
from rela_lightning.data.few_labels import FewLabels
from rela_lightning.data.images import RGBImages
from rela_lightning.data.modules.device import OnDevice
from rela_lightning.data.modules.ranked import RankedBudget
from rela_lightning.data.views import VIEWS, build_views, probe_view
from rela_lightning.errors import ConfigError, DataError

Split = Literal["train", "val"]
View = Literal["views", "probe"]


class ImageData(DualDataModule):
    """Base of the data modules here; a new one defines `source`.

    Training batches are `(views, labels)`: what the transform of the method returns, and int64 `[B]`. Validation
    batches are `(images, labels)`, images float `[B, 3, H, W]` under the probe view, which does not augment. Both are
    normalised. Nothing is random in which row holds which image: stored targets go by row.

    Args:
        views: Views of a training image: one of `rela_lightning.data.views.VIEWS`; a callable from a PIL image to a
            tensor or a list of tensors; or `auto`, the name in the attribute `views` of the module being trained, as
            each class of `rela_lightning.methods` has, else `two`.
        views_kwargs: Parameters of lightly's transform of that name (`min_scale`, `cj_strength`, ...); they go before
            the defaults that `rela_lightning.data.build_views` lists.
        image_size: Height and width of images and global crops, pixels; None for the data set's own.
        mean: Per-channel mean that is subtracted, on the [0, 1] scale; None for the data set's own.
        std: Per-channel standard deviation that is divided by; None for the data set's own.
        batch_size: Images in a batch on each device.
        num_workers: Processes that load data; 0 loads in the training process.
        data_ratio: Share of the training images drawn each epoch, a fresh draw every time, in `(0, 1]`; the same
            draw, split, on all devices.
        labels_per_class: Train on so few labelled images of each class, the same in each epoch; None for all images.
        seed: Seed of these draws, and of the views that `device_views` makes.
        drop_last: Leave out the last training batch where it is not full: most methods need full ones. `auto` goes by
            the attribute `drop_last` of the module being trained, else true: `FineTune` keeps it, but for a last batch
            of one image, which batch norm cannot take.
        bank: Whether validation starts with a loader of training images under the probe view, which `KNNProbe` takes
            as its bank. `auto`: where the trainer has a `KNNProbe`, and then at most its `max_bank` images, evenly
            spaced.
        persistent_workers: Keep worker processes between epochs.
        pin_memory: Page-locked batches, for faster transfer; None where there is a CUDA device.
        device_views: Decode the images once, keep them in memory as 8-bit pixels, and make the views of each batch
            where the model is, by kornia (the extra `gpu`): see `rela_lightning.data.DeviceViews`. Only batches that
            the Trainer moves have their views; `num_workers` processes decode, and training needs none.
        stored_size: With `device_views`, the largest height and width of a training image in memory, pixels; None for
            `image_size`. Larger ones are resized; images of several sizes all are, to this size.

    Raises:
        ConfigError: For unknown views or values out of range, or views that cannot be made on the device.
        DataError: From `prepare_data`, `setup` or `dataset`, before any training: if the images are not there or not
            as they should be.

    Example:
        >>> from rela_lightning.data import Digits
        >>> class MyData(ImageData):
        ...     num_classes, default_size = 10, 32
        ...
        ...     def source(self, split):
        ...         return Digits(split if split == "train" else "test")
        >>> MyData(views="two").dataset("train", "views")[0][0][1].shape
        torch.Size([3, 32, 32])
    """

    default_size: ClassVar[int] = 224
    default_mean: ClassVar[Sequence[float]] = (0.485, 0.456, 0.406)
    default_std: ClassVar[Sequence[float]] = (0.229, 0.224, 0.225)
    flip: ClassVar[bool] = True
    """Whether a mirrored image means the same."""
    expected_classes: ClassVar[int | None] = None
    """Number of classes the data set is known to have; None where any will do."""

    def __init__(
        self,
        *,
        views: str | Callable[[Any], Any] = "auto",
        views_kwargs: dict[str, Any] | None = None,
        image_size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        data_ratio: float = 1.0,
        labels_per_class: int | None = None,
        seed: int = 0,
        drop_last: bool | Literal["auto"] = "auto",
        bank: bool | Literal["auto"] = "auto",
        persistent_workers: bool = True,
        pin_memory: bool | None = None,
        device_views: bool = False,
        stored_size: int | None = None,
    ) -> None:
        super().__init__()
        _check_range("batch_size", batch_size, 1)
        _check_range("num_workers", num_workers, 0)
        _check_range("seed", seed, 0)
        if not 0.0 < data_ratio <= 1.0:
            raise ConfigError("The data ratio cannot work.", expected="0 < data_ratio <= 1", found=data_ratio)
        self.image_size = self.default_size if image_size is None else image_size
        _check_range("image_size", self.image_size, 8)
        self.mean, self.std = list(mean or self.default_mean), list(std or self.default_std)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(
                "The normalisation cannot work.",
                expected="mean and std of three channels, std above 0",
                found=f"mean={self.mean}, std={self.std}",
            )
        if labels_per_class is not None:
            _check_range("labels_per_class", labels_per_class, 1)
        if stored_size is not None:
            _check_range("stored_size", stored_size, 8)
            if not device_views:
                raise ConfigError("`stored_size` is for images in memory.", found="device_views=False")
        self.device_views, self.stored_size = device_views, stored_size
        self.views, self.views_kwargs = views, views_kwargs
        self._check_views()
        self.batch_size, self.num_workers = batch_size, num_workers
        self.data_ratio, self.seed, self.drop_last, self.bank = data_ratio, seed, drop_last, bank
        self.labels_per_class = labels_per_class
        self.persistent_workers, self.pin_memory = persistent_workers, pin_memory
        self._sources: dict[str, Any] = {}
        self._on_device: OnDevice | None = None
        if device_views:
            self._on_device = OnDevice(
                image_size=self.image_size, stored_size=stored_size, num_workers=num_workers, seed=seed
            )

    def source(self, split: Split) -> Any:
        """The data set of a split without a transform: map-style, `(PIL image, label)`; None without such a split.

        Raises:
            DataError: If it is not there, or not as it should be.
        """
        raise NotImplementedError

    def probe_source(self) -> Any:
        """The training images that a probe learns from: those of `source("train")`."""
        return self._source("train")

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes; None without labels."""
        found: list[str] | None = getattr(self._source("train"), "classes", None)
        return found

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""
        return len(self.classes) if self.classes is not None else None

    def dataset(self, split: Split, view: View | None = None) -> RGBImages:
        """A split as a map-style data set `(image, label)`.

        Args:
            split: `train` or `val`.
            view: `views` for those of training, `probe` for the view without augmentation, None for the RGB PIL
                image as it is: what `build_targets` labels.

        Raises:
            ConfigError: For an unknown split or view.
            DataError: If there is no such split, or its images are not as they should be.
        """
        if split not in ("train", "val") or view not in ("views", "probe", None):
            raise ConfigError(
                "There is no such data set.",
                expected="split train or val; view views, probe or None",
                found=f"split {split!r}, view {view!r}",
            )
        source = self.probe_source() if (split, view) == ("train", "probe") else self._source(split)
        if source is None:
            raise DataError(
                "There are no labelled validation images.",
                expected="a validation split with the classes of the training images",
                found=f"none in {type(self).__name__}",
                do="name their folder, or have `rela probe` measure on parts of the training images by --cross_folds 5",
            )
        return RGBImages(source, self._transform(view), training_views=self._views_if_known() if view is None else None)

    def prepare_data(self) -> None:
        """Download where asked to, and look at both splits, once a machine."""
        self._source("train")
        self._source("val")

    def setup(self, stage: str) -> None:
        """Refuse data that cannot work, on every process, before any training."""
        self.prepare_data()
        found = self.num_classes
        if self.expected_classes is not None and found is not None and found != self.expected_classes:
            rank_zero_warn(f"{type(self).__name__} has {self.expected_classes} classes, but {found} were found.")

    def train_dataloader(self) -> DataLoader[Any]:
        """Training images under the views of the method, shuffled.

        Raises:
            DataError: If the images do not fill a batch.
        """
        dataset = self.dataset("train", "views")
        if self._on_device is not None:
            dataset = self._on_device.training(dataset, self._processes)
        replicas, rank = getattr(self.trainer, "world_size", 1), getattr(self.trainer, "global_rank", 0)
        sampler = None
        if self.data_ratio < 1.0:
            sampler = RankedBudget(dataset, self.data_ratio, seed=self.seed, num_replicas=replicas, rank=rank)
            sampler.set_epoch(getattr(self.trainer, "current_epoch", 0))  # workers prefetch before Lightning sets it
        rows = len(sampler) if sampler is not None else -(-len(dataset) // replicas)
        drop_last = self._drops_last(rows)
        if drop_last and rows < self.batch_size:
            raise DataError(
                "The training images do not fill one batch.",
                expected=f"at least batch_size={self.batch_size} images on each device in an epoch",
                found=f"{rows} of {len(dataset)}, with data_ratio={self.data_ratio} on {replicas} device(s)",
                do="set a smaller batch_size (--data.batch_size), or drop_last=False (--data.drop_last false)",
            )
        return self._loader(dataset, shuffle=sampler is None, sampler=sampler, drop_last=drop_last)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Validation images under the probe view, after the bank where there is one; empty without labels."""
        if self._source("val") is None:
            return []
        validation = self._loader(self._probed("validation images", self._source("val")))
        rows = self._bank_rows()
        if rows is None:
            return [validation]
        bank = self.probe_source()
        if rows < len(bank):
            bank = Subset(bank, [row * len(bank) // rows for row in range(rows)])
        return [self._loader(self._probed("images of the bank", bank)), validation]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Validation images under the probe view."""
        return self.val_dataloader()[-1:]

    def probe_train_dataloader(self) -> DataLoader[Any]:
        """Training images under the probe view, in order."""
        return self._loader(self.dataset("train", "probe"))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch as its module would; with `device_views`, make its views there."""
        module = getattr(self.trainer, "lightning_module", None)
        move = super().transfer_batch_to_device if module is None else module.transfer_batch_to_device
        if self._on_device is None:
            return move(batch, device, dataloader_idx)
        return self._on_device.transfer(batch, lambda part: move(part, device, dataloader_idx), self.trainer)

    @property
    def _processes(self) -> int:
        return int(getattr(self.trainer, "num_devices", 1))

    def _probed(self, name: str, source: Any) -> RGBImages:
        if self._on_device is None:
            return RGBImages(source, self._transform("probe"))
        return self._on_device.probe(name, source, self.mean, self.std, self._processes)

    def _source(self, split: Split) -> Any:
        if split not in self._sources:
            source = self.source(split)
            few = self.labels_per_class if split == "train" else None
            self._sources[split] = source if few is None else FewLabels(source, few, self.seed)
        return self._sources[split]

    def _transform(self, view: View | None) -> Callable[[Any], Any] | None:
        if view is None:
            return None
        if view == "probe":
            return probe_view(self.image_size, mean=self.mean, std=self.std)
        if not isinstance(self.views, str):
            return self.views
        return self._build(self._views_name())

    def _views_if_known(self) -> Callable[[Any], Any] | None:
        try:
            return self._transform("views")
        except ConfigError:  # of `auto` the options are those of a method, which nobody knows yet
            return None

    def _views_name(self) -> str:
        if self.views != "auto":
            return str(self.views)
        wanted = self._asked("views")
        return wanted if isinstance(wanted, str) and wanted in VIEWS else "two"

    def _drops_last(self, rows: int) -> bool:
        if self.drop_last != "auto":
            return self.drop_last
        return self._asked("drop_last") is not False or (rows > self.batch_size and rows % self.batch_size == 1)

    def _asked(self, name: str) -> Any:
        """What the module being trained says of its batches; None where it says nothing."""
        return getattr(getattr(self.trainer, "lightning_module", None), name, None)

    def _build(self, name: str) -> Callable[[Any], Any]:
        return build_views(
            name, self.image_size, mean=self.mean, std=self.std, flip=self.flip, options=self.views_kwargs
        )

    def _check_views(self) -> None:
        """Refuse views that cannot be built; of `auto` the options are looked at once the method is known."""
        if isinstance(self.views, str) and self.views != "auto":
            if self.views not in VIEWS:
                raise ConfigError(
                    "Unknown views.", expected="one of the names below", found=self.views, exists=("auto", *VIEWS)
                )
            made = self._build(self.views)
            if self.device_views:
                recipe_of(made)
        elif not isinstance(self.views, str) and self.views_kwargs:
            raise ConfigError("views_kwargs are for views by name.", found=f"views={self.views!r}")
        elif self.device_views and not isinstance(self.views, str):
            recipe_of(self.views)

    def _bank_rows(self) -> int | None:
        """Most images of the bank; None for no bank."""
        from rela_lightning.probe.knn_online import KNNProbe

        probes = [probe for probe in getattr(self.trainer, "callbacks", ()) if isinstance(probe, KNNProbe)]
        wanted = bool(probes) if self.bank == "auto" else self.bank
        if not wanted:
            return None
        everything = len(self.probe_source())
        return max((probe.max_bank for probe in probes), default=everything) if self.bank == "auto" else everything

    def _loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        pinned = torch.cuda.is_available() if self.pin_memory is None else self.pin_memory
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
            pin_memory=pinned,
            **options,
        )


def _check_range(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"`{name}` is out of range.", expected=f"at least {least}", found=value)
