"""One function for every prior there is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from rela_lightning.errors import PriorError
from rela_lightning.networks.build import LIBRARIES, UNTRAINED, build_network
from rela_lightning.networks.pooling import Pooling
from rela_lightning.networks.preprocess import Preprocess, customised
from rela_lightning.priors.base import FusedPrior, Prior

SCHEMES: tuple[str, ...] = (
    *(f"{library}:{form}" for library, form in LIBRARIES.items() if library not in UNTRAINED),
    "checkpoint:<file> with arch=",
    "run:<folder of a run>",
    "own:<module>.<class or function>",
    f"random:<{', '.join(f'{library}:...' for library in LIBRARIES)}> with seed=",
)
"""What a spec looks like."""


def load_prior(
    spec: str | nn.Module | Sequence[Any],
    *,
    image_size: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    pooling: Pooling = "auto",
    **kwargs: Any,
) -> Prior:
    """Load a frozen prior with its preprocessing.

    Args:
        spec: One of `open_clip:<arch>/<tag>`, `timm:<model>`, `torchvision:<model>/<weights>`,
            `checkpoint:<file>` (with `arch=`), `run:<folder>` (what a run of `rela fit` has trained),
            `own:<module>.<class>` (what your code builds), `random:<library>:<model>` (with `seed=`); any module
            (copied, yours stays as it is); or a list of these, whose features are put side by side.
        image_size: Side in pixels. The shorter side of an image is resized to exactly this
            (bicubic, antialias) and the centre is cropped. Overrides the prior's own geometry.
        mean: Channel means on the [0, 1] scale, over the prior's own.
        std: Channel standard deviations on the [0, 1] scale, over the prior's own.
        preprocess: Callable from a PIL image or uint8 tensor `[C, H, W]` to a float tensor, in place
            of all of the above.
        pooling: How feature maps and tokens become one vector: `auto`, `avg`, `cls` or `none`.
        kwargs: For the source: `arch`, `prefix` (checkpoint), `seed` (random), `cache_dir`, `width`, ...
            With a list, every option goes to each part that is not a `Prior` yet.

    Returns:
        The prior: `prior(images [B, C, H, W]) -> [B, feature_dim]`.

    Raises:
        PriorError: If there is no such prior, it cannot be loaded, or its preprocessing is not known.

    Example:
        >>> prior = load_prior("random:lightly:resnet-9", image_size=32, mean=0.5, std=0.5, seed=1)
        >>> prior.feature_dim
        512
    """
    options: dict[str, Any] = {"image_size": image_size, "mean": mean, "std": std, "preprocess": preprocess}
    if preprocess is not None and (image_size, mean, std) != (None, None, None):
        raise PriorError(
            "`preprocess` takes the place of `image_size`, `mean` and `std`.",
            expected="one or the other",
            found="both",
        )
    if isinstance(spec, (list, tuple)):
        return FusedPrior(
            [p if isinstance(p, Prior) else load_prior(p, pooling=pooling, **options, **kwargs) for p in spec]
        )
    if isinstance(spec, Prior):
        return _changed(spec, pooling, options, kwargs)
    name, network, own = _network(spec, image_size, kwargs)
    if preprocess is None:
        preprocess = customised(own, network, image_size=image_size, mean=mean, std=std)
    prior = Prior(network, preprocess, pooling=pooling, name=name)
    prior.options = ", ".join(f"{option} {value}" for option, value in kwargs.items())
    return prior


def _network(spec: object, image_size: int | None, kwargs: dict[str, Any]) -> tuple[str, nn.Module, Preprocess | None]:
    """Name, network and own preprocessing (or `None`) of a single spec."""
    if isinstance(spec, nn.Module):
        _refuse_options(kwargs)
        return type(spec).__name__, copy.deepcopy(spec), None
    source, _, rest = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if not rest or not any(form.startswith(f"{source}:") for form in SCHEMES):
        raise PriorError(
            "There is no such prior.",
            expected="a string of one of the forms below, an nn.Module, or a list of these",
            found=spec,
            exists=SCHEMES,
            do=_meant(spec),
        )
    built = build_network(str(spec), pretrained=True, image_size=image_size, **kwargs)
    return str(spec), built.network, built.preprocess


def _meant(spec: object) -> str:
    """What a name without its source may stand for."""
    path = Path(spec).expanduser() if isinstance(spec, str) else Path()
    if spec and isinstance(spec, str) and path.exists():
        return f"run:{spec} is what that run has trained" if path.is_dir() else f"checkpoint:{spec} holds its weights"
    return "for example open_clip:ViT-B-16/openai"


def _changed(prior: Prior, pooling: Pooling, options: dict[str, Any], kwargs: dict[str, Any]) -> Prior:
    """The prior itself, or its network under other settings."""
    _refuse_options(kwargs)
    if all(value is None for value in options.values()) and pooling in ("auto", prior.pooling):
        return prior
    if isinstance(prior, FusedPrior):
        raise PriorError("A fusion is changed in its parts.", do="load the parts with these options, then fuse")
    preprocess = options.pop("preprocess")
    if preprocess is None:
        own = prior.preprocess if isinstance(prior.preprocess, Preprocess) else None
        preprocess = customised(own, prior.network, **options)
    changed = Prior(prior.network, preprocess, pooling=pooling, name=prior.name)
    changed.options = prior.options
    return changed


def _refuse_options(kwargs: dict[str, Any]) -> None:
    if kwargs:
        raise PriorError(
            "A module takes no options for building it.",
            expected="image_size, mean, std, preprocess or pooling",
            found=", ".join(kwargs),
        )
