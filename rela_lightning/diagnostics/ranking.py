"""Which prior is worth its cost, before any training and without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rela_lightning.data.crops import size_of
from rela_lightning.data.device.memory import originals
from rela_lightning.data.raw import check_length, raw_image
from rela_lightning.devices import device_of, home_of
from rela_lightning.diagnostics.image_faults import LEAST_SAMPLES
from rela_lightning.diagnostics.ranking_table import PriorRanking, PriorRow
from rela_lightning.diagnostics.similarity import mutual_knn
from rela_lightning.diagnostics.survey import PIXELS, RANDOM, Survey, controls, survey
from rela_lightning.diagnostics.worth import Followed, Worth, follow, worth_of
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.naming import distinct
from rela_lightning.networks.backbones import build_backbone
from rela_lightning.networks.encode import encode, find_backbone
from rela_lightning.priors.base import Prior
from rela_lightning.priors.load import load_prior
from rela_lightning.rng import preserved_rng

NEIGHBOURS = 10
LEAST_SIZE = 8
"""Side in pixels of the images that a student is shown at least."""
LARGEST_IMAGE = 224
"""Side in pixels of the images that a student is shown at most, unless it is told otherwise."""


def rank_priors(
    priors: Sequence[Any] | Mapping[str, Any],
    dataset: Any,
    *,
    student: nn.Module | str | None = None,
    num_samples: int = 2048,
    steps: int = 200,
    budget_seconds: float | None = None,
    image_size: int | None = None,
    image: str | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
) -> PriorRanking:
    """Put priors in order by what their targets hold, beside a random network and raw pixels. No label is read.

    A sample of the images, and one random view each of 512 of it, spread evenly too, goes through each prior; the
    features become targets as `build_targets` would make them. The order is that of the directions of these targets
    that survive the change of view (`PriorRow.stable_directions`): what differs between images and is no matter of crop
    and colour. It is a heuristic, held against the two controls; where a prior does not beat them, the advice says so.

    Args:
        priors: What `load_prior` takes, or priors; a dict gives them names.
        dataset: Map-style, as `build_targets` takes it, 32 images or more; its own transform is set aside.
        student: Backbone that is to be trained: a module, a LightningModule (its student is found), or a name as
            `build_backbone` takes it. It is copied. Then each row also says how near it comes to the targets.
        num_samples: Images, at least 32, spread evenly over the data set.
        steps: Of the student's short training for each prior, batches of 64; 0 leaves it out. It takes most of the
            time: 200 steps of a ResNet-18 at 224 px are for a GPU.
        budget_seconds: Planned seconds of training, to which the cost of labelling is compared.
        image_size: Side of the square images the student sees, at least 8; None for that of the first image, at most
            224.
        image: Where the image is in a sample that holds several, as in `build_targets`.
        device: Where networks run; `auto` takes the accelerator if there is one.
        seed: Seed of views, of the random network and of the short training; the random state is left as it was.

    Returns:
        Rows in order, the controls last, with a line of advice. `print` shows a table, `to_json()` gives JSON.

    Raises:
        ConfigError: For options out of range, no priors, or a device that is not there.
        PriorError: If there is no such prior.
        DataError: If the data set has no length or indices, too few images, or rows that are not images.
        TargetError: If a prior gives all images the same features, NaN or infinite ones.

    Example:
        `print(rank_priors(["timm:resnet50", "open_clip:ViT-B-16/openai"], train_images, student="resnet18"))`
    """
    _check(num_samples=num_samples, steps=steps, budget_seconds=budget_seconds, image_size=image_size)
    where = device_of(device)
    named = _named(priors)
    backbone = None if student is None else _backbone(student)
    with preserved_rng():
        dataset = originals(dataset, image)
        _check_enough(dataset)
        size = None if backbone is None else _image_size(dataset, image_size)
        width = None if backbone is None or size is None else _width(backbone, size)  # before the work
        everything = {**named, **(known_nothing := controls(seed))}
        found = survey(
            everything,
            dataset,
            num_samples=num_samples,
            image_size=size,
            device=where,
            seed=seed,
            progress="ranking priors",
        )
        worths = {name: worth_of(found, name, target_dim=width) for name in everything}
        followed = {
            name: follow(backbone, found.images, worth.targets, steps=steps, device=where, seed=seed)
            for name, worth in worths.items()
            if backbone is not None and found.images is not None
        }
    rows = [
        _row(
            name,
            found,
            worths,
            followed.get(name),
            parameters=sum(p.numel() for p in prior.parameters()),
            control=name in known_nothing,
            budget=budget_seconds,
        )
        for name, prior in everything.items()
    ]
    rows.sort(key=lambda row: (row.control, -row.stable_directions))
    return PriorRanking(tuple(rows), len(found.rows), found.length, len(found.viewed))


def _row(
    name: str,
    found: Survey,
    worths: dict[str, Worth],
    followed: Followed | None,
    *,
    parameters: int,
    control: bool,
    budget: float | None,
) -> PriorRow:
    own = worths[name]
    seconds = found.length * (found.reading + found.seconds[name])
    columns = own.targets.shape[1]
    near = min(NEIGHBOURS, len(own.targets) - 2)
    return PriorRow(
        name=name,
        control=control,
        parameters=parameters,
        feature_dim=found.features[name].shape[1],
        target_dim=columns,
        labelling_seconds=seconds,
        disk_bytes=2 * columns * found.length,
        budget_share=None if budget is None else seconds / budget,
        richness=own.richness,
        stability=own.stability,
        stable_directions=own.stable_directions,
        agreement={
            other: mutual_knn(own.targets, worth.targets, k=near) for other, worth in worths.items() if other != name
        },
        distance_before=None if followed is None else followed.before,
        loss_after=None if followed is None else followed.after,
    )


def _check(*, num_samples: int, steps: int, budget_seconds: float | None, image_size: int | None) -> None:
    enough, planned = num_samples >= LEAST_SAMPLES, budget_seconds is None or budget_seconds > 0
    if not enough or steps < 0 or not planned or (image_size is not None and image_size < LEAST_SIZE):
        raise ConfigError(
            "Priors cannot be ranked with these settings.",
            expected=f"num_samples >= {LEAST_SAMPLES}, steps >= 0, budget_seconds above 0 or None, "
            f"image_size >= {LEAST_SIZE} or None",
            found=f"num_samples={num_samples}, steps={steps}, budget_seconds={budget_seconds}, image_size={image_size}",
        )


def _check_enough(dataset: Any) -> None:
    length = check_length(dataset)
    if length < LEAST_SAMPLES:
        raise DataError(
            "There are too few images to rank priors by.",
            expected=f"{LEAST_SAMPLES} or more",
            found=f"{length} in {type(dataset).__name__}",
            do="choose by hand, a prior that was trained on images like these, or rank on more images of the kind",
        )


def _named(priors: Sequence[Any] | Mapping[str, Any]) -> dict[str, Prior]:
    """Priors by their names; a number is added where two have the same."""
    if isinstance(priors, (str, nn.Module)) or not priors:
        raise ConfigError(
            "Priors are ranked against each other and against controls.",
            expected="a list of one prior or more, or a dict with their names",
            found=priors if isinstance(priors, str) else "none" if not priors else type(priors).__name__,
        )
    pairs = priors.items() if isinstance(priors, Mapping) else [(None, prior) for prior in priors]
    loaded = [(name, load_prior(spec)) for name, spec in pairs]
    taken = (RANDOM, PIXELS)  # by the controls
    names = distinct([*taken, *(prior.name if name is None else str(name) for name, prior in loaded)])[len(taken) :]
    return dict(zip(names, (prior for _, prior in loaded), strict=True))


def _backbone(student: nn.Module | str) -> nn.Module:
    if isinstance(student, str):
        return build_backbone(student)[0]
    return find_backbone(student).network if hasattr(student, "training_step") else student


def _width(backbone: nn.Module, size: int) -> int:
    """Width of a student's features."""
    try:
        return encode(backbone, torch.zeros(2, 3, size, size, device=home_of(backbone))).shape[1]
    except Exception as error:  # whatever a network raises for images it was not made for
        raise ConfigError(
            "The student does not take the images.",
            expected=f"a network for [B, 3, {size}, {size}] that gives features",
            found=f"{type(backbone).__name__}: {type(error).__name__}: {str(error)[:300]}",
            do="set image_size to what it was made for; images have three channels here, grey ones too",
        ) from error


def _image_size(dataset: Any, asked: int | None) -> int:
    return min(*size_of(raw_image(dataset, 0)), LARGEST_IMAGE) if asked is None else asked
