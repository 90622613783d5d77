"""Train the prior that `rela demo` ships: a small ResNet-9 on Fashion-MNIST, supervised.

The demo pre-trains on handwritten digits, so its prior has to come from *other* real images and must not
need a download. This script makes it, from the folder that torchvision's `FashionMNIST` reads (MIT
licence, https://github.com/zalandoresearch/fashion-mnist):

    python benchmarks/train_demo_prior.py --data-root DATA

It writes float16 weights of the backbone alone (no classifier) with their history in the file's metadata.
The last epoch is kept, whatever it scores: the test images choose nothing, they are read once at the end.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from lightly.models import ResNetGenerator
from safetensors.torch import save_file
from torch import Tensor
from torchvision.datasets import FashionMNIST
from torchvision.transforms import v2

from rela_lightning.demo import PRIOR_FILE, PRIOR_SETTINGS

EPOCHS, BATCH_SIZE, MAX_LR = 8, 128, 4e-3


def images_and_labels(root: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    """Images as float `[N, 3, 32, 32]`, normalised as the demo will do it, and labels `[N]`."""
    data = FashionMNIST(root, train=train, download=False)
    size, mean, std = (PRIOR_SETTINGS[key] for key in ("image_size", "mean", "std"))
    prepare = v2.Compose(
        [
            v2.Resize(size, antialias=True),
            v2.Lambda(lambda x: x.expand(-1, 3, -1, -1)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    return prepare(data.data.unsqueeze(1)), data.targets


def augment(images: Tensor) -> Tensor:
    """Flip, turn, shift and scale each image of a batch `[B, C, H, W]` by its own small random amount."""
    count = len(images)
    angle = (torch.rand(count) - 0.5) * 0.5
    scale = 0.85 + 0.3 * torch.rand(count)
    flip = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    shift = (torch.rand(count, 2) - 0.5) * 0.3
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([cos * flip, -sin, shift[:, 0], sin * flip, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    hits = [(model(x).argmax(1) == y).float() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return torch.cat(hits).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds FashionMNIST/raw")
    parser.add_argument("--out", type=Path, default=PRIOR_FILE, help="safetensors file to write")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    images, labels = images_and_labels(args.data_root, train=True)
    model = ResNetGenerator("resnet-9", width=PRIOR_SETTINGS["width"], num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=MAX_LR, weight_decay=1e-2)
    steps = args.epochs * (len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, total_steps=steps)
    started = time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        order = torch.randperm(len(images))[: len(images) // BATCH_SIZE * BATCH_SIZE]
        for rows in order.split(BATCH_SIZE):
            loss = F.cross_entropy(model(augment(images[rows])), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {time.perf_counter() - started:.0f} s", flush=True)

    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)  # the accuracy is that of the rounded weights
    top1 = accuracy(model, *images_and_labels(args.data_root, train=False))
    backbone = {key: value.contiguous() for key, value in state.items() if not key.startswith("linear.")}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        backbone,
        args.out,
        metadata={
            "arch": "lightly:resnet-9, width 0.25, features [B, 128]",
            "data": "Fashion-MNIST, 60,000 training images at 32x32 RGB, supervised",
            "data_licence": "MIT (Zalando SE)",
            "licence": "Apache-2.0",
            "epochs": str(args.epochs),
            "seed": str(args.seed),
            "test_top1": f"{top1:.4f}",
            "made_by": "benchmarks/train_demo_prior.py",
        },
    )
    print(f"test top-1 {top1:.4f}; wrote {args.out} ({args.out.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
