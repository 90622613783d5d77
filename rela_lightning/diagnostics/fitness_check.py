"""Do prior, targets and images fit together? Asked before training, answered with the faults that were found."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rela_lightning.data.device.memory import originals
from rela_lightning.data.raw import check_length, pixels, raw_image
from rela_lightning.devices import device_of, moved
from rela_lightning.diagnostics.image_faults import (
    LEAST_SAMPLES,
    NO_BETTER,
    TOO_MANY,
    Finding,
    Seen,
    blank,
    grey,
    levels,
    other_normalisation,
    repeated,
    swapped_channels,
    tiny,
    wrong_scale,
)
from rela_lightning.diagnostics.similarity import mutual_knn
from rela_lightning.diagnostics.spread import effective_rank
from rela_lightning.diagnostics.survey import survey
from rela_lightning.diagnostics.worth import worth_of
from rela_lightning.errors import ConfigError
from rela_lightning.fingerprint.dataset import sampled_rows
from rela_lightning.networks.preprocess import preprocessed
from rela_lightning.priors.base import FusedPrior, Prior
from rela_lightning.priors.load import load_prior
from rela_lightning.rng import preserved_rng
from rela_lightning.targets.reduce import project
from rela_lightning.targets.verify import MIN_COSINE

if TYPE_CHECKING:
    from pathlib import Path

    from rela_lightning.targets.store import TargetStore

LEAST_SPREAD = 1e-3
"""Features whose deviation is less than this share of their mean are nearly constant."""
LEAST_DIRECTIONS = 3.0
BEYOND_RANDOM = 1.05
"""Times as many directions have to survive a change of view as with fresh random weights."""
MOST_INPUTS = 128
"""Images whose preprocessed pixels are held, for the first batch norm."""
LEAST_SHARED = 0.01
"""Neighbours beyond chance that targets and pixels share at least, where they are of the same images."""


@dataclass(frozen=True)
class Fitness:
    """What `fitness` found. True where it found nothing.

    Attributes:
        findings: The faults.
        num_samples: Images that were looked at.
    """

    findings: tuple[Finding, ...]
    num_samples: int

    def __bool__(self) -> bool:
        """Whether there is no fault."""
        return not self.findings

    def __str__(self) -> str:
        """A paragraph for each fault."""
        if not self.findings:
            return f"Nothing wrong was found in {self.num_samples} images."
        lines = [f"{len(self.findings)} of the checks found something, in {self.num_samples} images:"]
        lines += [f"- {finding}" for finding in self.findings]
        return "\n".join(lines)

    def without(self, name: str) -> Fitness:
        """All but the faults of a name, where something else says them, or they are meant."""
        return replace(self, findings=tuple(finding for finding in self.findings if finding.name != name))


def fitness(
    dataset: Any,
    *,
    prior: Prior | str | None = None,
    targets: TargetStore | str | Path | None = None,
    num_samples: int = 256,
    image: str | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Fitness:
    """Look for what makes targets worthless before anything is trained: some images, one view of each, no labels.

    Of images: duplicates, blank, grey and tiny ones. Of the prior's preprocessing: pixels scaled twice or not at all,
    inverted, red and blue swapped, another mean and std than its first batch norm has learnt from. Of its features:
    nearly constant, few directions, or no more that survives a change of view than with fresh random weights. Of
    targets: rows that are not those of the images. A fault is a suspicion, with what it rests on; nothing is raised.

    Args:
        dataset: Map-style, as `build_targets` takes it; its own transform is set aside.
        prior: The prior, or what `load_prior` takes.
        targets: A store, or its folder.
        num_samples: Images, at least 32, spread evenly over the data set. Of a data set that has fewer, directions,
            views and neighbours are not judged.
        image: Where the image is in a sample that holds several, as in `build_targets`.
        device: Where the prior runs; `auto` takes the accelerator if there is one.
        seed: Seed of the views; the random state is left as it was.

    Returns:
        The faults, if any: `print` it, or test it as a bool.

    Raises:
        ConfigError: If there are neither targets nor a prior, too few samples are asked for, or there is no such
            device.
        DataError: If the data set has no length or indices, or rows that are not images.
        PriorError: If there is no such prior.
        TargetError: If there is no such store, or the prior gives all images the same features, NaN or infinite ones.

    Example:
        >>> from rela_lightning import load_prior
        >>> from rela_lightning.data import Digits
        >>> prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=0.5, std=0.5)
        >>> print(fitness(Digits("train"), prior=prior, num_samples=32))  # doctest: +SKIP
    """
    if prior is None and targets is None:
        raise ConfigError("There is nothing to compare the images with.", expected="a prior, targets or both")
    if num_samples < LEAST_SAMPLES:
        raise ConfigError(
            "Too few images to judge by.",
            expected=f"num_samples >= {LEAST_SAMPLES}",
            found=num_samples,
        )
    device = device_of(device)
    store = _opened(targets)
    loaded = None if prior is None else load_prior(prior)
    with preserved_rng():
        where = image if image is not None or store is None else store.settings.get("image")
        dataset = originals(dataset, where)
        length = check_length(dataset)
        rows = sampled_rows(length, num_samples)
        parts: list[Any] = list(loaded.network.children()) if isinstance(loaded, FusedPrior) else [loaded]
        looks = _looks(dataset, rows, parts if loaded is not None else [], store is not None and loaded is None)
        found = [repeated(looks.images), blank(looks.images)]
        features: Tensor | None = None
        if loaded is not None:
            for part, inputs in zip(parts, looks.inputs, strict=True):
                found += _preprocessing(part, looks.images, torch.stack(inputs), device)
            features, faults = _features(loaded, dataset, rows, device, seed)
            found += faults
        if store is not None:
            found += _targets(store, rows, length, looks.thumbnails, features)
    return Fitness(tuple(finding for finding in found if finding is not None), len(rows))


def _opened(targets: Any) -> Any:
    from rela_lightning.targets.store import TargetStore

    return targets if targets is None or isinstance(targets, TargetStore) else TargetStore(targets)


class _Looks(NamedTuple):
    images: list[Seen]
    inputs: list[list[Tensor]]
    """Of the first images, as each part of the prior gets them."""
    thumbnails: list[Tensor]


def _looks(dataset: Any, rows: list[int], parts: list[Any], thumbnails: bool) -> _Looks:
    """Read the sample, one image at a time, and keep what is asked of it."""
    looks = _Looks([], [[] for _ in parts], [])
    for number, row in enumerate(rows):
        image = raw_image(dataset, row)
        array = _bytes(image)
        looks.images.append(Seen.of(array))
        if thumbnails:
            looks.thumbnails.append(_thumbnail(array))
        for part, inputs in zip(parts, looks.inputs, strict=True):
            if number < MOST_INPUTS:
                inputs.append(preprocessed(part.preprocess, image))
    return looks


def _bytes(image: Any) -> Any:
    """Pixels `[C, H, W]` from 0 to 255."""
    array = pixels(image)
    return array * 255.0 if array.dtype.kind == "f" else array


def _preprocessing(prior: Prior, images: list[Seen], inputs: Tensor, device: Any) -> list[Finding | None]:
    flat = levels(prior.preprocess)
    scale = wrong_scale(flat)
    mean = -flat.black / (flat.white - flat.black)
    found = [tiny(images, min(prior.input_shape[1:])), scale, swapped_channels(prior.preprocess, flat)]
    if scale is None:
        found.append(grey(images, colour_prior=float(mean.max() - mean.min()) > 0.02))
        with moved(prior, device):
            found.append(other_normalisation(prior, inputs.to(device), flat))
    return found


def _features(
    prior: Prior, dataset: Any, rows: list[int], device: Any, seed: int
) -> tuple[Tensor, list[Finding | None]]:
    """Features of the sample, and what is wrong with them."""
    both = {"prior": prior, "untrained": untrained(prior, seed)}
    seen = survey(both, dataset, num_samples=len(rows), num_views=len(rows), device=device, seed=seed)
    features = seen.features["prior"]
    centre = features.double().mean(dim=0)
    spread = float((features.double() - centre).square().sum(dim=1).mean().sqrt() / centre.norm().clamp_min(1e-30))
    if spread < LEAST_SPREAD:
        told = f"features vary by {spread:.1g} of their mean from image to image: mostly rounding."
        return features, [Finding("nearly constant targets", told, "check the prior's weights and preprocessing")]
    if len(rows) < LEAST_SAMPLES:  # they fill few directions whatever the prior is
        return features, []
    directions = effective_rank(features, centre=True)
    if directions < LEAST_DIRECTIONS:
        told = f"features fill {directions:.1f} directions of {features.shape[1]}."
        return features, [Finding("nearly constant targets", told, "check the prior's weights and preprocessing")]
    own, known_nothing = (worth_of(seen, name).stable_directions for name in both)
    if own >= BEYOND_RANDOM * known_nothing:
        return features, [None]
    told = f"{own:.1f} directions survive a change of view, and {known_nothing:.1f} with fresh random weights."
    do = "check that the prior's weights were loaded and its preprocessing is its own; rank_priors compares others"
    return features, [Finding(NO_BETTER, told, do)]


def untrained(prior: Prior, seed: int = 0) -> Prior:
    """The same network with fresh weights; the random state is kept.

    Layers draw them anew where they know how. What others hold (tokens, positions, the projections of attention) is
    shuffled, tensor by tensor: values of the same spread that have learnt nothing.
    """
    twin = copy.deepcopy(prior)
    with preserved_rng(seed), torch.no_grad():
        for part in twin.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
                continue
            for weights in part.parameters(recurse=False):
                order = torch.randperm(weights.numel())
                weights.copy_(weights.flatten()[order.to(weights.device)].view_as(weights))
    return twin


def _targets(
    store: TargetStore, rows: list[int], length: int, thumbnails: list[Tensor], features: Tensor | None
) -> list[Finding | None]:
    if len(store) != length:
        told = f"{len(store)} rows of targets for {length} images."
        return [Finding("other images", told, "build targets for this data set")]
    targets = store[torch.tensor(rows)].double()
    if not bool(targets.isfinite().all()):
        return [Finding("broken targets", "rows hold NaN or infinity.", "build the targets again")]
    found: list[Finding | None] = []
    if len(set(map(bytes, targets.numpy()))) < (1 - TOO_MANY) * len(rows):
        told = "many rows of targets are the same."
        found.append(Finding("nearly constant targets", told, "check the prior, or leave out images that repeat"))
    do = "build targets for this data set, with this prior; see that rows are in the order that was labelled"
    if features is not None and features.shape[1] == len(store.projection.mean):
        cosine = F.cosine_similarity(project(features.double(), store.projection), targets, dim=1)
        wrong = int((cosine < MIN_COSINE).sum())
        if wrong:
            told = (
                f"{wrong} of {len(rows)} rows are not what the prior makes of their images (cosine below {MIN_COSINE})."
            )
            found.append(Finding("other images", told, do))
    elif features is not None:
        told = f"the prior gives {features.shape[1]} features, the targets were made from {len(store.projection.mean)}."
        found.append(Finding("other prior", told, do))
    elif len(rows) >= LEAST_SAMPLES:
        shared = mutual_knn(torch.stack(thumbnails), targets, k=10)
        if shared < LEAST_SHARED:
            told = f"images that look alike have targets like any others' ({shared:.1%} of neighbours beyond chance)."
            found.append(Finding("other images", told, f"{do}; fitness(prior=...) compares row by row"))
    return found


def _thumbnail(array: Any) -> Tensor:
    """8 x 8 grey pixels, centred."""
    plane = torch.as_tensor(array.mean(axis=0, dtype="float32"))[None]
    small = F.interpolate(plane[None], size=(8, 8), mode="area").double().flatten()
    return small - small.mean()
