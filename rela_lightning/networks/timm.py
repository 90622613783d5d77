"""Models of timm (github.com/huggingface/pytorch-image-models)."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from rela_lightning.networks.build import Built, unknown
from rela_lightning.networks.preprocess import Fit, Preprocess, first_channels, per_channel

_FITS: dict[str, Fit] = {"center": "shortest", "squash": "squash", "border": "longest"}
_HOSTED = ("hf-hub:", "hf_hub:", "local-dir:")


def build(name: str, *, pretrained: bool, image_size: int | None = None, **kwargs: Any) -> Built:
    """A timm model without its classifier; gives pooled features.

    Args:
        name: `<model>` or `<model>.<tag>`, such as `vit_small_patch14_dinov2.lvd142m`, or
            `hf-hub:<org>/<repo>`.
        pretrained: Load its weights.
        image_size: Side of the images, in pixels; models with position embeddings are adapted.
        kwargs: For `timm.create_model`.
    """
    import timm
    from timm.data import config

    if not name.startswith(_HOSTED) and not timm.is_model(name):
        raise unknown("timm model", name, timm.list_models(), do="timm.list_models('*resnet*') finds names")
    model: nn.Module = timm.create_model(name, pretrained=pretrained, **{"num_classes": 0, **kwargs})
    settings: dict[str, Any] = config.resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    set_input_size: Any = getattr(model, "set_input_size", None)
    if image_size is not None and set_input_size is not None:
        set_input_size(img_size=image_size)
    return Built(model, _preprocess(settings, first_channels(model)))


def _preprocess(settings: dict[str, Any], channels: int | None) -> Preprocess:
    _, height, width = settings["input_size"]
    share = float(settings["crop_pct"])
    interpolation = settings["interpolation"]
    return Preprocess(
        (int(height), int(width)),
        per_channel("mean", settings["mean"], channels),
        per_channel("std", settings["std"], channels),
        resize=(math.floor(height / share), math.floor(width / share)),
        interpolation="bicubic" if interpolation == "random" else interpolation,
        fit=_FITS.get(settings.get("crop_mode") or "center", "shortest"),
    )
