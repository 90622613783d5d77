"""What rounding in a labelling pass does to targets, with and without the components that it drowns.

    python benchmarks/target_rounding.py [--priors ...] [--passes ...]

Each prior embeds scikit-learn's digits twice: in strict float32, and in a coarse pass. The score is the cosine of the
coarse pass's targets with those that the same axes and scales give of the exact features, each centred by their own
mean, averaged over the images. `tf32` is imitated: the inputs and weights of convolutions and linear maps are cut to 10
bits of mantissa; it needs no GPU. One line a run goes to `results/target_rounding.jsonl`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from journal import Journal
from torch import Tensor, nn

from rela_lightning import load_prior
from rela_lightning.data import Digits
from rela_lightning.targets.reduce import PCA, moments, pca, project, projection
from rela_lightning.targets.rounding import exactly, sampled, without_rounding

SIZE: dict[str, Any] = {"image_size": 32, "mean": 0.5, "std": 0.5}


class LowRank(nn.Module):
    """A network's 512 features through 64 dimensions into 512, which rounding makes full rank again."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner = inner
        self.down, self.up = nn.Linear(512, 64, bias=False), nn.Linear(64, 512, bias=False)
        self.down.weight.data = torch.randn(64, 512, generator=generator) / 512**0.5
        self.up.weight.data = torch.randn(512, 64, generator=generator) / 8

    def forward(self, images: Tensor) -> Tensor:
        """Features `[B, 512]`."""
        features: Tensor = self.up(self.down(self.inner(images)))
        return features


def resnet(**options: Any) -> Any:
    """A ResNet-18 with random weights."""
    return load_prior("random:lightly:resnet-18", seed=0, **{**SIZE, **options})


PRIORS: dict[str, Callable[[], Any]] = {
    "resnet18": resnet,
    "vit_tiny": lambda: load_prior("random:timm:vit_tiny_patch16_224", img_size=32, patch_size=4, seed=0, **SIZE),
    "rank64": lambda: load_prior(LowRank(resnet()), image_size=32, mean=[0.5] * 3, std=[0.5] * 3),
    "fused": lambda: load_prior([resnet(width=0.25), Large(resnet(width=0.25))], **SIZE),
}


class Large(nn.Module):
    """A network whose features are a thousand times as large."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """Features `[B, F]`."""
        features: Tensor = 1000.0 * self.inner(images)
        return features


@contextmanager
def tf32(prior: nn.Module) -> Iterator[None]:
    """Inputs and weights of convolutions and linear maps have 10 bits of mantissa."""

    def cut(tensor: Tensor) -> Tensor:
        return (tensor.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)

    layers = [layer for layer in prior.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    kept = [layer.weight.data for layer in layers]
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: (cut(inputs[0]),)) for layer in layers]
    try:
        for layer in layers:
            layer.weight.data = cut(layer.weight.data)
        yield
    finally:
        for layer, weight, hook in zip(layers, kept, hooks, strict=True):
            layer.weight.data = weight
            hook.remove()


PASSES: dict[str, Callable[[nn.Module], Any]] = {
    "bf16-mixed": lambda prior: torch.autocast("cpu", dtype=torch.bfloat16),
    "16-mixed": lambda prior: torch.autocast("cpu", dtype=torch.float16),
    "tf32": tf32,
}


def cosines(coarse: Tensor, exact: Tensor, result: PCA) -> dict[str, float]:
    """Mean cosine by standardisation."""
    found = {}
    for name in ("shrunk", "per_dim"):
        by = projection(result, name)
        own = by._replace(mean=exact.double().mean(dim=0))
        cosine = F.cosine_similarity(project(coarse.double(), by), project(exact.double(), own))
        found[name] = round(float(cosine.mean()), 4)
    return found


def measure(prior: Any, images: list[Any], exact: Tensor, name: str) -> dict[str, Any]:
    """Columns and cosines of a coarse pass, with all components and with those above the rounding."""
    with PASSES[name](prior), torch.no_grad():
        coarse = torch.cat([prior(batch).float() for batch in images])
    full = pca(moments(coarse))
    rows = sampled(len(coarse))
    clear, rounding = without_rounding(full, moments(coarse[rows].double() - exact[rows]))
    return {
        "images": len(coarse),
        "all": {"columns": len(full.variance), **cosines(coarse, exact, full)},
        "kept": {"columns": len(clear.variance), **cosines(coarse, exact, clear)},
        "rounding": rounding._asdict(),
    }


def main() -> None:
    """Run what is not in the journal yet; print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS))
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "target_rounding.jsonl")
    options = parser.parse_args()
    journal = Journal(options.out, ("prior", "pass"), {"OUT": options.out})
    for name in options.priors:
        prior, digits = PRIORS[name](), Digits("train")
        views = [prior.preprocess(image) for image, _ in digits]
        batches = torch.utils.data.DataLoader(views, batch_size=64)  # type: ignore[arg-type]
        images = list(batches)
        exact = torch.cat([exactly(prior, batch) for batch in images])
        for coarse in options.passes:
            run = {"prior": name, "pass": coarse, "seed": 0}
            if not journal.has(run):
                journal.append({**run, **measure(prior, images, exact, coarse)})
    for row in journal.rows():
        print(f"{row['prior']:>9} {row['pass']:>10}  all {row['all']}  kept {row['kept']}", flush=True)


if __name__ == "__main__":
    main()
