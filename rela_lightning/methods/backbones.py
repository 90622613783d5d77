"""Backbones by name, without their classifier: one feature vector per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from rela_lightning.errors import ConfigError, nearest_names
from rela_lightning.priors.lightly import Trunk

_HEADS = ("fc", "classifier", "heads", "head", "linear")


def build_backbone(name: str, *, cifar_stem: bool = False, **kwargs: Any) -> tuple[nn.Module, int]:
    """Build a network that returns pooled features `[B, F]`.

    The classifier's last linear layer is replaced by an identity, so that the state dict is the plain
    architecture's without that layer.

    Args:
        name: A torchvision model (`resnet18`), `timm:<model>`, or `lightly:<resnet-9, -18, -34, -50, -101,
            -152>` (lightly's ResNets for 32x32 images).
        cifar_stem: For small images: a 3x3 first convolution of stride 1 and no max-pooling, as in SimCLR's
            CIFAR-10 experiments (arXiv 2002.05709, B.9). ResNets only; lightly's have it already.
        **kwargs: Passed to the library's constructor (`weights="DEFAULT"`, `pretrained=True`, `width=0.5`).

    Returns:
        The network, and the width F of its features.

    Raises:
        ConfigError: For an unknown name or a network without such a stem or classifier.
    """
    source, _, model = name.rpartition(":")
    if source == "timm":
        return _timm(model, cifar_stem, kwargs)
    if source == "lightly":
        from lightly.models import ResNetGenerator

        network = _made(name, ResNetGenerator, model, kwargs)
        width = network.linear.in_features
        return Trunk(network, pooled=True), width
    if source not in ("", "torchvision"):
        raise _unknown(name, ["resnet18", "timm:resnet18", "lightly:resnet-18"])
    from torchvision import models

    if model.lower() not in models.list_models():
        raise _unknown(name, models.list_models())
    network = _made(name, models.get_model, model, kwargs)
    width = _cut_classifier(network, name)
    if cifar_stem:
        _shrink_stem(network, name)
    return network, width


def _timm(model: str, cifar_stem: bool, kwargs: dict[str, Any]) -> tuple[nn.Module, int]:
    import timm

    if not timm.is_model(model):
        raise _unknown(f"timm:{model}", [f"timm:{known}" for known in timm.list_models()])
    network = _made(f"timm:{model}", timm.create_model, model, {"num_classes": 0, **kwargs})
    if cifar_stem:
        _shrink_stem(network, f"timm:{model}")
    width: int = getattr(network, "head_hidden_size", None) or network.num_features
    return network, width


def _made(name: str, make: Callable[..., Any], model: str, kwargs: dict[str, Any]) -> Any:
    """A library's model, with our error where its constructor does not take the name or an option."""
    try:
        return make(model, **kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} cannot be built.",
            expected="a name that its library has, and backbone_kwargs that its constructor takes",
            found=f"{', '.join(map(str, kwargs)) or 'no backbone_kwargs'}: {error}",
        ) from error


def _cut_classifier(network: nn.Module, name: str) -> int:
    """Replace the last linear layer of the classifier by an identity; return its width."""
    for attribute in _HEADS:
        head = getattr(network, attribute, None)
        linears = [path for path, m in head.named_modules() if isinstance(m, nn.Linear)] if head is not None else []
        if linears:
            parent, _, child = f"{attribute}.{linears[-1]}".rstrip(".").rpartition(".")
            owner = network.get_submodule(parent)
            width: int = getattr(owner, child).in_features
            setattr(owner, child, nn.Identity())
            return width
    raise ConfigError(
        f"{name} has no linear classifier to take off.",
        expected=f"a linear layer under one of {', '.join(_HEADS)}",
        exists=[child for child, _ in network.named_children()],
        do="build the network yourself and pass the module",
    )


def _shrink_stem(network: nn.Module, name: str) -> None:
    conv = getattr(network, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not isinstance(getattr(network, "maxpool", None), nn.Module):
        raise ConfigError(
            f"{name} has no ResNet stem to shrink.",
            expected="a network with conv1 and maxpool",
            exists=[child for child, _ in network.named_children()],
            do="leave cifar_stem=False, or choose a ResNet",
        )
    small = nn.Conv2d(conv.in_channels, conv.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.maxpool = small, nn.Identity()


def _unknown(name: str, names: Sequence[str]) -> ConfigError:
    return ConfigError(
        "Unknown backbone.",
        expected="a torchvision model, timm:<model> or lightly:<resnet>",
        found=name,
        exists=nearest_names(name, names),
    )
