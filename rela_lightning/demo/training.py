"""The demo's parts: views, one training run against the clock, and the probes afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from rela_lightning.callback import ReLACallback
from rela_lightning.data.digits import Digits
from rela_lightning.errors import ConfigError
from rela_lightning.methods import BYOL
from rela_lightning.probe import extract_features, few_label_evaluation, knn_predict, linear_evaluation
from rela_lightning.schedules import Switch
from rela_lightning.targets import TargetStore

ARCHITECTURE, WIDTH = "lightly:resnet-9", 0.25
BATCH_SIZE, LEARNING_RATE = 32, 1e-3
SWITCH_AT, SNAPSHOTS = 0.4, 4
LABELS_PER_CLASS, FOLDS, FOLD_SEED, NEIGHBOURS = 5, 5, 0, 20

Tick = Callable[[float], None]
_TO_TENSOR = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]


class TwoViews:
    """Two random views of a digit: crop, small turns and shears; no flip, which would make other digits."""

    def __init__(self) -> None:
        crop = v2.RandomResizedCrop(32, scale=(0.6, 1.0), antialias=True)
        self.view = v2.Compose([crop, v2.RandomAffine(15, shear=10), *_TO_TENSOR])

    def __call__(self, image: Any) -> list[Tensor]:
        """Two float tensors `[3, 32, 32]` of a PIL image."""
        return [self.view(image), self.view(image)]


@dataclass
class Snapshot:
    """The backbone's weights at a moment of training."""

    seconds: float
    steps: int
    weights: dict[str, Tensor]


@dataclass
class Trained:
    """A finished run, not yet probed."""

    name: str
    labelling_seconds: float
    switch_seconds: float | None
    snapshots: list[Snapshot] = field(default_factory=list)


class Recorder(L.Callback):
    """Copies the backbone's weights at given moments and notes when SSL took over.

    Args:
        offset: Seconds already spent, on labelling.
        moments: Seconds, rising, at which to copy; those before `offset` are left out.
        tick: Told the seconds spent after every step.
    """

    def __init__(self, offset: float, moments: list[float], tick: Tick) -> None:
        self.offset, self.tick = offset, tick
        self.moments = [moment for moment in moments if moment > offset]
        self.snapshots: list[Snapshot] = []
        self.switch_seconds: float | None = None
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds spent so far, those on labelling included."""
        return self.offset + time.perf_counter() - self.started

    def copy(self, module: Any, steps: int) -> None:
        """Keep the weights the backbone has now."""
        weights = {key: value.detach().to("cpu", copy=True) for key, value in module.backbone.state_dict().items()}
        self.snapshots.append(Snapshot(self.seconds, steps, weights))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Copy if a moment has come."""
        if self.switch_seconds is None and trainer.callback_metrics.get("rela/phase") == 2:
            self.switch_seconds = self.seconds
        if self.moments and self.seconds >= self.moments[0]:
            while self.moments and self.seconds >= self.moments[0]:
                self.moments.pop(0)
            self.copy(pl_module, trainer.global_step)
        self.tick(self.seconds)


def build_byol(seed: int) -> BYOL:
    """The demo's BYOL; the same initial weights for the same seed."""
    torch.manual_seed(seed)
    model = BYOL(
        ARCHITECTURE,
        backbone_kwargs={"width": WIDTH},
        optimizer=lambda params: torch.optim.AdamW(params, lr=LEARNING_RATE, weight_decay=1e-2),
    )
    return model.to(memory_format=torch.channels_last)


