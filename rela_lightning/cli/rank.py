"""`rela rank`: which prior is worth its cost on these images?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

import rela_lightning.data.modules  # noqa: F401  # for the short names of --data
from rela_lightning.cli.images import training_images
from rela_lightning.devices import device_of
from rela_lightning.diagnostics.fitness_check import fitness
from rela_lightning.diagnostics.image_faults import NO_BETTER
from rela_lightning.diagnostics.ranking import rank_priors
from rela_lightning.files import check_free, write_json
from rela_lightning.priors import load_prior

MOST_LOOKED_AT = 128
"""Images in which faults are looked for."""


def rank(
    priors: list[str],
    data: LightningDataModule,
    *,
    prior_kwargs: dict[str, Any] | None = None,
    student: str | None = None,
    num_samples: int = 2048,
    steps: int = 200,
    budget_seconds: float | None = None,
    image_size: int | None = None,
    image: str | None = None,
    device: str = "auto",
    seed: int = 0,
    out: str | None = None,
    overwrite: bool = False,
) -> None:
    """Put priors in order before any training and without labels, beside a random network and raw pixels.

    Below the table stands what looks wrong with the images or with a prior's preprocessing, as `fitness` finds it.

    Args:
        priors: `open_clip:<arch>/<tag>`, `timm:<model>`, `torchvision:<model>/<weights>`, ...: one or more.
        data: Data module whose training images are looked at, such as `CIFAR10Data`.
        prior_kwargs: Options of `load_prior`, for each of the priors: `image_size`, `mean`, `std`, `pooling`, ...
        student: Backbone that is to be trained, as `--model.backbone` takes it: says how near it comes to the targets.
        num_samples: Images that are looked at.
        steps: Of the student's short training for each prior; 0 leaves it out.
        budget_seconds: Planned seconds of training, to which the cost of labelling is compared.
        image_size: Side of the images the student sees; null for that of the first image, at most 224.
        image: Where the image is in a sample that holds several: `rgb`, `0`.
        device: Where networks run; `auto` takes the accelerator if there is one.
        seed: Seed of views, of the random network and of the short training.
        out: File to write the rows and the advice to, as JSON; its folder is made if it is missing.
        overwrite: Replace that file.

    Raises:
        ConfigError: If an option has a value that cannot work, or `out` is there already.
        DataError: If the images are not there, or cannot be read.
        PriorError: If there is no such prior.
    """
    file = None if out is None else Path(out).expanduser()
    if file is not None:
        check_free([file], overwrite=overwrite)  # before work that would be lost
    device_of(device)
    loaded, images = [load_prior(spec, **(prior_kwargs or {})) for spec in priors], training_images(data)
    where: dict[str, Any] = {"image": image, "device": device}
    ranking = rank_priors(
        loaded,
        images,
        student=student,
        num_samples=num_samples,
        steps=steps,
        budget_seconds=budget_seconds,
        image_size=image_size,
        seed=seed,
        **where,
    )
    sys.stdout.write(f"{ranking}\n")
    if file is not None:
        write_json(file, ranking.to_dict())
    for prior in loaded:
        seen = fitness(images, prior=prior, num_samples=min(num_samples, MOST_LOOKED_AT), seed=seed, **where)
        for finding in seen.without(NO_BETTER).findings:  # the table says that
            sys.stdout.write(f"{prior.name}, {finding}\n")
