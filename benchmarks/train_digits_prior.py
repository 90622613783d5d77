"""Train the prior from another world: a ResNet-9 that learns scikit-learn's digits from their labels.

    python benchmarks/train_digits_prior.py

It writes float16 weights of the backbone, which `prior_of("digits")` loads: trained anew, another machine's rounding
makes another network, and another prior.
"""

from __future__ import annotations

from typing import Any

import torch
from images import Images, SSLViews
from networks import DIGITS_PRIOR, build, fit
from safetensors.torch import save_file
from torchvision.transforms.functional import pil_to_tensor

from rela_lightning.data import Digits

STEPS = 300


def main() -> None:
    torch.set_num_threads(1)
    digits = Digits("train")
    images = torch.stack([pil_to_tensor(image) for image, _ in digits])
    data = Images(images, torch.tensor(digits.targets), SSLViews(1))
    settings = {"lr": 1e-3, "batch_size": 64, "momentum": 0.99}
    module: Any = build("supervised", settings, 0)
    fit(module, data, settings, 0, max_steps=STEPS)
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in module.backbone.state_dict().items()
    }
    save_file(state, DIGITS_PRIOR, metadata={"data": "digits of scikit-learn, supervised", "steps": str(STEPS)})
    print(DIGITS_PRIOR)


if __name__ == "__main__":
    main()
