"""Tiny versions of the backbones people use: `[B, 3, 32, 32]` in."""

from __future__ import annotations

from typing import Any

from lightly.models import ResNetGenerator
from lightly.models.modules import MaskedVisionTransformerTIMM, MaskedVisionTransformerTorchvision
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torchvision.models import VisionTransformer

from tests.parts import TinyBackbone

DIM = 16
"""Width of `TinyBackbone`."""
VIT_DIM = 32
PATCH = 8


def cnn() -> TinyBackbone:
    """A small CNN, `[B, 16]`."""
    return TinyBackbone()


def feature_maps() -> nn.Sequential:
    """The same CNN without pooling, `[B, 16, 8, 8]`."""
    return TinyBackbone().body


def resnet9() -> nn.Sequential:
    """lightly's smallest ResNet without its classifier, `[B, 64, 1, 1]`."""
    resnet = ResNetGenerator("resnet-9", width=0.125)
    return nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1))


def timm_vit(**options: Any) -> TimmViT:
    """A timm ViT of two blocks, `[B, 32]`."""
    options = {"img_size": 32, "embed_dim": VIT_DIM, "depth": 2, "num_heads": 2, "num_classes": 0, **options}
    return TimmViT(patch_size=PATCH, **options)


def masked_timm_vit(**options: Any) -> MaskedVisionTransformerTIMM:
    """lightly's maskable ViT around a timm one."""
    return MaskedVisionTransformerTIMM(vit=timm_vit(**options))


def masked_torchvision_vit() -> MaskedVisionTransformerTorchvision:
    """lightly's maskable ViT around a torchvision one."""
    vit = VisionTransformer(
        image_size=32, patch_size=PATCH, num_layers=2, num_heads=2, hidden_dim=VIT_DIM, mlp_dim=2 * VIT_DIM
    )
    return MaskedVisionTransformerTorchvision(vit=vit)
