"""`DeviceViews`: the views of a transform of one image, made for a batch where the model is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from rela_lightning.data.crops import size_of
from rela_lightning.data.device.chance import Draws
from rela_lightning.data.device.translate import Recipe, View, recipe_of
from rela_lightning.data.transforms import TransportViews
from rela_lightning.errors import ConfigError, DataError

_NO_CROPS = torch.empty(0, 5, dtype=torch.int32)


class Packed(NamedTuple):
    """An image on its way to the device, in place of its views; collated, each part has a leading `[B]`.

    Attributes:
        pixels: Uint8 `[3, h, w]`.
        size: Height and width that crops are measured in, int32 `[2]`.
        crops: Crops that must be shown, see `rela_lightning.data.crops`, int32 `[n, 5]`; n = 0 draws them.
        recipe: Which recipe makes the views.
        row: Its row in the data set, if it knows it, else a random number: random parameters are a function of it.
    """

    pixels: Tensor
    size: Tensor
    crops: Tensor
    recipe: int
    row: int


class Drawn(NamedTuple):
    """A batch of images, and all that chance had to say about their views.

    Attributes:
        pixels: Uint8 `[B, 3, h, w]`.
        sizes: Int32 `[B, 2]`.
        recipe: Which recipe makes the views.
        views: Boxes and parameters of the steps, for each view of the recipe.
    """

    pixels: Tensor
    sizes: Tensor
    recipe: int
    views: list[tuple[Tensor, list[Any]]]


class PerImage:
    """A transform of one PIL image that takes a uint8 tensor `[C, H, W]` too, in the proportions of its `Origin`."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        """What the transform makes of the image."""
        return self.transform(_to_pil(image) if isinstance(image, Tensor) else image)


class DeviceViews:
    """The views of a per-image transform, made for whole batches by kornia, each image under its own parameters.

    As the `transform` of a data set it hands the image on as it is; `on_device` makes the views of a batch, in
    `transfer_batch_to_device` of a module or data module.

    Images of a batch must be of one size: `decode` keeps them so. `ReLACallback` finds the gentler views of its
    transport phase, and replays stored crops, as with the transform itself. In distribution the views are those of
    the transform.

    What is random depends on `seed`, the epoch and the row of an image in what `decode` returns: on nothing else in
    the batch, and on no state, so that a run that is resumed, on other devices or not, goes on with the same views.
    Images of other data sets are numbered at random, by torch.

    Args:
        transform: What makes the views of one PIL image: `build_views(...)`, a transform of lightly, or one of
            torchvision from a crop to `Normalize`.
        seed: Of all random parameters.
        beside: Other views that may be in the same batches; either then makes both.

    Attributes:
        per_image: The transform itself, as a callable of a PIL image or a uint8 tensor.

    Raises:
        ConfigError: If a step of the transform has no form for batches, the seed is negative, or kornia is not
            installed.
        DataError: From a call, for an image that is not RGB of 8 bits.

    Example:
        >>> import torch
        >>> from rela_lightning.data import build_views
        >>> views = DeviceViews(build_views("byol", 32, mean=(0.5,) * 3, std=(0.5,) * 3))
        >>> image = torch.zeros(3, 40, 40, dtype=torch.uint8)
        >>> batch = torch.utils.data.default_collate([views(image) for _ in range(4)])
        >>> [tuple(view.shape) for view in views.on_device(batch, "cpu", epoch=0)]
        [(4, 3, 32, 32), (4, 3, 32, 32)]
    """

    def __init__(self, transform: Callable[[Any], Any], *, seed: int = 0, beside: DeviceViews | None = None) -> None:
        check_kornia()
        if seed < 0:
            raise ConfigError("`seed` is out of range.", expected="at least 0", found=seed)
        self.per_image = PerImage(transform)
        self.seed = seed
        self.recipes: list[Recipe] = [] if beside is None else beside.recipes
        self._number = len(self.recipes)
        self.recipes.append(recipe_of(transform))

    @property
    def takes_crops(self) -> bool:
        """Whether these are views of the transport phase, which show the crops they are told to."""
        return isinstance(self.per_image.transform, TransportViews)

    def gentler(self, transform: TransportViews) -> DeviceViews:
        """The views of the transport phase, to be made beside these."""
        return DeviceViews(transform, seed=self.seed, beside=self)

    def __call__(self, image: Any, crops: Sequence[Sequence[int]] | None = None) -> Packed:
        """Hand an image on.

        Args:
            image: RGB, PIL or uint8 tensor `[3, H, W]`.
            crops: Those to show, one for each view that differs; None draws them.

        Raises:
            DataError: For another image: a float one would be divided by 255 once more.
        """
        pixels = image if isinstance(image, Tensor) else _from_pil(image)
        if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) != 3:
            raise _not_rgb(f"a tensor {list(pixels.shape)}, {pixels.dtype}")
        shown = _NO_CROPS if crops is None else torch.tensor(crops, dtype=torch.int32).view(-1, 5)
        origin = getattr(image, "origin", None)
        row = int(torch.randint(2**62, ())) if origin is None else origin.row
        return Packed(pixels, _as_tensor(size_of(image)), shown, self._number, row)

    def on_device(self, batch: Any, device: torch.device | str, *, epoch: int) -> Any:
        """A batch with its views, on the device.

        Args:
            batch: As the loader gives it, on the CPU; images of these views anywhere in it.
            device: Where the model is.
            epoch: Number of the epoch, from 0; of the step, where an epoch shows an image several times.

        Returns:
            The batch with a list of views, float32 `[B, C, H, W]`, or with one of them where the transform gives one.
        """
        drawn = self.draw(batch, epoch)
        return self.make(apply_to_collection(drawn, Tensor, lambda part: part.to(device, non_blocking=True)))

    def draw(self, batch: Any, epoch: int) -> Any:
        """The batch with all random parameters drawn, on the CPU; see `on_device`."""
        return apply_to_collection(batch, Packed, self._draw, epoch)

    def make(self, batch: Any) -> Any:
        """The batch with its views made of what was drawn, on the device it is on."""
        return apply_to_collection(batch, Drawn, self._make)

    def _draw(self, packed: Packed, epoch: int) -> Drawn:
        number = int(torch.as_tensor(packed.recipe).flatten()[0])
        draws = Draws.of(torch.as_tensor(packed.row), self.seed, epoch)
        return Drawn(
            packed.pixels, packed.size, number, [_draw_view(v, packed, draws) for v in self.recipes[number].views]
        )

    @torch.no_grad()
    def _make(self, drawn: Drawn) -> Any:
        recipe = self.recipes[drawn.recipe]
        made: list[Tensor] = []
        for view, (boxes, parameters) in zip(recipe.views, drawn.views, strict=True):
            images = view.crop(drawn.pixels.repeat(view.count, 1, 1, 1), drawn.sizes.repeat(view.count, 1), boxes)
            for step, of_step in zip(view.steps, parameters, strict=True):
                images = step(images, of_step)
            made += images.chunk(view.count)
        return made[0] if recipe.shown is None else [made[place] for place in recipe.shown]


def _to_pil(image: Tensor) -> Any:
    (height, width), kept = size_of(image), image.shape[-2:]
    shrink = min(1.0, max(kept[0] / height, kept[1] / width))  # one side as it is kept, but not beyond the original
    size = [max(1, round(side * shrink)) for side in (height, width)]
    found = F.to_pil_image(image)
    return found if size == list(kept) else F.resize(found, size, antialias=True)


def _from_pil(image: Any) -> Tensor:
    if not isinstance(image, Image.Image):
        raise _not_rgb(type(image).__name__)
    if image.mode != "RGB":  # others have three channels too, such as YCbCr
        raise _not_rgb(f"mode {image.mode}")
    pixels: Tensor = F.pil_to_tensor(image)
    return pixels


def _not_rgb(found: str) -> DataError:
    return DataError(
        "Views on the device are made of RGB images of 8 bits.",
        expected="a PIL image in RGB, or a uint8 tensor [3, H, W]",
        found=found,
        do="wrap the data set: RGBImages(dataset, views) of rela_lightning.data makes PIL images RGB",
    )


@functools.lru_cache(maxsize=4096)
def _as_tensor(size: tuple[int, int]) -> Tensor:
    return torch.tensor(size, dtype=torch.int32)


def _draw_view(view: View, packed: Packed, draws: Draws) -> tuple[Tensor, list[Any]]:
    draws = Draws.together([draws.fork() for _ in range(view.count)])
    if packed.crops.shape[1]:
        boxes = packed.crops.transpose(0, 1).reshape(-1, 5)
        boxes = torch.cat([boxes, torch.zeros_like(boxes[:, :1])], dim=1).long()
    else:
        boxes = view.crop.draw(packed.size.repeat(view.count, 1), draws)
    return boxes, [step.draw(draws) for step in view.steps]


def check_kornia() -> None:
    """Refuse to go on without kornia.

    Raises:
        ConfigError: If it is not installed.
    """
    if find_spec("kornia") is None:
        raise ConfigError(
            "Views on the device are made by kornia, which is not installed.",
            expected="the extra `gpu`",
            do="pip install 'rela-lightning[gpu]'",
        )
