"""Classification models of torchvision (pytorch.org/vision)."""

from __future__ import annotations

from typing import Any

from torch import nn

from rela_lightning.networks.build import Built, unknown
from rela_lightning.networks.heads import remove_classifier
from rela_lightning.networks.preprocess import Preprocess


def build(name: str, *, pretrained: bool, image_size: int | None = None, **kwargs: Any) -> Built:
    """A torchvision classifier without its last layer.

    Args:
        name: `<model>/<weights>`, such as `resnet50/IMAGENET1K_V2`; without weights the default ones.
        pretrained: Load these weights; their preprocessing is used in either case.
        image_size: Side of the images, in pixels; vision transformers are built for it.
        kwargs: For the model's builder; `weights` as it takes them.
    """
    import torchvision.models as zoo

    model_name, _, tag = name.partition("/")
    model_name = model_name.lower()
    if model_name not in zoo.list_models(module=zoo):
        raise unknown("torchvision model", model_name, zoo.list_models(module=zoo))
    known = zoo.get_model_weights(model_name)
    if (tag or "DEFAULT") not in known.__members__:
        raise unknown(f"torchvision weights for {model_name}", tag, known.__members__)
    weights = known[tag or "DEFAULT"]
    if image_size is not None and model_name.startswith("vit_"):
        kwargs.setdefault("image_size", image_size)
    kwargs.setdefault("weights", weights if pretrained else None)
    if model_name in ("googlenet", "inception_v3") and kwargs["weights"] is None:
        kwargs.setdefault("init_weights", False)  # the other choice takes minutes
    model: nn.Module = zoo.get_model(model_name, **kwargs)
    return Built(remove_classifier(model), _preprocess(weights.transforms()))


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
