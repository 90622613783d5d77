"""`build_targets`: one pass of the prior over a data set, kept for every training run after it."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rela_lightning.errors import ConfigError, TargetError
from rela_lightning.fingerprint.dataset import Sample, take_sample
from rela_lightning.fingerprint.settings import feature_fields, fields_of, fingerprint, refuse_difference
from rela_lightning.namespaces import NAMESPACES
from rela_lightning.priors.base import Prior
from rela_lightning.priors.load import load_prior
from rela_lightning.targets.assemble import assemble
from rela_lightning.targets.images import check_length
from rela_lightning.targets.partial import claimed, partial_folder, publish, read_seconds, recover
from rela_lightning.targets.reduce import STANDARDISATIONS, Standardise
from rela_lightning.targets.rng import preserved_rng
from rela_lightning.targets.shards import missing_rows
from rela_lightning.targets.store import MANIFEST, TargetStore
from rela_lightning.targets.writer import LabellingPlan, on_rank_zero, steps_for

log = logging.getLogger("rela_lightning")

_DTYPES = {"float16": torch.float16, "float32": torch.float32}


def build_targets(
    prior: Prior | str | Sequence[Any],
    dataset: Any,
    path: str | Path,
    *,
    target_dim: int | float | None = None,
    standardise: Standardise = "per_dim",
    storage_dtype: torch.dtype | str = torch.float16,
    batch_size: int = 256,
    num_workers: int = 0,
    trainer: Any = None,
    overwrite: bool = False,
) -> TargetStore:
    """Embed every image once and keep the result as training targets.

    The prior's features go through an exact PCA and standardisation (arXiv 2405.14669, section on
    ReLA-D). Rows are stored by data set index. An interrupted pass leaves `<path>.partial`, and the
    next call embeds only the rows that are missing. A second call with the same inputs returns at
    once. The random state of the process is left as it was.

    Args:
        prior: From `load_prior`, or what `load_prior` takes.
        dataset: Map-style; `dataset[i]` is an image, `(image, ...)` or a dict with an image: PIL,
            uint8 tensor `[C, H, W]`, or float tensor in [0, 1]. Its own `transform` is set aside
            while labelling and put back.
        path: Folder to write; its parent may be missing.
        target_dim: Keep at most this many columns, at most the prior's feature_dim; a share in (0, 1) keeps the
            fewest that explain so much of the variance (0.95), `None` every one above the rank cut (see
            `rela_lightning.targets.reduce.rank_tolerance`).
        standardise: `per_dim` (each column mean 0, standard deviation 1), `isotropic` (one scale for
            all, as PHI-S) or `none` (centred and rotated only; under the cosine the same as `isotropic`).
        storage_dtype: `torch.float16` or `torch.float32`.
        batch_size: Images in one forward of the prior, on each device.
        num_workers: Worker processes that read images, on each device.
        trainer: A Lightning trainer of either package, with any strategy; its callbacks other than
            the progress bar rest meanwhile. `None` makes a quiet one for one device.
        overwrite: Build again where targets exist; the old ones stay until the new ones are done.

    Returns:
        The store at `path`.

    Raises:
        DataError: If the data set has no length or indices, or rows that are not images.
        TargetError: If targets exist that were built for something else (each differing field is
            named), or the features are NaN, infinite or all the same.
        ConfigError: If an option has a value that cannot work.
    """
    started = time.time()
    prior = load_prior(prior)
    dtype = _checked(
        prior=prior,
        target_dim=target_dim,
        standardise=standardise,
        storage_dtype=storage_dtype,
        batch_size=batch_size,
        num_workers=num_workers,
        trainer=trainer,
    )
    with preserved_rng():
        length = check_length(dataset)
        sample = take_sample(dataset, length)
        fields = fields_of(
            prior,
            dataset,
            sample,
            length,
            target_dim=target_dim,
            standardise=standardise,
            storage_dtype=str(dtype).removeprefix("torch."),
        )
        job = _Job(Path(path).expanduser(), prior, fields, sample, dtype)
        if job.finished(overwrite):
            return TargetStore(job.path)
        with ExitStack() as held:
            if trainer is None:
                held.enter_context(claimed(job.folder, wait=True))
                if job.finished(overwrite):  # by the job that was waited for
                    return TargetStore(job.path)
            plan = LabellingPlan(
                dataset,
                length,
                job.folder,
                feature_fields(fields),
                trainer is not None,
                batch_size,
                num_workers,
                started,
            )
            _label(prior, plan, trainer, job.finish)
    return TargetStore(job.path)


@dataclass(frozen=True)
class _Job:
    """One build: where to, from what, and how it ends."""

    path: Path
    prior: Prior
    fields: dict[str, Any]
    sample: Sample
    dtype: torch.dtype

    @property
    def folder(self) -> Path:
        return partial_folder(self.path)

    def finished(self, overwrite: bool) -> bool:
        """Whether these very targets exist; other ones are refused unless they may be overwritten."""
        recover(self.path)
        if overwrite or not self.path.exists():
            return False
        refuse_difference(self.path, TargetStore(self.path).manifest, self.fields, self.sample)
        return True

    def finish(self, ended: float) -> None:
        """Reduce the rows, put the store in its place; `ended` is when the pass did (`time.time()`)."""
        length, dim = self.fields["dataset_length"], self.prior.feature_dim
        missing = missing_rows(self.folder, length, dim)
        if len(missing):
            raise TargetError(
                "The labelling pass ended early.",
                expected=f"{length} rows",
                found=f"{length - len(missing)}; the first missing row is {missing[0]}",
                do="remove limits such as limit_predict_batches or fast_dev_run from the trainer and call again: "
                "the rows so far are kept",
            )
        out = self.folder / "store"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        made = assemble(
            self.folder,
            out,
            length=length,
            feature_dim=dim,
            target_dim=self.fields["target_dim"],
            standardise=self.fields["standardise"],
            storage_dtype=self.dtype,
        )
        if made["dropped_dimensions"]:
            log.warning(
                "%s: %d of %d dimensions carry no variance and were dropped",
                self.path,
                made["dropped_dimensions"],
                dim,
            )
        manifest = {
            "fingerprint": fingerprint(self.fields),
            "prior": self.prior.name,
            "length": length,
            **made,
            "labelling_seconds": round(read_seconds(self.folder) + time.time() - ended, 3),
            "settings": self.fields,
            "sample": self.sample._asdict(),
        }
        (out / MANIFEST).write_text(json.dumps(manifest, indent=2))
        publish(out, self.path)
        shutil.rmtree(self.folder, ignore_errors=True)


def _label(prior: Prior, plan: LabellingPlan, trainer: Any, finish: Callable[[float], None]) -> None:
    """Run the pass on the trainer, then `finish` on its rank 0."""
    with _quiet(own=trainer is None):
        trainer = _own_trainer() if trainer is None else trainer
        module_class, writer_class = steps_for(trainer)
        module, writer = module_class(prior, plan), writer_class(plan)
        callbacks, home = trainer.callbacks, next((p.device for p in prior.parameters()), None)
        bar = trainer.progress_bar_callback
        trainer.callbacks = [writer] if bar is None else [bar, writer]
        try:
            trainer.predict(module, return_predictions=False)
        finally:
            trainer.callbacks = callbacks
            prior.to(home)
        ended = time.time()
        on_rank_zero(trainer, functools.partial(finish, ended))


def _own_trainer() -> Any:
    import lightning.pytorch as L

    return L.Trainer(
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
    )


@contextmanager
def _quiet(*, own: bool) -> Iterator[None]:
    """Keep Lightning's advice on loaders away, and its banner where the trainer is ours."""
    from lightning.fabric.utilities.warnings import PossibleUserWarning

    chatter = [logging.getLogger(name) for name in NAMESPACES]  # the trees share one of their loggers
    levels = [logger.level for logger in chatter]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*across ranks is zero.*")
        try:
            for logger in chatter if own else ():
                logger.setLevel(max(logger.level, logging.WARNING))
            yield
        finally:
            for logger, level in zip(chatter, levels, strict=True):
                logger.setLevel(level)


