"""`build_targets`: one pass of the prior over a data set, kept for every training run after it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rela_lightning.compat import is_first_process
from rela_lightning.data.transforms import flips
from rela_lightning.diagnostics.image_faults import NO_BETTER, Finding
from rela_lightning.fingerprint.settings import feature_fields, fingerprint
from rela_lightning.priors.base import Prior
from rela_lightning.priors.load import load_prior
from rela_lightning.remote import is_url
from rela_lightning.rng import preserved_rng
from rela_lightning.targets.assemble import assemble, in_words
from rela_lightning.targets.claim import Claim
from rela_lightning.targets.disk import refuse_full, writing
from rela_lightning.targets.keys import write_keys
from rela_lightning.targets.label_view import DrawnCrops
from rela_lightning.targets.labelling import label
from rela_lightning.targets.manifest import KEYS, write_manifest
from rela_lightning.targets.options import as_width, check_options
from rela_lightning.targets.partial import clear, partial_folder, place_of, read_seconds
from rela_lightning.targets.place import new_folder, publish, settle
from rela_lightning.targets.plan import LabellingPlan
from rela_lightning.targets.records import record_type
from rela_lightning.targets.reduce import Standardise
from rela_lightning.targets.remote import build_at
from rela_lightning.targets.rounding import embed_exactly
from rela_lightning.targets.shards import Shape, where_bytes
from rela_lightning.targets.store import TargetStore
from rela_lightning.targets.subject import Subject, refuse_limits, subject_of

log = logging.getLogger("rela_lightning")


def build_targets(
    prior: Prior | str | Sequence[Any],
    dataset: Any,
    path: str | Path,
    *,
    image: str | None = None,
    key: str | None = None,
    views: int = 0,
    target_dim: int | float | None = None,
    standardise: Standardise = "shrunk",
    storage_dtype: torch.dtype | str = torch.float16,
    batch_size: int = 256,
    num_workers: int = 0,
    trainer: Any = None,
    check_images: int = 0,
    overwrite: bool = False,
) -> TargetStore:
    """Embed every image once and keep the result as training targets.

    The prior's features go through an exact PCA and standardisation (arXiv 2405.14669, section on
    ReLA-D). Rows are stored by data set index, those of a stream by the key of each sample. A second call with the
    same inputs returns at once.
    The random state of the process is left as it was.

    Working files lie in `.rela_lightning/<name>` beside the store, and go when it is done. After an
    interrupted pass they stay, and the next call embeds only the rows that are missing. Files that this
    package did not write are never moved, replaced or removed.

    Args:
        prior: From `load_prior`, or what `load_prior` takes.
        dataset: Map-style; `dataset[i]` is an image, or a tuple or dict with one image: PIL, uint8 tensor
            `[C, H, W]`, or float tensor in [0, 1]. Its own `transform` is set aside while labelling and restored.
            Or a stream (an IterableDataset, such as a WebDataset pipeline) of such samples, each with a text that no
            other sample has: its key. It shares its samples among worker processes and devices itself.
        path: Folder to write: missing (its parent too), empty, or with targets of ours. A link stands
            for the folder it points to. Or a URL (`s3://bucket/targets`): the targets are built on this machine, below
            `$TORCH_HOME`, and copied there.
        image: Where the image is in a sample that holds several (masks, depth maps, other views), keys and positions
            with dots between: `"rgb"`, `"0"`; `None` to find it, see `rela_lightning.data.find_image`. Kept in the
            manifest, so that training finds it too.
        key: Where the key is in a sample of a stream, keys and positions with dots between: `"2"`, `"meta.id"`; `None`
            takes the entry `__key__` or `key`, or the only text of a tuple.
        views: Crops K of each image that are embedded too, beside the whole image (view 0): half of the image or
            more, mirrored half of the time, or never where the data set's own views never are. Their boxes are kept, so
            that training can make exactly the crop whose target it uses. Costs K more forwards of the prior an image;
            it is read and decoded once.
        target_dim: Keep at most this many columns, at most the prior's feature_dim; a share in (0, 1) keeps the
            fewest that explain so much of the variance (0.95), `None` every one above the rank cut (see
            `rela_lightning.targets.reduce.rank_tolerance`).
        standardise: `shrunk` (from `isotropic` for few images to `per_dim` for many more than feature_dim), `per_dim`
            (the paper's: each column mean 0, standard deviation 1), `isotropic` (one scale for all, as PHI-S) or
            `none` (centred and rotated only; under the cosine the same as `isotropic`). See
            `rela_lightning.targets.reduce.projection`.
        storage_dtype: `torch.float16`, `torch.float32`, or `torch.int8` with a scale for each row: half of float16.
            `manifest["storage_cosine"]` says what it loses.
        batch_size: Images (each view is one) in one forward of the prior, on each device.
        num_workers: Worker processes that read images, on each device.
        trainer: A Lightning trainer of either package, with any strategy; its callbacks are left out meanwhile,
            and its progress bar gives way to one that counts images. `None` makes a quiet one for one device.
        check_images: Before the pass, look at so many images (32 at least) for what makes targets worthless, as
            `rela_lightning.fitness` does; a warning says what was found, and training repeats it. 0 looks at none; at
            least 32. Streams are not looked at.
        overwrite: Build again where targets exist; the old ones stay until the new ones are done. Only
            targets that `build_targets` made are replaced, and only if nothing else is in their folder.

    Returns:
        The store at `path`.

    Raises:
        DataError: If the data set has neither indices nor keys, or rows that are not images.
        TargetError: If targets exist that were built for something else (each differing field is
            named), the features are NaN, infinite or all the same, something else is at `path`, another
            job is at work there (with a `trainer`; without one it is waited for), or the disk is full or
            cannot be written.
        ConfigError: If an option has a value that cannot work.

    Example:
        >>> from rela_lightning import build_targets, load_prior
        >>> from rela_lightning.data import Digits
        >>> prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=0.5, std=0.5)
        >>> store = build_targets(prior, Digits(), "targets/digits")
        >>> store[[0, 5]].shape
        torch.Size([2, 64])
    """
    target_dim = as_width(target_dim)
    if is_url(path):
        options: dict[str, Any] = {
            "image": image, "key": key, "views": views, "target_dim": target_dim, "standardise": standardise,
            "storage_dtype": storage_dtype, "batch_size": batch_size, "num_workers": num_workers, "trainer": trainer,
            "check_images": check_images,
        }  # fmt: skip

        def build(folder: Path, again: bool) -> TargetStore:
            return build_targets(prior, dataset, folder, overwrite=again, **options)

        return build_at(str(path), build, trainer, overwrite=overwrite)
    started = time.time()
    place = place_of(path)
    with Claim(partial_folder(place)) as claim:
        settle(place, claim, overwrite=overwrite)  # before the prior is loaded, which may take long
        prior = load_prior(prior)
        storage = check_options(
            prior=prior,
            views=views,
            target_dim=target_dim,
            standardise=standardise,
            storage_dtype=storage_dtype,
            batch_size=batch_size,
            num_workers=num_workers,
            check_images=check_images,
            trainer=trainer,
        )
        with preserved_rng():
            subject = subject_of(dataset, image=image, key=key)
            crops = DrawnCrops(views, not views or flips(dataset))
            output = {
                "views": views,
                **({} if crops.flip or not views else {"mirrored_crops": False}),
                "target_dim": target_dim,
                "standardise": standardise,
                "storage_dtype": storage,
                **({} if image is None else {"image": image}),
            }
            fields = subject.fields(prior, output)
            job = _Job(place, claim, overwrite, prior, subject, fields, Shape(1 + views, prior.feature_dim), crops)
            done = job.finished()
            if not done and subject.length is None:
                refuse_limits(trainer)
            if not done and trainer is None:
                claim.take(wait=True)
                done = job.finished()  # by the job that was waited for
            if not done:
                if check_images and subject.length is not None and is_first_process():
                    job = replace(job, findings=_looked_at(prior, dataset, image, check_images))
                plan = LabellingPlan(
                    subject.dataset,
                    subject.length,
                    claim,
                    feature_fields(fields),
                    batch_size,
                    num_workers,
                    started,
                    job.shape,
                    crops,
                )
                label(prior, plan, trainer, job.finish)
    return TargetStore(path)


@dataclass(frozen=True)
class _Job:
    """One build: where to, from what, and how it ends."""

    place: Path
    claim: Claim
    overwrite: bool
    prior: Prior
    subject: Subject
    fields: dict[str, Any]
    shape: Shape
    crops: DrawnCrops
    findings: list[Finding] | None = None
    """What looked wrong beforehand; None where nobody looked."""

    def finished(self) -> bool:
        """Whether these very targets exist; other ones are refused unless they may be overwritten."""
        if not settle(self.place, self.claim, overwrite=self.overwrite) or self.overwrite:
            return False
        self.subject.refuse_other(TargetStore(self.place), self.fields, self.prior)
        return True

    def finish(self, device: torch.device, ended: float) -> None:
        """Reduce the rows, put the store in its place; `ended` is when the pass did (`time.time()`), on `device`."""
        self.claim.take(wait=True)  # rank 0 of `ddp_spawn` held it, and is gone
        folder = self.claim.folder
        if self.finished():  # by another job, where no lock kept it off
            clear(folder)
            return
        whole = self.subject.whole(folder, self.shape)
        length, fields = whole.length, self.fields | whole.fields
        exact = embed_exactly(self.prior, self.subject.again(self.prior, whole, self.crops), device)
        record = record_type(self.shape.dim, self.fields["storage_dtype"])
        with writing(self.place, length * self.shape.views * record.itemsize):
            out = new_folder(folder)
            refuse_full(folder, where_bytes(length))  # a mapped file on a full disk ends the process without a word
            made = assemble(
                folder,
                out,
                length=length,
                shape=self.shape,
                target_dim=self.fields["target_dim"],
                standardise=self.fields["standardise"],
                storage=self.fields["storage_dtype"],
                exact=exact,
                keys=whole.keys,
            )
            if whole.keys is not None:
                write_keys(out / KEYS, whole.keys)
            manifest = {
                "fingerprint": fingerprint(fields),
                "prior": self.prior.name,
                "prior_options": self.prior.options,
                "length": length,
                "views": self.shape.views - 1,
                **made,
                "labelling_seconds": round(read_seconds(folder) + time.time() - ended, 3),
                "labelling_flops": exact.flops and exact.flops * length * self.shape.views,
                "settings": fields,
                "sample": self.subject.remembered(),
            }
            if self.findings is not None:
                manifest["findings"] = [finding._asdict() for finding in self.findings]
            write_manifest(out, manifest)
            publish(folder, self.place)
        for line in in_words(made, length * self.shape.views):
            log.warning("%s: %s", self.place, line)


def _looked_at(prior: Prior, dataset: Any, image: str | None, count: int) -> list[Finding]:
    """What `fitness` finds in a sample, said in a warning; a random prior knows nothing on purpose."""
    from rela_lightning.diagnostics.fitness_check import fitness

    found = fitness(dataset, prior=prior, image=image, num_samples=count)
    if prior.name.startswith("random:"):
        found = found.without(NO_BETTER)
    if not found:
        log.warning("before labelling, %s", found)
    return list(found.findings)
