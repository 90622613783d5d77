"""The part of a data module that keeps images in memory and makes their views on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rela_lightning.data.device import DeviceViews, InMemory, decode
from rela_lightning.data.device.views import check_kornia
from rela_lightning.data.images import RGBImages
from rela_lightning.data.views import normalised, probe_crop


class OnDevice:
    """Images in memory, and views of them.

    Args:
        image_size: Height and width of a view, pixels.
        stored_size: Largest height and width of a training image in memory; None for `image_size`.
        num_workers: Processes that decode.
        seed: Of all random parameters.

    Raises:
        ConfigError: If kornia is not installed.
    """

    def __init__(self, *, image_size: int, stored_size: int | None, num_workers: int, seed: int) -> None:
        check_kornia()
        self._image_size, self._stored_size = image_size, stored_size or image_size
        self._num_workers, self._seed = num_workers, seed
        self._decoded: dict[str, InMemory] = {}
        self._views: DeviceViews | None = None

    def training(self, images: RGBImages, processes: int) -> RGBImages:
        """Training images, their transform of one image made a batch at a time.

        Raises:
            ConfigError: If a step of the transform has no form for batches, or kornia is not installed.
            DataError: If the images do not fit into memory.
        """
        views = self._made(images.transform)
        return RGBImages(self._kept("training images", images.dataset, processes, self._stored_size), views)

    def probe(
        self, name: str, source: Any, mean: Sequence[float], std: Sequence[float], processes: int
    ) -> RGBImages:  # fmt: skip
        """Images under the probe view, whose crop is made once and kept: these pixels are those of `probe_view`."""
        views = self._made(normalised(mean, std))
        kept = self._kept(name, source, processes, self._image_size, part=probe_crop(self._image_size))
        return RGBImages(kept, views)

    def transfer(self, batch: Any, move: Callable[[Any], Any], trainer: Any) -> Any:
        """A batch on the device, with its views.

        Args:
            batch: As the loader gives it.
            move: Brings a batch to the device.
            trainer: The Trainer.
        """
        if self._views is None:
            return move(batch)
        made = self._views.make(move(self._views.draw(batch, trainer.current_epoch)))
        return trainer.precision_plugin.convert_input(made)  # before its transfer a batch had no floats to convert

    def _made(self, transform: Any) -> DeviceViews:
        self._views = DeviceViews(transform, seed=self._seed, beside=self._views)
        return self._views

    def _kept(self, name: str, source: Any, processes: int, most: int, **options: Any) -> InMemory:
        if name not in self._decoded or len(self._decoded[name]) != len(source):  # another trainer's bank
            self._decoded[name] = decode(
                source, most, num_workers=self._num_workers, processes=processes, what=name, **options
            )
        return self._decoded[name]
