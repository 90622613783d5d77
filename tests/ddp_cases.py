"""All two-process cases in one launch; read by test_ddp.py.

Each case fits under plain `strategy="ddp"` (gloo) and both ranks report what they ended with.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader

from rela_lightning import ReLACallback
from rela_lightning.losses import Contrastive
from rela_lightning.schedules import AuthorsRule, Blend, Mix, Switch, TransportOnly
from tests.modules import byol, simclr
from tests.on_the_fly import Told, prior
from tests.parts import TwoViews, numbered


class Quick(AuthorsRule):
    """An adaptive rule that fires on the loss itself, differently on each rank if ranks saw their own."""

    def _read(self) -> None:
        self.seen = [*getattr(self, "seen", []), *(float(loss) for loss in self._unread)]
        self.fired = self.fired or len(self.seen) >= 3
        self._unread.clear()


class Unsure(Switch):
    """The same weights, from a schedule that does not say that its switch is for good."""

    def is_over(self, progress: float) -> bool:
        return False


class Spying(Contrastive):
    """Notes the first batch's targets, and those of other ranks that they are compared with."""

    compared: Any = None

    def __call__(self, mapped: torch.Tensor, targets: torch.Tensor, negatives: Any = None) -> torch.Tensor:
        self.compared = self.compared or [targets.tolist(), negatives.tolist()]
        return super().__call__(mapped, targets, negatives)


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "byol switch": (lambda: byol(weight_decay=0.1, momentum=0.9), {"schedule": Switch(0.5)}, {}),
    "byol switch, kept": (lambda: byol(weight_decay=0.1, momentum=0.9), {"schedule": Unsure(0.5)}, {}),
    "byol mix": (byol, {"schedule": Mix()}, {}),
    "byol blend": (byol, {"schedule": Blend()}, {}),
    "byol transport": (lambda: byol(weight_decay=0.1, momentum=0.9), {"schedule": TransportOnly()}, {}),
    "simclr switch": (simclr, {"schedule": Switch(0.5)}, {}),
    "simclr mix": (simclr, {"schedule": Mix()}, {}),
    "simclr adaptive": (simclr, {"schedule": Quick()}, {}),
    "manual switch": (lambda: simclr(manual=True), {"schedule": Switch(0.5)}, {}),
    "manual mix": (lambda: simclr(manual=True), {"schedule": Mix()}, {}),
    "unnamed backbone": (lambda: simclr(name="zebra"), {"schedule": Switch(0.5)}, {}),
    "head warm-up": (simclr, {"schedule": Switch(0.75), "head_warmup": 0.25}, {}),
    "accumulation": (byol, {"schedule": Switch(0.5)}, {"accumulate_grad_batches": 2}),
    "bf16": (byol, {"schedule": Switch(0.5)}, {"precision": "bf16-mixed"}),
    "clipping": (byol, {"schedule": Switch(0.5)}, {"gradient_clip_val": 0.1}),
    "data ratio": (byol, {"schedule": TransportOnly(), "data_ratio": 0.5}, {}),
    "workers": (simclr, {"schedule": Switch(0.5)}, {"workers": 1}),
    "crops": (byol, {"schedule": Switch(0.5), "crops": "stored"}, {}),
    "two crops": (simclr, {"schedule": TransportOnly(), "crops": "stored", "num_views": 2}, {"workers": 1}),
    "contrastive": (simclr, {"schedule": TransportOnly(), "loss": Spying()}, {}),
    "sum of losses": (byol, {"schedule": Blend(), "loss": {"cosine": 1.0, "contrastive": 0.5}}, {}),
    "on the fly": (byol, {"schedule": Told()}, {}),
    "static graph": (byol, {"schedule": TransportOnly()}, {"static_graph": True}),
}


class Watch(L.Callback):
    """Rows, phases, the heads and what is attached to the step during a fit."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.phases: list[float] = []
        self.attached: list[bool] = []
        self.heads_moved_in_transport = False

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.rows.append([])

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.rows[-1].extend(batch[1].tolist())
        self.before = digest(module, heads=True)

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        phase = float(trainer.callback_metrics["rela/phase"])
        self.phases.append(phase)
        self.attached.append("training_step" in vars(module))
        if phase == 0.0 and digest(module, heads=True) != self.before:
            self.heads_moved_in_transport = True


def digest(module: torch.nn.Module, *, heads: bool = False) -> str:
    parameters = [(n, p) for n, p in module.named_parameters() if not heads or ("head" in n and "momentum" not in n)]
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for _, p in parameters)).hexdigest()


def run(name: str, targets: str) -> dict[str, Any]:
    build, options, settings = CASES[name]
    settings = dict(settings)
    workers, static = settings.pop("workers", 0), settings.pop("static_graph", False)
    torch.manual_seed(0)
    module = build()
    start = digest(module)
    source = {"targets": f"{targets}-crops" if "crops" in options else targets}
    callback = ReLACallback(**({"prior": prior()} if name == "on the fly" else source), **options)
    watch = Watch()
    strategy = "ddp" if not static else L.strategies.DDPStrategy(static_graph=True)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_epochs=2, callbacks=[callback, watch], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(module, DataLoader(numbered(64, TwoViews()), batch_size=8, shuffle=True, num_workers=workers))
    transport = callback.state_dict()["transport"]["map"]["linear.weight"]
    return {
        "start": start,
        "end": digest(module),
        "map": hashlib.sha256(transport.numpy().tobytes()).hexdigest(),
        "rows": watch.rows,
        "phases": watch.phases,
        "attached": watch.attached,
        "heads_moved": watch.heads_moved_in_transport,
        "compared": getattr(callback.loss, "compared", None),
        "losses": getattr(callback.schedule, "seen", []),
        "told": getattr(callback.schedule, "told", []),
    }


def run_all(out: Path, targets: str) -> None:
    """Every case on both ranks, in one file."""
    results: dict[str, Any] = {}
    for name in CASES:
        try:
            mine: Any = run(name, targets)
        except Exception as error:  # every case reports, the launch goes on
            mine = {"error": f"{type(error).__name__}: {error}"}
        both: list[Any] = [None, None]
        torch.distributed.all_gather_object(both, mine)
        results[name] = both
    if torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(results))
