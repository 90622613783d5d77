"""What a prior's targets are worth: how rich they are, what of them survives a change of view, who can follow them."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rela_lightning.diagnostics.linear_map import transport_distance
from rela_lightning.diagnostics.spread import rank_of_variances
from rela_lightning.diagnostics.survey import Survey
from rela_lightning.networks.encode import encode, pooled
from rela_lightning.rng import preserved_rng
from rela_lightning.targets.reduce import pca, project, projection, streaming_moments
from rela_lightning.transport import LinearTransport, transport_loss

HELD_OUT = 5
"""Every fifth row is held out of a short training."""


class Worth(NamedTuple):
    """Of the targets that features would become.

    Attributes:
        targets: Float64 `[n, D]`, standardised as `build_targets` does.
        richness: Effective rank of the features after the noise cut.
        stability: Mean cosine of the target of an image's view with that of the image; 0 for any two images.
        stable_directions: Sum over the D columns of the correlation between image and view.
    """

    targets: Tensor
    richness: float
    stability: float
    stable_directions: float


def worth_of(found: Survey, name: str, *, target_dim: int | None = None) -> Worth:
    """Turn a prior's features into targets, and see what they hold.

    Args:
        found: Features of a sample; the length of its data set decides on the standardisation.
        name: Of the prior.
        target_dim: Columns that the student takes; None for all.

    Raises:
        TargetError: If the features are the same for all images.
    """
    features, views = found.features[name], found.views[name]
    components = pca(streaming_moments([features]))
    by = projection(components._replace(rows=found.length).first(target_dim), "shrunk")
    targets, seen = project(features.double(), by), project(views.double(), by)
    own = targets[found.viewed]
    one, two = (rows - rows.mean(dim=0) for rows in (own, seen))
    correlation = F.cosine_similarity(one, two, dim=0)
    return Worth(
        targets,
        rank_of_variances(components.variance),
        float(F.cosine_similarity(own, seen, dim=1).mean()),
        float(correlation.sum()),
    )


class Followed(NamedTuple):
    """How near a student comes to targets.

    Attributes:
        before: `transport_distance` from its features as they are.
        after: Transport loss on held-out images after a short training.
    """

    before: float
    after: float | None


def follow(
    student: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    steps: int,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Followed:
    """Send a copy of the student after the targets for some steps: AdamW 1e-3, whole images, no augmentation.

    Args:
        student: Backbone; it stays as it is.
        images: Uint8 `[n, 3, S, S]`.
        targets: `[n, D]`.
        steps: Of training; 0 for none.
        batch_size: Images in one step.
        device: Where to train.
        seed: Seed of the order of images and of the map; the random state is left as it was.
    """
    network = copy.deepcopy(student).to(device)
    pixels = images.float().div_(255)
    mean, std = pixels.mean(dim=(0, 2, 3), keepdim=True), pixels.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-3)
    pixels = (pixels - mean) / std

    def features(rows: Tensor) -> Tensor:
        return torch.cat([encode(network, pixels[part].to(device)).float().cpu() for part in torch.split(rows, 256)])

    def trained(batch: Tensor) -> Tensor:
        return pooled(network, network(batch), batch).float()

    everything = torch.arange(len(pixels))
    before = transport_distance(features(everything), targets)
    if not steps:
        return Followed(before, None)
    held_out = everything % HELD_OUT == 0
    generator = torch.Generator().manual_seed(seed)
    linear = LinearTransport(features(everything[:2]).shape[1], targets.shape[1], seed=seed).to(device)
    optimizer = torch.optim.AdamW([*network.parameters(), *linear.parameters()], lr=1e-3)
    train = everything[~held_out]
    network.train()
    with preserved_rng(seed), torch.enable_grad():
        for _ in range(steps):
            rows = train[torch.randperm(len(train), generator=generator)[:batch_size]]
            loss = transport_loss(linear(trained(pixels[rows].to(device))), targets[rows].to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        left = everything[held_out]
        after = transport_loss(linear(features(left).to(device)).cpu(), targets[left])
    return Followed(before, float(after))
