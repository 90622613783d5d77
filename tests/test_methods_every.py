"""What every method does: learns, moves its teacher, is saved and restored, refuses what it cannot use."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader, TensorDataset

import rela_lightning.methods as methods
from rela_lightning.methods.queue import FeatureQueue
from rela_lightning.probe import KNNProbe
from tests.parts import TinyBackbone
from tests.test_methods import IMAGES, LABELS, QUIET

NARROW = {"projector_dim": 8, "hidden_dim": 16}
"""Options of a method that is not listed below, as far as it has them."""


def narrow(name: str) -> dict[str, Any]:
    options = inspect.signature(getattr(methods, name)).parameters
    return {option: value for option, value in NARROW.items() if option in options}


NAMES = [name for name in methods.__all__ if name not in ("build_backbone", "Method", "MomentumMethod")]
METHODS: dict[str, tuple[str, dict[str, Any], int]] = {  # class, options, local crops in a batch
    **{name: (name, narrow(name), 0) for name in NAMES},
    "BYOL": ("BYOL", {"projector_dim": 8}, 0),
    "DINO": ("DINO", {"output_dim": 24, "hidden_dim": 16, "bottleneck_dim": 8, "batch_norm": False}, 0),
    "DINO, crops": ("DINO", {"output_dim": 24, "hidden_dim": 16, "bottleneck_dim": 8}, 3),
    "SimCLR": ("SimCLR", {"projector_dim": 8, "projector_layers": 3}, 0),
    "MoCoV2": ("MoCoV2", {"projector_dim": 8, "hidden_dim": 16, "queue_size": 48}, 0),
    "MoCoV3": ("MoCoV3", {"projector_dim": 8, "hidden_dim": 16}, 0),
    "SimSiam": ("SimSiam", {"projector_dim": 16, "hidden_dim": 8}, 0),
    "BarlowTwins": ("BarlowTwins", {"projector_dim": 16}, 0),
    "VICReg": ("VICReg", {"projector_dim": 16}, 0),
    "SwAV": ("SwAV", {"projector_dim": 8, "hidden_dim": 16, "num_prototypes": 12}, 0),
    "SwAV, crops and queue": (
        "SwAV",
        {"projector_dim": 8, "hidden_dim": 16, "num_prototypes": 12, "queue_size": 48, "queue_start": 1},
        3,
    ),
    "Supervised": ("Supervised", {"num_classes": 10, "labels": 1}, 0),
    "FineTune": ("FineTune", {"num_classes": 10, "labels": 1, "backbone_rate": 1.0}, 0),
}
UNFROZEN = {"DINO": {"freeze_last_layer": 0}, "SwAV": {"freeze_prototypes": 0}}
TEACHERS = ("BYOL", "DINO", "DINO, crops", "MoCoV2", "MoCoV3")
HALVES = ("bf16-mixed", "bf16-true")


class Views(torch.utils.data.Dataset):
    """A digit, the digit shifted by a pixel, and smaller crops of it, with label and index."""

    def __init__(self, rows: int, crops: int = 0) -> None:
        self.rows, self.crops = rows, crops

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Any:
        image = IMAGES[index]
        small = [image[:, corner : corner + 6, corner : corner + 6] for corner in range(self.crops)]
        return [image, image.roll(1, dims=-1), *small], int(LABELS[index]), index


def build(name: str, backbone: Any = None, **options: Any) -> Any:
    kind, small, _ = METHODS[name]
    torch.manual_seed(0)
    backbone = TinyBackbone() if backbone is None else backbone
    return getattr(methods, kind)(backbone, **{**small, **UNFROZEN.get(kind, {}), **options})


def batches(name: str, rows: int = 32, batch_size: int = 16) -> DataLoader:
    return DataLoader(Views(rows, METHODS[name][2]), batch_size=batch_size)


def fit(module: Any, data: Any, *callbacks: Any, ckpt_path: Any = None, **options: Any) -> L.Trainer:
    torch.manual_seed(0)
    trainer = L.Trainer(callbacks=list(callbacks), **{**QUIET, "max_epochs": 1, **options})
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def optimizer(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-2)


class Losses(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        assert outputs["loss"].shape == ()
        assert trainer.callback_metrics["train_loss"] == outputs["loss"]
        self.seen.append(outputs["loss"].item())


@pytest.mark.parametrize("name", METHODS)
def test_loss_falls_on_a_fixed_batch(name: str) -> None:
    """From the fourth step on: by then queues are full and DINO's centre has come near. DINO's teacher rests."""
    losses, rest = Losses(), {"momentum": 1.0} if name == "DINO" else {}
    fit(build(name, optimizer=optimizer, **rest), batches(name, 32, 32), losses, max_epochs=24)
    assert losses.seen[-1] < losses.seen[3] - 0.25


class Gradients(L.Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.seen.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("name", METHODS)
def test_every_trainable_parameter_and_no_other_gets_a_gradient(name: str) -> None:
    module, gradients = build(name), Gradients()
    trainer = fit(module, batches(name), gradients)
    trainable = {n for n, p in module.named_parameters() if p.requires_grad}
    assert all(set(seen) == trainable for seen in gradients.seen)
    assert all(grad.abs().max() > 0 for grad in gradients.seen[-1].values())
    frozen = {n for n, _ in module.named_parameters()} - trainable
    assert all(n.startswith("teacher_") or n.endswith("last_layer.scale") for n in frozen)
    learnt = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert learnt == {id(p) for p in module.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("kind", "option", "part"),
    [("DINO", "freeze_last_layer", "projector.last_layer.weight"), ("SwAV", "freeze_prototypes", "prototypes.weight")],
)
def test_the_last_layer_rests_in_the_first_epoch(kind: str, option: str, part: str) -> None:
    gradients = Gradients()
    fit(build(kind, **{option: 1}), batches(kind), gradients, max_epochs=2)
    assert [part in seen for seen in gradients.seen] == [False, False, True, True]
    gradients = Gradients()
    fit(getattr(methods, kind)(TinyBackbone(), **METHODS[kind][1]), batches(kind), gradients)
    assert [part in seen for seen in gradients.seen] == [False, False], "by default"


def test_the_length_of_dinos_last_layer_can_be_learnt() -> None:
    gradients = Gradients()
    fit(build("DINO", norm_last_layer=False), batches("DINO"), gradients)
    assert gradients.seen[-1]["projector.last_layer.scale"].abs().max() > 0
    torch.testing.assert_close(build("DINO").projector.last_layer(torch.eye(8)).norm(dim=0), torch.ones(24))


def test_prototypes_stay_on_the_sphere() -> None:
    class Lengths(L.Callback):
        def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
            torch.testing.assert_close(module.prototypes.weight.norm(dim=1), torch.ones(12))

    fit(build("SwAV", optimizer=optimizer), batches("SwAV"), Lengths(), max_epochs=2)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", TEACHERS)
def test_the_teacher_is_a_moving_average(name: str, accumulate: int) -> None:
    """Moved before the forward, once per optimizer step; restated from the students seen."""

    class Follow(L.Callback):
        teacher: dict[str, torch.Tensor]
        step = -1

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.teacher = self.pair(module)[0]

        def pair(self, module: Any) -> Any:
            both = [(s, t) for part in ("backbone", "projector")
                    for s, t in zip(getattr(module, part).parameters(), getattr(module, f"teacher_{part}").parameters(),
                                    strict=True)]  # fmt: skip
            return [t.clone() for _, t in both], [s.clone() for s, _ in both]

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step > self.step:
                student = self.pair(module)[1]
                self.teacher = [0.8 * t + 0.2 * s for t, s in zip(self.teacher, student, strict=True)]
                self.step = trainer.global_step

        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            torch.testing.assert_close(self.pair(module)[0], self.teacher)

    module, follow = build(name, momentum=0.8, momentum_end=None, optimizer=optimizer), Follow()
    before = copy.deepcopy(module.teacher_backbone.state_dict())
    fit(module, batches(name), follow, max_epochs=2, accumulate_grad_batches=accumulate)
    after = module.teacher_backbone.state_dict()
    assert not torch.equal(before["body.0.weight"], after["body.0.weight"])
    assert not torch.equal(before["body.1.running_mean"], after["body.1.running_mean"]), "its own statistics"


HEADS = {  # as in the papers, for features of width 16
    "BYOL": ([32, 256], [32, 256]), "DINO": ([2048, 2048, 256, 4096],), "SimCLR": ([16, 128],),
    "MoCoV2": ([2048, 128],), "MoCoV3": ([4096, 4096, 256], [4096, 256]), "SimSiam": ([2048, 2048, 2048], [512, 2048]),
    "BarlowTwins": ([2048, 2048, 2048],), "VICReg": ([2048, 2048, 2048],), "SwAV": ([2048, 128],),
}  # fmt: skip


def widths(head: Any) -> list[int]:
    return [layer.out_features for layer in head.modules() if isinstance(layer, torch.nn.Linear)]


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_the_papers_unless_told(name: str) -> None:
    module = getattr(methods, name)(TinyBackbone())
    heads = [getattr(module, part) for part in ("projector", "predictor") if hasattr(module, part)]
    assert [widths(head) for head in heads] == list(HEADS[name])


@pytest.mark.parametrize("name", ["SimCLR", "MoCoV3", "VICReg"])
def test_heads_are_as_deep_as_told(name: str) -> None:
    assert len(widths(build(name, projector_layers=5).projector)) == 5


@pytest.mark.parametrize("name", METHODS)
def test_checkpoint_round_trip(name: str, tmp_path: Any) -> None:
    kind, options, _ = METHODS[name]
    cls = getattr(methods, kind)
    if name in TEACHERS:
        options = {**options, "momentum": 0.7}
    module = cls("lightly:resnet-9", backbone_kwargs={"width": 0.0625}, **options)
    images = torch.nn.functional.interpolate(IMAGES[:4], 32)
    fit(module, DataLoader([([images, images.flip(-1)], LABELS[:4])], batch_size=None)).save_checkpoint(
        tmp_path / "a.ckpt"
    )
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    expected = {"backbone": "lightly:resnet-9", "backbone_kwargs": {"width": 0.0625}, "cifar_stem": False, **options}
    assert expected.items() <= saved["hyper_parameters"].items() and not {"optimizer", "options"} & set(
        saved["hyper_parameters"]
    )
    again = cls.load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.hparams == module.hparams and getattr(again, "momentum", 0.7) == 0.7
    torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again.eval()(images), module.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_resuming_gives_the_unbroken_run(name: str, tmp_path: Any) -> None:
    whole, second = build(name, optimizer=optimizer), build(name, optimizer=optimizer)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(whole, batches(name), keep, max_epochs=3, enable_checkpointing=True)
    fit(second, batches(name), max_epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_copies_and_pickles_after_training(name: str) -> None:
    module = build(name)
    fit(module, batches(name))
    module.trainer = None
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(twin.state_dict(), module.state_dict(), rtol=0, atol=0)
        assert twin.configure_optimizers().param_groups[0]["lr"] == 1e-3
        fit(twin, batches(name))


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", METHODS)
def test_half_precision(name: str, precision: str) -> None:
    whole, half = Losses(), Losses()
    fit(build(name), batches(name), whole)
    fit(build(name), batches(name), half, precision=precision)
    assert half.seen == pytest.approx(whole.seen, rel=0.1, abs=0.1)


def test_losses_are_taken_in_float32() -> None:
    """Sinkhorn's `exp(1 / 0.05)` and sums over a batch overflow float16."""
    seen = []

    def criterion(parts: list[torch.Tensor], epoch: int) -> torch.Tensor:
        seen.extend([part.dtype for part in parts] + [(parts[0] @ parts[0].T).dtype, epoch])
        return parts[0].sum()

    parts = [torch.rand(2, 2, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        methods.base.in_float32(criterion, parts, epoch=3)
    assert seen == [torch.float32, torch.float32, torch.float64, torch.float32, 3]


def test_validation_batches_reach_the_probes() -> None:
    val = DataLoader(TensorDataset(IMAGES[:100], LABELS[:100]), batch_size=50)
    trainer = L.Trainer(max_epochs=1, callbacks=[KNNProbe(3)], **QUIET)
    trainer.fit(build("SimCLR"), batches("SimCLR", 128, 32), val)
    assert trainer.callback_metrics["knn/top1"] > 0.3


def test_the_queue_replaces_the_oldest_and_is_saved() -> None:
    queue, rows = FeatureQueue(5, 2), torch.arange(32.0).reshape(16, 2)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(5))
    queue.push(rows[:3])
    assert not queue.full and torch.equal(queue.rows[:3], rows[:3])
    queue.push(rows[3:6])
    assert queue.full
    copied = FeatureQueue(5, 2)
    copied.load_state_dict(queue.state_dict())
    for held in (queue, copied):
        assert sorted(held.rows[:, 0].tolist()) == rows[1:6, 0].tolist()
        held.push(rows[6:8])
        assert held.full and sorted(held.rows[:, 0].tolist()) == rows[3:8, 0].tolist()
        held.push(rows[8:16])
        assert sorted(held.rows[:, 0].tolist()) == rows[11:16, 0].tolist()
        held.push(rows[:1])
        assert sorted(held.rows[:, 0].tolist()) == [0.0, *rows[12:16, 0].tolist()]


def test_names_are_imported_when_used() -> None:
    code = (
        "import sys, rela_lightning.methods as m; assert set(m.__all__) <= set(dir(m));"
        "assert not {'torch', 'lightly', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert all(issubclass(getattr(methods, n), methods.Method) for n in methods.__all__ if n != "build_backbone")
    with pytest.raises(AttributeError, match="it has BYOL"):
        methods.MoCo  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_command_line(name: str, tmp_path: Any, capsys: Any) -> None:
    """By class path, options of all levels overridden; the printed configuration is one that can be read again."""
    arguments = [
        "--data=lightning.pytorch.LightningDataModule", f"--model=rela_lightning.methods.{name}",
        "--model.backbone=lightly:resnet-9", "--model.backbone_kwargs={'width': 0.0625}", "--model.optimizer.lr=0.5",
        *(["--model.num_classes=10"] if name in ("Supervised", "FineTune") else []),
    ]  # fmt: skip
    options = {"subclass_mode_model": True, "subclass_mode_data": True, "save_config_callback": None, "run": False}
    with pytest.raises(SystemExit):
        LightningCLI(L.LightningModule, L.LightningDataModule, args=[*arguments, "--print_config"], **options)
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    module = LightningCLI(
        L.LightningModule, L.LightningDataModule, args=[f"--config={tmp_path / 'run.yaml'}"], **options
    ).model
    assert type(module) is getattr(methods, name) and module.feature_dim == 32
    group = module.configure_optimizers().param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 1e-2)
