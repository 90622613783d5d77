"""The prior that comes with the package: a small ResNet trained on Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PRIOR_FILE = Path(__file__).parents[1] / "assets" / "fashion_mnist_resnet9.safetensors"
PRIOR_SETTINGS: dict[str, Any] = {
    "arch": "lightly:resnet-9",
    "width": 0.25,
    "image_size": 32,
    "mean": (0.286, 0.286, 0.286),  # of Fashion-MNIST
    "std": (0.353, 0.353, 0.353),
}
