"""Where a step's targets come from: a store, by data set index, or the prior itself, on the fly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rela_lightning.data.normalisation import Scale, stated_scale
from rela_lightning.data.swap import has_rows, transform_owners
from rela_lightning.data.transforms import common_scale
from rela_lightning.errors import DataError, TargetError
from rela_lightning.networks.preprocess import preprocessed
from rela_lightning.priors import Prior, load_prior
from rela_lightning.targets.lookup import Crops, TargetLookup
from rela_lightning.targets.on_the_fly import Learner
from rela_lightning.targets.reduce import Projection, project
from rela_lightning.targets.rounding import exactly
from rela_lightning.targets.store import TargetStore
from rela_lightning.targets.verify import verify_prior


class BatchRows(NamedTuple):
    """Where a training batch came from, and the targets that came with it.

    Attributes:
        indices: Data set rows, int64 `[B]`, on the CPU; None for data without an index.
        transport_views: Whether it was made with the transform of the transport phase.
        targets: Float32 `[B, n, D]`, on the device; None where none were looked up.
    """

    indices: Tensor | None
    transport_views: bool
    targets: Tensor | None = None


class StoredTargets:
    """Targets of a store, looked up by data set index.

    Args:
        store: The store.
        prior: Prior that the targets must have been made with, to verify them; None to trust the manifest.
        num_samples: Samples that `check` compares; 0 checks the length only.
        crops: What the transport phase shows, see `TargetLookup`.
        num_views: Views of each image in a step of the transport phase.

    Attributes:
        lookup: Looks targets up where batches are made.
        image: Where the image is in a sample; None where labelling found it.
    """

    def __init__(
        self,
        store: TargetStore,
        *,
        prior: Prior | None = None,
        num_samples: int = 16,
        crops: Crops = "auto",
        num_views: int = 1,
    ) -> None:
        self._store, self._prior, self._num_samples = store, prior, num_samples
        self.lookup = TargetLookup(store, crops=crops, num_views=num_views)
        self.image: str | None = store.settings.get("image")
        self.fingerprint = store.fingerprint

    @property
    def summary(self) -> str:
        """What the targets are, in words."""
        store, crops = self._store, ""
        if store.views:
            crops = f" and of {store.views} crops each, {self.lookup.crops}"
        return f"{store.path} ({store.manifest['prior']} of {len(store)} images{crops}, {store.dim} columns)"

    @property
    def labelling_seconds(self) -> float:
        """What the targets took to make."""
        return float(self._store.manifest["labelling_seconds"])

    @property
    def directions(self) -> float | None:
        """Directions that the prior's features fill."""
        return self._store.directions

    @property
    def images(self) -> int | None:
        """Images that have targets by key; None where they are found by row."""
        return len(self._store) if self._store.keyed else None

    def check(self, dataset: Any) -> None:
        """Refuse a training data set that the targets do not belong to; a stream is checked batch by batch, by keys."""
        if self._store.keyed:
            if self._prior is not None:
                verify_prior(self._store, self._prior)
            return
        self._store.verify(dataset, self._prior, self._num_samples)

    def __call__(self, rows: BatchRows, view: Tensor, trainer: Any) -> Tensor | None:
        """Targets float32 `[B, n, D]` of a batch; looked up here only where its loader did not know of the need yet."""
        if rows.targets is not None or rows.indices is None:
            return rows.targets
        return torch.from_numpy(self.lookup.of_images(rows.indices.cpu().numpy()))

    def state_dict(self) -> dict[str, Any]:
        """Empty: the store is on disk."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def release(self) -> None:
        """Nothing to release."""


class PriorTargets:
    """Targets on the fly, `y = project(prior(view))`, one forward of the prior a step.

    The projection is learnt from the first batches, see `rela_lightning.targets.on_the_fly.Learner`: until
    `4 * feature_dim` images have passed, calls only collect and return None.

    Args:
        prior: The prior; it is moved to the views' device and is no part of the trained module.
    """

    lookup: TargetLookup | None = None
    image: str | None = None

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        self.fingerprint = prior.identity
        self._scale: Scale | None = None
        self._learner = Learner(prior.feature_dim)
        self._projection: Projection | None = None
        self.directions: float | None = None  # not known beforehand

    @property
    def summary(self) -> str:
        """What the targets are, in words."""
        return f"{self.prior.name}, which embeds every batch"

    labelling_seconds = 0.0
    """Nothing beforehand."""
    images: int | None = None
    """Nobody counted them."""

    @property
    def images_needed(self) -> int:
        """Images that have yet to pass, on all ranks together, before there are targets."""
        return 0 if self._projection is not None else self._learner.missing

    def check(self, dataset: Any) -> None:
        """Learn how the training views are normalised.

        Observed where the data set has rows and a transform; else a `Normalize` inside it is taken, and views
        without one are taken to be in `[0, 1]`.
        """
        owners = transform_owners(dataset)
        self._scale = common_scale(dataset) if owners and has_rows(dataset) else None
        if self._scale is None:
            self._scale = stated_scale([owner.transform for owner in owners] if owners else dataset)

    def __call__(self, rows: BatchRows, view: Tensor, trainer: Any) -> Tensor | None:
        """Targets of a view.

        Args:
            rows: Not used: the view itself is embedded.
            view: Normalised images `[B, C, H, W]`, float.
            trainer: For its strategy: ranks learn the projection together.

        Returns:
            Float32 `[B, 1, D]`, or None while images are being collected.
        """
        self.prior.to(view.device)
        inputs = self._inputs(view)
        features = self.prior(inputs)
        if self._projection is None:
            self._collect(features, inputs, trainer)
            return None
        with torch.autocast(features.device.type, enabled=False):
            return project(features, self._projection)[:, None]

    def release(self) -> None:
        """Free the device's memory."""
        self.prior.to("cpu")

    def _inputs(self, view: Tensor) -> Any:
        images = view.detach().float()
        if self._scale is not None:
            mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in self._scale)
            images = images * std + mean
        if self._projection is None:
            _check_range(images)
        return preprocessed(self.prior.preprocess, images.clamp(0.0, 1.0))

    def _collect(self, features: Tensor, inputs: Any, trainer: Any) -> None:
        exact = exactly(self.prior, inputs) if self._learner.compares else features
        if trainer.world_size > 1:
            features, exact = (trainer.strategy.all_gather(rows).flatten(0, 1) for rows in (features, exact))
        if not bool(features.isfinite().all()):
            raise TargetError(
                "The prior gave NaN or infinity.",
                expected="finite features",
                found=f"{self.prior.name} on a training batch",
                do="check the prior's weights and preprocessing",
            )
        self._learner.add(features.cpu(), exact.cpu())
        if self._learner.missing == 0:
            learnt, directions = self._learner.learn()
            if trainer.world_size > 1:
                *tensors, directions = trainer.strategy.broadcast((*learnt, directions))
                learnt = Projection(*tensors)
            self._projection, self.directions = learnt.to(features.device, torch.float32), directions

    def state_dict(self) -> dict[str, Any]:
        """The projection, or what was collected for it."""
        if self._projection is not None:
            return {"projection": [tensor.cpu() for tensor in self._projection], "directions": self.directions}
        return self._learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._projection = Projection(*state["projection"]) if "projection" in state else None
        self.directions = state.get("directions")
        self._learner.load_state_dict(state)


