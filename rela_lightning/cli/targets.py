"""`rela targets`: embed the training images once."""

from __future__ import annotations

import sys
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, Trainer

import rela_lightning.data.modules  # noqa: F401  # for the short names of --data
from rela_lightning.cli.images import training_images
from rela_lightning.data.find_image import image_at
from rela_lightning.devices import device_of
from rela_lightning.priors import load_prior
from rela_lightning.remote import is_url
from rela_lightning.targets import build_targets
from rela_lightning.targets.claim import Claim
from rela_lightning.targets.estimate import Estimate, estimate_targets
from rela_lightning.targets.partial import partial_folder, place_of
from rela_lightning.targets.place import settle
from rela_lightning.units import duration, size


def targets(
    prior: str | list[str],
    data: LightningDataModule,
    path: str,
    *,
    prior_kwargs: dict[str, Any] | None = None,
    storage_dtype: Literal["float16", "float32", "int8"] = "float16",
    check_images: int = 128,
    overwrite: bool = False,
    estimate: bool = False,
    trainer: Trainer | None = None,
    **options: Any,
) -> None:
    """Embed every training image once with a prior and keep the result for `ReLACallback`.

    An interrupted pass goes on where it stopped. Where these very targets exist, nothing is done.

    Args:
        prior: `open_clip:<arch>/<tag>`, `timm:<model>`, `torchvision:<model>/<weights>`, `checkpoint:<file>`,
            `run:<folder>` (what a run has trained), `own:<module>.<class>`, `random:<library>:<model>`; or a list of
            these, whose features are put side by side.
        data: Data module whose training images are labelled, such as `CIFAR10Data`; its views do not matter.
        path: Folder to write: missing, empty, or with targets that rela wrote. Working files are in
            `.rela_lightning` beside it. Or a URL, to which finished targets are copied.
        prior_kwargs: Options of `load_prior`: `arch` (for a checkpoint), `image_size`, `mean`, `std`, `pooling`,
            `seed` (for random weights), ...
        storage_dtype: Type of the numbers on disk; int8 has a scale for each row.
        check_images: Images that are looked at beforehand for what makes targets worthless (a preprocessing that does
            not fit, blank or repeated images, a prior that knows nothing); 0 looks at none.
        overwrite: Build again where other targets exist. Nothing but targets is ever replaced.
        estimate: Say what it will take (seconds, disk, memory), from a few batches on one device, and write nothing.
        trainer: Trainer that runs the prior, for several devices or mixed precision: `--trainer
            lightning.pytorch.Trainer --trainer.devices 4 --trainer.precision bf16-mixed`. null takes one device.
        **options: Those of `rela_lightning.build_targets`.
    """
    if not is_url(path):
        settle(place_of(path), Claim(partial_folder(path)), overwrite=overwrite)
    images = training_images(data)  # before the prior, which may be a large download
    network = load_prior(prior, **(prior_kwargs or {}))
    if estimate:
        asked = ("views", "target_dim", "batch_size", "num_workers")
        known = {name: options[name] for name in asked if options.get(name) is not None}
        images = image_at(images, options.get("image"))
        device = device_of("auto" if trainer is None else trainer.strategy.root_device)
        found = estimate_targets(network, images, storage_dtype=storage_dtype, device=device, **known)
        sys.stdout.write(_in_words(found))
        return
    store = build_targets(
        network,
        images,
        path,
        storage_dtype=storage_dtype,
        trainer=trainer,
        check_images=check_images,
        overwrite=overwrite,
        **options,
    )
    if trainer is None or trainer.is_global_zero:
        seconds = store.manifest["labelling_seconds"]
        images = f"{len(store)} images" + (f" and {store.views} crops of each" if store.views else "")
        sys.stdout.write(
            f"targets of {images}, {store.dim} columns by {store.manifest['prior']}, {seconds:.1f} s of labelling: "
            f"{path if is_url(path) else store.path}\n"
        )


def _in_words(found: Estimate) -> str:
    memory = "unknown" if found.memory_bytes is None else f"about {size(found.memory_bytes)}"
    return (
        f"{found.images:,} images at {found.images_per_second:.1f} a second on one device ({found.device}): about "
        f"{duration(found.seconds)}\n"
        f"disk: {size(found.store_bytes)} for the targets, {size(found.working_bytes)} more until they are done\n"
        f"memory of the process: {memory}\nNothing was written.\n"
    )