def train(name: str, store: TargetStore | None, *, labelling: float, seconds: float, seed: int, tick: Tick) -> Trained:
    """Train the demo's BYOL until the clock, labelling included, stands at `seconds`.

    Args:
        name: Name of the run.
        store: Targets for ReLA; None trains plain BYOL.
        labelling: Seconds the targets took.
        seconds: Budget.
        seed: Seed of the initial weights, the order of images and the views.
        tick: Told the seconds spent after every step.

    Raises:
        ConfigError: If labelling leaves less than half of the budget.
    """
    if labelling > seconds / 2:
        raise ConfigError(
            "The budget is too small: labelling the images alone uses up more than half of it.",
            expected=f"more than {2 * labelling:.0f} seconds on this machine",
            found=f"{seconds:g}",
            do=f"rela demo --seconds {max(36, 3 * labelling):.0f}",
        )
    model = build_byol(seed)
    recorder = Recorder(labelling, [seconds * k / SNAPSHOTS for k in range(1, SNAPSHOTS)], tick)
    callbacks: list[Any] = [recorder]
    if store is not None:
        callbacks.append(ReLACallback(store, schedule=Switch(SWITCH_AT), transform=None))
    trainer = L.Trainer(
        max_epochs=-1,
        max_time=timedelta(seconds=seconds - labelling),
        accelerator="auto",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = Digits("train", transform=TwoViews())
    loader = DataLoader(data, BATCH_SIZE, shuffle=True, drop_last=True, num_workers=1, persistent_workers=True)
    recorder.started = time.perf_counter()
    try:
        trainer.fit(model, loader)
    except SystemExit as stopped:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from stopped
    if trainer.interrupted:
        raise KeyboardInterrupt
    recorder.copy(model, trainer.global_step)
    return Trained(name, labelling, recorder.switch_seconds, recorder.snapshots)


class Evaluation:
    """Linear, few-label and kNN probes on the digits, with nothing that is chosen by the test images."""

    def __init__(self) -> None:
        self.train, self.test = (tensors(split) for split in ("train", "test"))
        self._backbone = build_byol(0).backbone

    def probe(self, backbone: nn.Module, prepare: Callable[[Any], Tensor] | None = None) -> dict[str, Any]:
        """Top-1 accuracies of the three probes.

        Args:
            backbone: Network from images to features.
            prepare: Its own preprocessing of a PIL image; None for the student's.
        """
        data = (self.train, self.test) if prepare is None else [tensors(s, prepare) for s in ("train", "test")]
        (x, y), (test_x, test_y) = (extract_features(backbone, split) for split in data)
        few = few_label_evaluation(x, y, test_x, test_y, labels_per_class=LABELS_PER_CLASS, folds=FOLDS, seed=FOLD_SEED)
        linear = linear_evaluation(x, y, test_x, test_y, solver="lbfgs", standardise=True)
        knn = (knn_predict(x, y, test_x, k=NEIGHBOURS) == test_y).float().mean().item()
        return {
            "linear_top1": linear["top1"],
            "knn_top1": knn,
            "few_label_top1": {"mean": few["top1_mean"], "std": few["top1_std"]},
        }

    def run(self, trained: Trained, untrained: dict[str, Any], tick: Callable[[], None]) -> dict[str, Any]:
        """Probe every snapshot of a run; its curve starts with the untrained backbone, after labelling."""
        history = [{"seconds": trained.labelling_seconds, "steps": 0, **untrained}]
        for snapshot in trained.snapshots:
            self._backbone.load_state_dict(snapshot.weights)
            history.append({"seconds": snapshot.seconds, "steps": snapshot.steps, **self.probe(self._backbone)})
            tick()
        return {
            "name": trained.name,
            "labelling_seconds": trained.labelling_seconds,
            "switch_seconds": trained.switch_seconds,
            **history[-1],
            "history": history,
        }


def tensors(split: Any, prepare: Callable[[Any], Tensor] | None = None) -> TensorDataset:
    """Images and labels of a split of the digits, the images as the student gets them unless `prepare` is given."""
    data = Digits(split, transform=prepare or v2.Compose(_TO_TENSOR))
    images, labels = zip(*(data[i] for i in range(len(data))), strict=True)
    return TensorDataset(torch.stack(images), torch.tensor(labels))


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: on small images several mostly wait for each other, all the more on a busy machine.

    The views are made in a loader process beside it, so that two cores are used.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
