"""`run.json`: what a run was, written while it goes on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from rela_lightning.callback import ReLACallback
from rela_lightning.compat import is_compiled, timers
from rela_lightning.files import write_json
from rela_lightning.runs.bill import Bill
from rela_lightning.runs.names import RECORD
from rela_lightning.runs.random_state import random_state, restore
from rela_lightning.runs.report import versions
from rela_lightning.schedules import SSL_ONLY

_LOGGED = {"probe/top1": "linear_top1", "knn/top1": "knn_top1"}
_KEPT = ("last_model_path", "best_model_path")


class RunRecord(Callback):
    """Writes `run.json` into a run's folder at the end of each epoch and of training.

    `seconds` are wall-clock seconds of `fit`, over all its resumptions, validation left out, plus the labelling
    seconds of the targets; a point of `history` is taken at each validation at which online probes log.

    Args:
        folder: The run's folder.
        name: Name of the run.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._spent = 0.0  # seconds before the clock was last started
        self._since: float | None = None
        self._targets: Mapping[str, Any] = {}  # their manifest, as the run began; empty without a store
        self._switched: float | None = None
        self._history: list[dict[str, Any]] = []
        self._before: dict[str, Any] = {}  # what had been measured when the validation began
        self._alone = False  # one process: others would draw the same views as the first
        self._random: dict[str, Any] | None = None
        self._named: Path | None = None  # the checkpoint in the record
        self._bill = Bill()
        self._steps = 0  # of the optimizer, before the batch under way
        self._device = torch.device("cpu")
        self._compiled = False

    @property
    def _labelling(self) -> float:
        return float(self._targets.get("labelling_seconds", 0.0))

    @property
    def seconds(self) -> float:
        """Training plus labelling so far."""
        running = time.perf_counter() - self._since if self._since is not None else 0.0
        return self._labelling + self._spent + running

    def _pause(self) -> None:
        self._bill.pause()
        if self._since is not None:
            self._spent, self._since = self._spent + time.perf_counter() - self._since, None

    def _resume(self) -> None:
        self._pause()
        self._bill.start(self._device)
        self._since = time.perf_counter()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock; the labelling of the targets comes before it."""
        self._targets = _manifest(_rela(trainer))
        self._alone = trainer.world_size == 1
        self._device = trainer.strategy.root_device
        self._compiled = is_compiled(pl_module)
        trainer.log_every_n_steps = max(1, min(trainer.log_every_n_steps, _steps_ahead(trainer)))
        self._resume()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Draw, after a resumption, as the run would have gone on to draw; name the last epoch's checkpoint."""
        if self._random is not None and self._alone:
            restore(self._random)
        self._random = None
        if last_checkpoint(trainer) != self._named:
            self._write(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop the clock: probing is no part of a run's cost."""
        if not trainer.sanity_checking:
            self._pause()
            self._before = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note what online probes logged; start the clock again."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        # those of earlier validations are still there, as the same tensors
        metrics = {
            name: value for name, value in trainer.callback_metrics.items() if value is not self._before.get(name)
        }
        found = {ours: float(metrics[name]) for name, ours in _LOGGED.items() if name in metrics}
        if found:
            self._history.append({"seconds": round(self.seconds, 3), "steps": trainer.global_step, **found})
        self._resume()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A batch is there: what was waited for is put down."""
        self._steps = trainer.global_step
        self._bill.begin(_number(_phase(trainer)), countable=self._alone and not self._compiled)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Put the step down; note when transport ended."""
        phase = _phase(trainer)
        self._bill.end(_number(phase), trainer.global_step - self._steps)
        if self._switched is None and phase is not None and phase.weights == SSL_ONLY:
            self._switched = round(self.seconds, 3)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write what there is, so that a run that is killed leaves its record."""
        self._write(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop the clock and write the record."""
        self._pause()
        self._write(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write what there is, with the checkpoint to go on from; of a run without any step there is nothing."""
        self._bill.stop_counting()
        if self._since is not None:
            self._pause()
            if trainer.global_step > 0:
                self._write(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        seconds = self.seconds - self._labelling
        drawn = {"random": random_state()} if self._alone else {}
        bill = self._bill.state_dict(self._device)
        history = list(self._history)
        return {"seconds": seconds, "switch_seconds": self._switched, "history": history, "bill": bill, **drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._spent, self._history = float(state_dict["seconds"]), list(state_dict["history"])
        self._switched, self._random = state_dict["switch_seconds"], state_dict.get("random")
        if "bill" in state_dict:
            self._bill.load_state_dict(state_dict["bill"])

    def _write(self, trainer: Any, pl_module: Any) -> None:
        self._named = last_checkpoint(trainer)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            write_record(self.folder, self._record(trainer, pl_module))

    def _record(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        rela = _rela(trainer)
        data = trainer.datamodule if trainer.datamodule is not None else trainer.train_dataloader
        checkpoint = last_checkpoint(trainer)
        labelling_flops = self._targets.get("labelling_flops") if self._targets else 0
        return {
            "name": self.name,
            "method": type(pl_module).__name__,
            "prior": self._targets["prior"] if self._targets else _prior(rela),
            "data": data_facts(data),
            "seconds": round(self.seconds, 3),
            "labelling_seconds": round(self._labelling, 3),
            "switch_seconds": self._switched,
            "steps": trainer.global_step,
            "epochs": trainer.fit_loop.epoch_progress.current.processed,
            "budget": {
                "max_epochs": trainer.max_epochs if trainer.max_epochs != -1 else None,
                "max_steps": trainer.max_steps if trainer.max_steps >= 0 else None,
                "max_seconds": min((seconds for _, seconds in timers(trainer.callbacks)), default=None),
                "data_ratio": float(getattr(data, "data_ratio", 1.0)) * (rela.data_ratio if rela is not None else 1.0),
                "batch_size": getattr(data, "batch_size", None),
                "devices": trainer.world_size,
            },
            "schedule": type(rela.schedule).__name__ if rela is not None else None,
            "images": _length(trainer.train_dataloader),
            "hardware": _hardware(trainer),
            "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
            "top1": _top1(trainer.callback_metrics),
            "validation_images": _validated(trainer),
            "bill": {"labelling_flops": labelling_flops, **self._bill.found(self._device)},
            "history": self._history,
            "versions": versions(),
            "checkpoint": None if checkpoint is None else _inside(checkpoint, self.folder),
        }


def _top1(metrics: Any) -> float | None:
    """Validation accuracy of a classifier that the module trains, in `[0, 1]`, as `Supervised` logs it."""
    return float(metrics["val_top1"]) if "val_top1" in metrics else None


def _validated(trainer: Any) -> int | None:
    """Number of images that a validation reads, as far as `limit_val_batches` lets it; None where nobody tells."""
    loader, batches = _last(trainer.val_dataloaders), _last(trainer.num_val_batches)
    images, size = _length(loader), getattr(loader, "batch_size", None)
    return images if images is None or size is None else int(min(images, batches * size * trainer.world_size))


def _last(each: Any) -> Any:
    """Of all validation loaders that of the validation images: those before it are banks for kNN."""
    return each[-1] if isinstance(each, (list, tuple)) and each else each


def _length(loader: Any) -> int | None:
    """Number of images of a loader, where the data set tells it."""
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):  # several loaders, or a stream
        return None


def _hardware(trainer: Any) -> dict[str, Any]:
    """What was trained on, and in which precision."""
    device = trainer.strategy.root_device
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else platform.processor() or platform.machine()
    return {"accelerator": device.type, "device": name, "precision": str(trainer.precision)}


def _steps_ahead(trainer: Any) -> int:
    """Optimizer steps of an epoch, or up to the end where that is nearer: each leaves a row in the logs."""
    ends = [10**9, trainer.num_training_batches / trainer.accumulate_grad_batches]
    if trainer.max_steps > 0:
        ends.append(trainer.max_steps - trainer.global_step)
    return int(min(ends))


def _phase(trainer: Any) -> Any:
    """The phase of the batch at hand; None without ReLA."""
    return getattr(_rela(trainer), "phase", None)


def _number(phase: Any) -> int:
    """As logged: 0 transport, 1 both, 2 the module's own objective, also without ReLA."""
    return 2 if phase is None else int(phase.number)


def _rela(trainer: Any) -> ReLACallback | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, ReLACallback)), None)


