"""Do views made in batches ask the same of a network as views made one image at a time? Losses of both, image by image.

    python benchmarks/view_agreement.py --data-root DIR [--steps 200] [--passes 4] [--seeds 0 1]

Trainings of two kinds differ by a point by chance alone (`device_accuracy.py`). One network, under many views of both
kinds of the same images, tells a hundred times finer whether there is anything in the views that could matter: the
transport loss, under the linear map that fits best, and the cosine of two views of one image, which is BYOL's and
SimCLR's task. Means over images with 95% intervals; beside each the same difference between views of one kind.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from candidates import COLOURS, SIZE, Decoded, train
from common import header, quiet_lightning, write_result
from convergence import settings_of
from images import MEAN, STD, Images, load_splits
from journal import without_paths
from networks import prior_of
from torch import Tensor
from torch.utils.data import default_collate

from rela_lightning import ReLACallback, TargetStore, build_targets
from rela_lightning.data import DeviceViews, build_views
from rela_lightning.schedules import TransportOnly

RESULT = Path(__file__).parent / "results" / "view_agreement.json"
_BATCH = 250


class Both:
    """Two views of each image, of either kind.

    Args:
        images: Decoded images.
    """

    def __init__(self, images: Images) -> None:
        self.images = images.images
        self.device = DeviceViews(build_views("simclr", SIZE, mean=MEAN, std=STD, options=COLOURS))

    def batches(self, number: int, *, in_batches: bool) -> Iterator[list[Tensor]]:
        """All images once, `[B, 3, H, W]` twice a batch; `number` is that of the pass."""
        torch.manual_seed(number)
        make: Callable[[Any], Any] = self.device if in_batches else self.device.per_image
        for images in self.images.split(_BATCH):
            views = default_collate([make(image) for image in images])
            yield self.device.on_device(views, "cpu", epoch=number) if in_batches else views


@torch.no_grad()
def features(backbone: torch.nn.Module, batches: Iterator[list[Tensor]]) -> Tensor:
    """Features of both views of each image, and a one for the bias, `[2, N, D + 1]`."""
    parts = [torch.stack([backbone(view).flatten(1) for view in views]) for views in batches]
    return F.pad(torch.cat(parts, dim=1), (0, 1), value=1.0)


def losses(found: Tensor, weight: Tensor, targets: Tensor, centre: Tensor) -> dict[str, Tensor]:
    """The transport loss and the cosine of two views, of each image."""
    alike = F.cosine_similarity(found[0] - centre, found[1] - centre, dim=1)
    return {"transport_loss": 1.0 - F.cosine_similarity(found @ weight, targets, dim=2).mean(0), "cosine": alike}


def compare(backbone: torch.nn.Module, both: Both, targets: Tensor, passes: int) -> dict[str, dict[str, float]]:
    """Means, differences and intervals of both kinds."""
    backbone.eval()
    kinds: dict[bool, list[Tensor]] = {False: [], True: []}
    for number in range(passes):
        for kind, each in kinds.items():
            each.append(features(backbone, both.batches(number, in_batches=kind)))
    every = torch.cat([part.flatten(0, 1) for each in kinds.values() for part in each])
    weight = torch.linalg.lstsq(every, targets.repeat(len(every) // len(targets), 1)).solution
    centre = every.mean(dim=0)
    of_kind = {kind: [losses(part, weight, targets, centre) for part in each] for kind, each in kinds.items()}
    found: dict[str, dict[str, float]] = {}
    for name in ("transport_loss", "cosine"):
        image, batch = (torch.stack([part[name] for part in of_kind[kind]]) for kind in (False, True))
        apart, chance = (batch - image).mean(0), (image[::2] - image[1::2]).mean(0)
        found[name] = {
            "one_at_a_time": round(float(image.mean()), 5),
            "in_batches": round(float(batch.mean()), 5),
            "difference": round(float(apart.mean()), 5),
            "interval": round(1.96 * float(apart.std()) / math.sqrt(len(apart)), 5),
            "same_kind_twice": round(float(chance.mean()), 5),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=200, help="of transport, before the network is asked")
    parser.add_argument("--passes", type=int, default=4, help="over the images, an even number")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.passes % 2 or options.passes < 2:
        parser.error("--passes is an even number: views of one kind are compared in pairs")
    torch.set_num_threads(1)
    quiet_lightning()
    images, settings = load_splits("cifar10", options.data_root, options.images).train, settings_of("byol", "cifar10")
    found: list[dict[str, Any]] = []
    for seed in options.seeds:
        kind = bool(seed % 2)  # networks that learnt from either kind
        data = Decoded(images, batch_size=settings["batch_size"], device_views=kind, seed=seed)
        path = options.data_root / f".device-accuracy-{len(images)}"
        build_targets(prior_of("random"), data.dataset("train"), path)
        callback = ReLACallback(path, schedule=TransportOnly(), num_views=1)
        module = train(data, settings, seed, options.steps, callback)
        store = TargetStore(path)
        targets = torch.stack([store[row] for row in range(len(images))]).float()
        made = compare(module.backbone, Both(images), targets, options.passes)
        found.append({"seed": seed, "learnt_in_batches": kind, **made})
        print(found[-1], flush=True)
    head = header(seeds=options.seeds)
    head["command"] = without_paths(head["command"], {"DATA_ROOT": options.data_root})
    write_result(options.out, head, {"images": len(images), "passes": options.passes, "networks": found})


if __name__ == "__main__":
    main()
