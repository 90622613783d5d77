"""Classification models of torchvision (pytorch.org/vision)."""

from __future__ import annotations

from typing import Any

from torch import nn

from rela_lightning.errors import PriorError
from rela_lightning.priors.architectures import Architecture, unknown
from rela_lightning.priors.preprocess import Preprocess

_HEADS = ("fc", "classifier", "heads", "head")


def build(name: str, *, pretrained: bool, image_size: int | None = None, **kwargs: Any) -> Architecture:
    """A torchvision classifier without its last layer.

    Args:
        name: `<model>/<weights>`, such as `resnet50/IMAGENET1K_V2`; without weights the default ones.
        pretrained: Load these weights; their preprocessing is used in either case.
        image_size: Side of the images, in pixels; vision transformers are built for it.
        kwargs: For the model's builder.
    """
    import torchvision.models as zoo

    model_name, _, tag = name.partition("/")
    if model_name not in zoo.list_models(module=zoo):
        raise unknown("torchvision model", model_name, zoo.list_models(module=zoo))
    known = zoo.get_model_weights(model_name)
    if (tag or "DEFAULT") not in known.__members__:
        raise unknown(f"torchvision weights for {model_name}", tag, known.__members__)
    weights = known[tag or "DEFAULT"]
    if image_size is not None and model_name.startswith("vit_"):
        kwargs.setdefault("image_size", image_size)
    if model_name in ("googlenet", "inception_v3") and not pretrained:
        kwargs.setdefault("init_weights", False)  # the other choice takes minutes
    model: nn.Module = zoo.get_model(model_name, weights=weights if pretrained else None, **kwargs)
    _drop_head(model)
    return Architecture(model, _preprocess(weights.transforms()))


def _drop_head(model: nn.Module) -> None:
    """Replace the last linear layer of the classifier, in place, so that features come out."""
    attribute = next((name for name in _HEADS if isinstance(getattr(model, name, None), nn.Module)), None)
    if attribute is None:
        raise PriorError(
            "This torchvision model has no classifier to take off.",
            expected=f"a model with {', '.join(_HEADS)}",
            found=type(model).__name__,
            do="wrap it in an nn.Module that returns its features and hand that over",
        )
    head = getattr(model, attribute)
    layers = [name for name, module in head.named_modules() if isinstance(module, nn.Linear)]
    if not layers:  # SqueezeNet: a convolution makes the classes
        setattr(model, attribute, nn.AdaptiveAvgPool2d(1))
    elif layers[-1] == "":
        setattr(model, attribute, nn.Identity())
    else:
        parent, _, leaf = layers[-1].rpartition(".")
        setattr(head.get_submodule(parent), leaf, nn.Identity())


def _preprocess(transforms: Any) -> Preprocess:
    """Values of torchvision's `ImageClassification` preset."""
    crop, resize = int(transforms.crop_size[0]), int(transforms.resize_size[0])
    return Preprocess(
        (crop, crop),
        tuple(float(v) for v in transforms.mean),
        tuple(float(v) for v in transforms.std),
        resize=(resize, resize),
        interpolation=transforms.interpolation.value,
    )
