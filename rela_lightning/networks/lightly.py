"""ResNets of lightly for small images (docs.lightly.ai), with a 3x3 stem and no pooling in it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rela_lightning.networks.build import Built


def build(name: str, *, pretrained: bool, image_size: int | None = None, **kwargs: Any) -> Built:
    """A `lightly.models.ResNetGenerator` network without its classifier.

    Args:
        name: `resnet-9`, `resnet-18`, `resnet-34`, `resnet-50`, `resnet-101` or `resnet-152`.
        pretrained: Must be False: lightly publishes no weights for these.
        image_size: Not needed: any size works.
        kwargs: For `ResNetGenerator`: `width`, `num_splits`.
    """
    from lightly.models import ResNetGenerator

    if pretrained:
        raise ValueError("lightly has no weights for it; use checkpoint:<file> with arch='lightly:...'")
    return Built(Trunk(ResNetGenerator(name, **kwargs)), None)


class Trunk(nn.Module):
    """The generator's layers under their own names, so that its checkpoints load, for images of any size.

    lightly's own forward pools 4x4 pixels whatever the size, which leaves one vector at 32 pixels only.

    Args:
        resnet: What `ResNetGenerator` gives.
    """

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.conv1 = resnet.get_submodule("conv1")
        self.bn1 = resnet.get_submodule("bn1")
        self.layer1 = resnet.get_submodule("layer1")
        self.layer2 = resnet.get_submodule("layer2")
        self.layer3 = resnet.get_submodule("layer3")
        self.layer4 = resnet.get_submodule("layer4")

    def forward(self, images: Tensor) -> Tensor:
        """Features `[B, F]` of images `[B, 3, H, W]`."""
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer2(self.layer1(features))
        features = self.layer4(self.layer3(features))
        return F.adaptive_avg_pool2d(features, 1).flatten(1)
