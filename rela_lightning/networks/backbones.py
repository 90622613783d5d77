"""Backbones by name, without their classifier: one feature vector per image."""

from __future__ import annotations

from typing import Any

from torch import nn

from rela_lightning.errors import NetworkError
from rela_lightning.networks.build import SOURCES, build_network
from rela_lightning.networks.encode import measure_feature_dim
from rela_lightning.networks.own import is_path


def build_backbone(
    name: str, *, cifar_stem: bool = False, pretrained: bool = False, **kwargs: Any
) -> tuple[nn.Module, int]:
    """Build a network whose output pools to features `[B, F]`.

    The classifier's last linear layer is replaced by an identity, so that the state dict is the plain
    architecture's without that layer.

    Args:
        name: A torchvision model (`resnet18`), or as for priors `timm:<model>`, `torchvision:<model>/<weights>`,
            `lightly:<resnet-9, -18, -34, -50, -101, -152>` (lightly's ResNets for 32x32 images),
            `open_clip:<arch>/<tag>`, `checkpoint:<file>` (with `arch=`), `run:<folder>` (what a run has trained); or
            the dotted path of a class of your own, `mynet.MyNet`, whose output is taken as it is.
        cifar_stem: For small images: a 3x3 first convolution of stride 1 and no max-pooling, as in SimCLR's
            CIFAR-10 experiments (arXiv 2002.05709, B.9). ResNets only; lightly's have it already.
        pretrained: Start from the library's weights.
        **kwargs: Passed to the library's constructor (`weights="DEFAULT"`, `width=0.5`).

    Returns:
        The network, and the width F of its features.

    Raises:
        NetworkError: For an unknown name or a network without such a stem or classifier.

    Example:
        >>> network, width = build_backbone("lightly:resnet-9", width=0.125)
        >>> width
        64
    """
    network = build_plain(name, cifar_stem=cifar_stem, pretrained=pretrained, **kwargs)
    stated: int | None = getattr(network, "head_hidden_size", None) or getattr(network, "num_features", None)  # timm's
    return network, stated or measure_feature_dim(network)


def build_plain(name: str, *, cifar_stem: bool = False, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The network of `build_backbone` alone; its width is not asked for."""
    network = build_network(spec_of(name), pretrained=pretrained, **kwargs).network
    if cifar_stem:
        _shrink_stem(network, name)
    return network


def spec_of(name: str) -> str:
    """A backbone's name with its source: `torchvision:resnet18` for `resnet18`, `own:mynet.MyNet` for `mynet.MyNet`."""
    if name.partition(":")[0] in SOURCES:
        return name
    return f"own:{name}" if is_path(name) else f"torchvision:{name}"


def _shrink_stem(network: nn.Module, name: str) -> None:
    conv, pooling = getattr(network, "conv1", None), getattr(network, "maxpool", None)
    if isinstance(conv, nn.Conv2d) and conv.stride == (1, 1) and pooling is None:  # small already, as lightly's
        return
    if not isinstance(conv, nn.Conv2d) or not isinstance(pooling, nn.Module):
        raise NetworkError(
            f"{name} has no ResNet stem to shrink.",
            expected="a network with conv1 and maxpool",
            exists=[child for child, _ in network.named_children()],
            do="leave cifar_stem=False, or choose a ResNet",
        )
    small = nn.Conv2d(conv.in_channels, conv.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.maxpool = small, nn.Identity()