def open_source(
    targets: str | Path | TargetStore | None,
    prior: Prior | str | nn.Module | None = None,
    *,
    num_samples: int = 16,
    crops: Crops = "auto",
    num_views: int = 1,
) -> StoredTargets | PriorTargets:
    """The targets of a store, or those of a prior on the fly where there is no store.

    Args:
        targets: Folder of a store, or an open one; None for targets on the fly.
        prior: Prior or its spec; beside targets the one that they are verified with.
        num_samples: See `StoredTargets`.
        crops: See `StoredTargets`.
        num_views: See `StoredTargets`.

    Raises:
        PriorError: If there is no such prior.
        TargetError: If there is no such store.
    """
    loaded = None if prior is None else load_prior(prior)
    if targets is None and loaded is not None:
        return PriorTargets(loaded)
    store = targets if isinstance(targets, TargetStore) else TargetStore(str(targets))
    return StoredTargets(store, prior=loaded, num_samples=num_samples, crops=crops, num_views=num_views)


def _check_range(images: Tensor) -> None:
    """Refuse images outside [0, 1]: their scale is not known, and clamping would change them."""
    low, high = float(images.min()), float(images.max())
    if low < -0.1 or high > 1.1:
        raise DataError(
            "The views are normalised in a way that could not be told, so the prior cannot see them as they are.",
            expected="views in [0, 1], or normalised by `Normalize`, or by the data set's `transform`",
            found=f"pixels from {low:.3g} to {high:.3g}",
            do="normalise in the data set's transform, or label the images with build_targets",
        )
