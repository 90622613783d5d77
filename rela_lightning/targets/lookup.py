"""Which target goes with which view: asked for where a batch is made, in the loader's workers.

Stored crops are taken in turn, by the number of the epoch: each as often as any other, the same ones when a run is
resumed, and no random number is drawn that a run with one view would not draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rela_lightning.data.crops import draw_crop, overlap
from rela_lightning.errors import ConfigError
from rela_lightning.targets.store import TargetStore

Crops = Literal["auto", "stored", "nearest", "blended", "free"]
CROPS: tuple[Crops, ...] = ("auto", "stored", "nearest", "blended", "free")
_TEMPERATURE = 0.1  # of blending: a view that overlaps by .1 less weighs 1 / e of the other
_SAME_MIRROR = 0.05  # overlap that a view is ahead by, in the search for the nearest, if it is mirrored alike
# both chosen by the cosine with the target of the fresh crop itself: benchmarks/results/transport_agreement.json


class Plan(NamedTuple):
    """What the transport phase shows of some rows, and pulls it to.

    Attributes:
        sizes: Height and width of each image as labelled, int32 `[B, 2]`.
        crops: The crops to make, int32 `[B, n, 5]`.
        targets: The target of each, float32 `[B, n, D]`.
    """

    sizes: NDArray[np.int32]
    crops: NDArray[np.int32]
    targets: NDArray[np.float32]


class TargetLookup:
    """Looks targets up by data set row. Goes into workers with the data set; fresh crops are drawn by torch there.

    Args:
        store: The targets.
        crops: What the transport phase shows: `stored`, a crop that was labelled, with its own target; `nearest`, a
            fresh crop with the target of the stored view that overlaps most; `blended`, a fresh crop with the mean of
            the stored targets, weighted by overlap; `free`, a fresh crop with the target of the whole image. `auto` is
            `blended` where the store has crops, else `free`.
        num_views: Views of each image in a step, n.

    Raises:
        ConfigError: If the store has not the crops that are asked for.
    """

    def __init__(self, store: TargetStore, *, crops: Crops = "auto", num_views: int = 1) -> None:
        if crops not in CROPS:
            raise ConfigError("Unknown `crops`.", found=crops, exists=CROPS)
        if store.keyed and crops not in ("auto", "free"):
            raise ConfigError(
                "A stream makes its own views, so that no crop of ReLA's can be shown.",
                expected="auto (views meet the mean of an image's targets) or free (that of the whole image)",
                found=f"crops={crops!r}, with targets by key in {store.path}",
                do="leave `crops` out",
            )
        if crops == "auto":
            crops = "blended" if store.views else "free"
        least = {"free": 0, "stored": num_views}.get(crops, 1)
        if store.views < least:
            raise ConfigError(
                f"The targets have too few crops for crops={crops!r} and {num_views} views a step.",
                expected=f"{least} crops of each image or more",
                found=f"{store.views} in {store.path}",
                do=f"build_targets(..., views={max(least, 8)}), another `crops`, or fewer `num_views`",
            )
        self.store, self.crops, self.num_views = store, crops, num_views
        self.flip = bool(store.settings.get("mirrored_crops", True))

    @property
    def plans(self) -> bool:
        """Whether the transport phase makes the crops that `plan` says."""
        return self.crops != "free"

    def of_images(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Targets for views that the data set makes itself, of which nobody knows what they show.

        Returns:
            Float32 `[B, 1, D]` of rows `[B]`: the mean over the whole image and its crops, which is closer to what the
            prior says of a view (`benchmarks/mixed_targets.py`); with `free` crops that of the whole image.
        """
        if self.plans:
            mean: NDArray[np.float32] = self.store.read(rows).targets.mean(axis=1, keepdims=True)
            return mean
        return self.store.read(rows, np.zeros((len(rows), 1), np.int64)).targets

    def plan(self, rows: NDArray[np.integer], epoch: int | None) -> Plan:
        """The crops of some rows for one step.

        Args:
            rows: Data set rows, `[B]`.
            epoch: Number of the epoch; None draws stored crops at random, for epochs that see an image many times.
        """
        if self.crops == "stored":
            kept = self.store.read(rows, 1 + self._turns(len(rows), epoch))
            return Plan(kept.sizes, kept.crops, kept.targets)
        kept = self.store.read(rows)
        drawn = [[_draw(size, self.flip) for _ in range(self.num_views)] for size in kept.sizes.tolist()]
        crops = np.array(drawn, dtype=np.int32).reshape(len(rows), self.num_views, 5)
        return Plan(kept.sizes, crops, self._weights(crops, kept.crops) @ kept.targets)

    def _turns(self, count: int, epoch: int | None) -> NDArray[np.int64]:
        """Which of the K stored crops each row shows, `[count, n]`, different ones in a row."""
        if epoch is None:
            drawn: NDArray[np.int64] = torch.rand(count, self.store.views).argsort(dim=1)[:, : self.num_views].numpy()
            return drawn
        turn = (epoch * self.num_views + np.arange(self.num_views)) % self.store.views
        return np.broadcast_to(turn, (count, self.num_views))

    def _weights(self, crops: NDArray[np.int32], known: NDArray[np.int32]) -> NDArray[np.float32]:
        """Weights `[B, n, V]` of the known views `[B, V, 5]` in the target of each crop `[B, n, 5]`; their sum is 1."""
        shared = overlap(crops, known)
        if self.crops == "nearest":
            alike = crops[..., :, None, 4] == known[..., None, :, 4]
            nearest = (shared + _SAME_MIRROR * alike).argmax(axis=-1)
            chosen: NDArray[np.float32] = np.eye(known.shape[1], dtype=np.float32)[nearest]
            return chosen
        weights = np.exp((shared - shared.max(axis=-1, keepdims=True)) / _TEMPERATURE)
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


def _draw(size: Sequence[int], flip: bool) -> tuple[int, int, int, int, int]:
    return draw_crop(torch.empty(()).expand(1, *size), flip=flip)