def _prior(rela: ReLACallback | None) -> str | None:
    """Name of a prior that runs on the fly."""
    prior = rela.prior if rela is not None else None
    return prior if prior is None or isinstance(prior, str) else str(getattr(prior, "name", type(prior).__name__))


def last_checkpoint(trainer: Any) -> Path | None:
    """The last checkpoint; where only the best are kept, the best."""
    kept = [getattr(callback, name, "") for name in _KEPT for callback in trainer.checkpoint_callbacks]
    return next((Path(file) for file in kept if file), None)


def _inside(file: Path, folder: Path) -> str:
    """Path of a file from a folder on, or the whole path of one elsewhere."""
    whole, base = file.absolute(), folder.absolute()
    return (whole.relative_to(base) if base in whole.parents else whole).as_posix()


def _manifest(rela: ReLACallback | None) -> Mapping[str, Any]:
    """What the targets of a run say of themselves; nothing without stored ones."""
    if rela is None or rela.targets is None:
        return {}
    from rela_lightning.targets import TargetStore

    store = rela.targets if isinstance(rela.targets, TargetStore) else TargetStore(rela.targets)
    return store.manifest


def data_facts(data: Any) -> dict[str, Any]:
    """Name of the data, and how its images reach the network, as far as is known."""
    facts = {name: getattr(data, name, None) for name in ("root", "image_size", "mean", "std")}
    return {"name": type(data).__name__, **{name: value for name, value in facts.items() if value is not None}}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write `run.json`, all of it or nothing."""
    write_json(folder / RECORD, record)