def _checked(
    *,
    prior: Prior,
    target_dim: int | float | None,
    standardise: str,
    storage_dtype: torch.dtype | str,
    batch_size: int,
    num_workers: int,
    trainer: Any,
) -> torch.dtype:
    """Refuse options that cannot work; the storage dtype as torch's."""
    share = isinstance(target_dim, float) and 0.0 < target_dim < 1.0
    width = isinstance(target_dim, int) and 1 <= target_dim <= prior.feature_dim
    if target_dim is not None and not (share or width):
        raise ConfigError(
            "`target_dim` is more than the prior gives." if target_dim > 1 else "`target_dim` is not a width.",
            expected=f"1 to {prior.feature_dim} (feature_dim of {prior.name}), a share in (0, 1), or None",
            found=target_dim,
        )
    if standardise not in STANDARDISATIONS:
        raise ConfigError(
            "Unknown standardisation.", expected="one of the names below", found=standardise, exists=STANDARDISATIONS
        )
    dtype = _DTYPES.get(str(storage_dtype).removeprefix("torch."))
    if dtype is None:
        raise ConfigError("Unknown storage_dtype.", expected="torch.float16 or torch.float32", found=storage_dtype)
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(
            "Labelling needs images in a batch, and no fewer than 0 workers.",
            found=f"batch_size={batch_size}, num_workers={num_workers}",
        )
    precision = str(getattr(trainer, "precision", "32-true"))
    if precision.endswith("-true") and precision not in ("32-true", "64-true"):
        raise ConfigError(
            "This precision would round the prior's weights for good.",
            expected="32-true, bf16-mixed or 16-mixed",
            found=precision,
            do="make the labelling trainer with precision='bf16-mixed'",
        )
    return dtype
