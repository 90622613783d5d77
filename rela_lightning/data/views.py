"""Named sets of views for training, on lightly's transforms, and the plain view of the probes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from PIL import Image

from rela_lightning.data.eight_bit import eight_bit
from rela_lightning.data.thin import middle
from rela_lightning.errors import ConfigError

VIEWS: tuple[str, ...] = (
    "byol", "simclr", "moco", "dino", "swav", "simsiam", "barlow_twins", "vicreg", "one", "two"
)  # fmt: skip
"""Names that `build_views` knows."""
SMALL = 64
"""Images up to this size, in pixels, get no Gaussian blur and larger crops."""
_PROBE_MARGIN_ABOVE = 96


def build_views(
    name: str,
    image_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    flip: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Callable[[Any], Any]:
    """The views of a method: lightly's transform for it, at a size and normalisation.

    - `byol`, `barlow_twins`: BYOL's two views, which differ.
    - `simclr`, `two`: SimCLR's two views.
    - `moco`: MoCo v2's two views.
    - `simsiam`, `vicreg`: two views of their own.
    - `dino`, `swav`: multi-crop, two global views and six local crops.
    - `one`: crop and flip, for supervised training; one view, a tensor and not a list.

    lightly's own defaults hold, except for images of up to 64 px: no blur; jitter of strength 0.5 in `simclr`, `two`
    and `swav`; crops of `one` from a quarter of the image; local crops of `dino` from 10% to 40% and of `swav` from
    10% to 30% of it, `swav`'s global ones from 30%. Local crops measure 96 px at 224 px, else as much in proportion,
    to the next multiple of 8.

    Args:
        name: One of `VIEWS`.
        image_size: Height and width of a (large) view, pixels.
        mean: Per-channel mean on the [0, 1] scale.
        std: Per-channel standard deviation on the [0, 1] scale.
        flip: Whether views are mirrored, left to right, half of the time.
        options: lightly's parameters by name (`min_scale`, `cj_strength`, `gaussian_blur`, `n_local_views`, ...); they
            go before all of the above. For `byol` and `barlow_twins` they hold for both views.

    Returns:
        A callable from one RGB PIL image to a list of float tensors `[3, H, W]`, or to one tensor.

    Raises:
        ConfigError: For an unknown name or option.

    Example:
        >>> from PIL import Image
        >>> two = build_views("byol", 32, mean=(0.5,) * 3, std=(0.5,) * 3)(Image.new("RGB", (40, 40)))
        >>> [view.shape for view in two]
        [torch.Size([3, 32, 32]), torch.Size([3, 32, 32])]
    """
    if name not in VIEWS:
        raise ConfigError("Unknown views.", expected="one of the names below", found=name, exists=VIEWS)
    make, signature = _lightly(name)
    chosen = dict(options or {})
    known = [key for key in inspect.signature(signature).parameters if key != "self"]
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise ConfigError(
            f"The views `{name}` have no such option.",
            expected=f"parameters of lightly's {signature.__name__}",
            found=", ".join(unknown),
            exists=known,
        )
    defaults = _defaults(name, image_size, flip)
    views: Callable[[Any], Any] = make(**{
        "normalize": {"mean": list(mean), "std": list(std)}, **defaults, **chosen
    })  # fmt: skip
    return views


def probe_view(image_size: int, *, mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], Any]:
    """The view without augmentation: from a PIL image of any mode to a normalised float tensor `[3, H, W]`.

    The shorter side is resized to 8/7 of `image_size` (256 for 224) and the centre is cut out; up to 96 px it is
    resized to `image_size` itself.

    Example:
        >>> from PIL import Image
        >>> view = probe_view(32, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> view(Image.new("RGB", (40, 60))).shape
        torch.Size([3, 32, 32])
    """
    from torchvision.transforms import v2

    view: Callable[[Any], Any] = v2.Compose([_eight_bit, probe_crop(image_size), normalised(mean, std)])
    return view


def _eight_bit(image: Any) -> Any:
    return eight_bit(image) if isinstance(image, Image.Image) else image


def probe_crop(image_size: int) -> Callable[[Any], Any]:
    """The part of an image that `probe_view` shows, at its size: from a PIL image to another."""
    from torchvision.transforms import v2

    margin = probe_margin(image_size)
    part: Callable[[Any], Any] = v2.Compose([
        partial(middle, resize=(margin, margin), crop=(image_size, image_size)),
        v2.Resize(margin),
        v2.CenterCrop(image_size),
    ])  # fmt: skip
    return part


def probe_margin(image_size: int) -> int:
    """Height and width that `probe_view` resizes to before it cuts the centre out, pixels."""
    return image_size if image_size <= _PROBE_MARGIN_ABOVE else round(image_size * 8 / 7)


def normalised(mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], Any]:
    """From a PIL image to a float tensor `[3, H, W]`, scaled to [0, 1], then normalised."""
    import torch
    from torchvision.transforms import v2

    scaled: Callable[[Any], Any] = v2.Compose([
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std)), v2.ToPureTensor()
    ])  # fmt: skip
    return scaled


def small_crop_size(image_size: int) -> int:
    """Height and width of the local crops beside global ones of `image_size`: 96 for 224, 16 for 32."""
    return max(8, 8 * round(image_size * 96 / 224 / 8))


def _lightly(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What makes the views, and whose signature lists the options."""
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from lightly.transforms.dino_transform import DINOTransform
    from lightly.transforms.moco_transform import MoCoV2Transform
    from lightly.transforms.simclr_transform import SimCLRTransform, SimCLRViewTransform
    from lightly.transforms.simsiam_transform import SimSiamTransform
    from lightly.transforms.swav_transform import SwaVTransform
    from lightly.transforms.vicreg_transform import VICRegTransform

    if name in ("byol", "barlow_twins"):
        return lambda **kw: BYOLTransform(BYOLView1Transform(**kw), BYOLView2Transform(**kw)), BYOLView1Transform
    made: Any = {
        "simclr": SimCLRTransform,
        "two": SimCLRTransform,
        "moco": MoCoV2Transform,
        "dino": DINOTransform,
        "swav": SwaVTransform,
        "simsiam": SimSiamTransform,
        "vicreg": VICRegTransform,
        "one": SimCLRViewTransform,
    }[name]
    return made, made


def _defaults(name: str, size: int, flip: bool) -> dict[str, Any]:
    """Our values for some of lightly's parameters."""
    small, crop = size <= SMALL, small_crop_size(size)
    options: dict[str, Any] = {"hf_prob": 0.5 if flip else 0.0}
    if small:
        options["gaussian_blur"] = 0.0
    if small and name in ("simclr", "two", "swav"):
        options["cj_strength"] = 0.5
    if name == "dino":
        options.update(global_crop_size=size, local_crop_size=crop)
        if small:
            options.update(gaussian_blur=(0.0, 0.0, 0.0), local_crop_scale=(0.1, 0.4))
    elif name == "swav":
        options.update(crop_sizes=(size, crop))
        if small:
            options.update(crop_min_scales=(0.3, 0.1), crop_max_scales=(1.0, 0.3))
    else:
        options.update(input_size=size)
    if name == "one":
        options.update(cj_prob=0.0, random_gray_scale=0.0, gaussian_blur=0.0, min_scale=0.25 if small else 0.08)
    return options
