"""Accuracy at equal wall-clock, labelling counted: SSL alone, transport, schedules, online distillation.

    python benchmarks/convergence.py calibrate --data-root DIR          # once, on a quiet machine
    python benchmarks/convergence.py tune --data-root DIR --method byol # (a) alone, on a validation split
    python benchmarks/convergence.py explore --data-root DIR --variants b b2 --seeds 100    # on the validation split
    python benchmarks/convergence.py run --data-root DIR --variants a b c switch blend plateau --seeds 0 1 2
    python benchmarks/report.py                                         # tables and curves from the results

A budget in seconds becomes steps through the calibrated step times, so a busy machine changes nothing. Runs
that are in the results file already are left out: interrupt and repeat as you like, `--shard 0/2` splits them.
With `--views batch` a run without levers that was cut off goes on from an epoch of the last minutes.
"""

from __future__ import annotations

import argparse
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
from candidates import Decoded
from common import header, quiet_lightning
from images import Images, SSLViews, load_splits, plain_view
from journal import Journal, without_paths
from levers import WithNeighbours
from networks import METHODS, bare_trainer, build, fit, prior_of
from unfinished import Unfinished
from variants import KINDS, STORES, VARIANTS, callback_of, in_words, kinds_of, levers_in, levers_of, store_in
from virtual_clock import VirtualClock

from rela_lightning import TargetStore, build_targets
from rela_lightning.probe import extract_features, knn_predict, linear_evaluation

RESULTS = Path(__file__).parent / "results"
FILES = {"tune": "tuning.jsonl", "explore": "exploration.jsonl", "run": "convergence.jsonl"}
GRID = {"lr": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), "momentum": (0.9, 0.99), "batch_size": (64,)}


def settings_of(method: str, data: str) -> dict[str, Any]:
    """What `tune` chose.

    Raises:
        SystemExit: If it did not choose yet: untuned settings would stand under the name of tuned ones.
    """
    tuned = json.loads((RESULTS / "tuned.json").read_text()) if (RESULTS / "tuned.json").exists() else {}
    if f"{method}/{data}" not in tuned:
        raise SystemExit(f"{method} is not tuned on {data}: `tune --method {method} --data {data} --choose` first.")
    settings: dict[str, Any] = tuned[f"{method}/{data}"]
    return settings


def accuracy(module: Any, train: Images, test: Images, **others: Images) -> dict[str, float]:
    """Linear probe (multinomial logistic regression, L2 1.0) and kNN (k = 20) on frozen features.

    Args:
        module: What was trained; its `backbone` is probed.
        train: Images that the probes learn from.
        test: Images they are measured on, as `linear_top1` and `knn_top1`.
        others: Further such images, measured as `<name>_linear_top1` and `<name>_knn_top1`.
    """
    module.eval()
    a, labels = _features(module, train)
    found = _probed(a, labels, *_features(module, test))
    for name, images in others.items():
        found |= {f"{name}_{key}": value for key, value in _probed(a, labels, *_features(module, images)).items()}
    return found


def _features(module: Any, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
    return extract_features(module.backbone, Images(images.images, images.labels, plain_view()))


def _probed(a: torch.Tensor, labels: torch.Tensor, b: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    classes = 1 + int(labels.max())
    linear = linear_evaluation(a, labels, b, truth, num_classes=classes, solver="lbfgs", standardise=True)
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
    """Step times of every kind, in turn, in one quiet run; and the labelling time.

    Kinds that are added later are timed beside the plain step, and scaled by what it took the first time.
    """
    train = load_splits(options.data, options.data_root, options.images).train
    store = targets_of(options, train, options.prior)
    head = header()
    made = {"date": head["date"], "command": without_paths(head["command"], private_paths(options))}
    path = RESULTS / "calibration.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    step = known.get(options.data, {}).get("step", {})
    for method, batch_size in itertools.product(options.methods, options.batch_sizes):
        before = step.get(f"{method}/{batch_size}", {}) if options.kinds else {}
        kinds = [kind for kind in kinds_of(method) if kind in ("ssl", *(options.kinds or KINDS))]
        settings = {"lr": 1e-3, "momentum": 0.99, "batch_size": batch_size}
        watches: dict[str, list[Stopwatch]] = {kind: [] for kind in kinds}
        for _, kind in itertools.product(range(options.rounds), kinds):
            watch, callbacks = Stopwatch(), [callback_of(KINDS[kind][0], store, options.prior, KINDS[kind][1])]
            callbacks = [callback for callback in callbacks if callback is not None]
            fit(build(method, settings, 0), train.rows(range(len(train)), views_of(method)), settings, 0, watch,
                *callbacks, max_steps=options.steps)  # fmt: skip
            watches[kind].append(watch)
        table = {
            kind: {
                "seconds": quiet(second for watch in runs for second in watch.seconds),
                "data_wait": quiet(second for watch in runs for second in watch.waits),
                "steps": sum(len(watch.seconds) for watch in runs),
                **made,
            }
            for kind, runs in watches.items()
        }
        scale = before["ssl"]["seconds"] / table["ssl"]["seconds"] if before else 1.0
        for kind, row in table.items():
            timed = {name: round(scale * row[name], 5) for name in ("seconds", "data_wait")}
            table[kind] = {**row, **timed, "scale": round(scale, 4)}
        print(method, batch_size, json.dumps(table))
        step[f"{method}/{batch_size}"] = {**table, **before, **{kind: table[kind] for kind in options.kinds or ()}}
    known[options.data] = {**known.get(options.data, head), "step": step}
    path.write_text(json.dumps(known, indent=2) + "\n")


def views_of(method: str) -> SSLViews:
    """Two views; one for the supervised ceiling."""
    return SSLViews(1 if method == "supervised" else 2)


def targets_of(options: argparse.Namespace, train: Images, prior: str, variant: str = "") -> Path:
    """The store of a prior's targets, built once beside the data, with its seconds in a file beside it."""
    own = store_in(variant)
    name = prior.replace("/", "-").replace(":", "-") + (f"-{own}" if own else "")
    path = options.data_root / f".targets-{options.data}-{len(train)}-{name}"
    if not path.exists():
        network, begun = prior_of(prior), now()
        # 64 images at a time stay in this processor's cache: half the time of 256
        store = build_targets(network, train.rows(range(len(train))), path, batch_size=64, **STORES.get(own, {}))
        spent = now() - begun
        if spent > 0.3 * store.manifest["labelling_seconds"]:  # not where another process did the work
            path.with_name(f"{path.name}.seconds").write_text(f"{spent:.2f}")
    return path


def labelling_seconds(store: Path) -> float:
    """What the targets cost: by this benchmark's clock if one process made them undisturbed, else by the wall's."""
    clocked = store.with_name(f"{store.name}.seconds")
    return float(clocked.read_text() if clocked.exists() else TargetStore(store).manifest["labelling_seconds"])


def costs_of(options: argparse.Namespace, method: str, batch_size: int) -> dict[str, float]:
    """Calibrated seconds of a step of each kind."""
    step = json.loads((RESULTS / "calibration.json").read_text())[options.data]["step"][f"{method}/{batch_size}"]
    return {kind: row["seconds"] for kind, row in step.items()}


def one_run(
    options: argparse.Namespace,
    job: dict[str, Any],
    train: Images,
    evaluate: Images,
    kept: Unfinished,
    **others: Images,
) -> dict[str, Any]:
    """Train one variant for its budget, from where it was kept if it was, and probe it."""
    variant, settings, seed = job["variant"], job["settings"], job["seed"]
    method = "supervised" if variant == "f" else options.method
    callbacks, labelling = [], 0.0
    if VARIANTS[variant] is not None:
        store = targets_of(options, train, options.prior, variant)
        callbacks = [callback_of(variant, store, options.prior)]
        labelling = 0.0 if variant == "e" else labelling_seconds(store)
    kind = {"a": "ssl", "e": "online", "f": "ssl"}.get(variant)
    costs = costs_of(options, method, settings["batch_size"])
    if kind is not None and kind not in costs:
        raise SystemExit(
            f"A step of this kind is not calibrated on {options.data}: `calibrate --methods {method} --batch-sizes "
            f"{settings['batch_size']} --kinds {kind}` first."
        )
    seen = train
    if "target" in levers_in(variant):  # a batch says which images it holds; no teacher's forward
        seen, costs = Images(train.images, torch.arange(len(train))), {**costs, "ssl": costs["transport"]}
    clock = VirtualClock(options.seconds * job["budget"], costs, kind, *callbacks)
    module = build(method, settings, seed)
    if options.channels_last:
        module.to(memory_format=torch.channels_last)
    callbacks += levers_of(variant, callbacks[0], clock) if callbacks else []
    begun = time.perf_counter()
    if options.views == "batch":
        data = Decoded(seen, colour=LIKE_SSL_VIEWS, batch_size=settings["batch_size"], device_views=True, seed=seed)
        torch.manual_seed(seed)
        keeping = [] if levers_in(variant) else [kept]  # levers have no state to go on from
        bare_trainer(clock, *callbacks, *keeping).fit(module, datamodule=data, ckpt_path=kept.found)
    else:
        images = seen.rows(range(len(seen)), views_of(method))
        images = WithNeighbours(images, TargetStore(store)) if "neighbours" in levers_in(variant) else images
        fit(module, images, settings, seed, clock, *callbacks)
    wall = time.perf_counter() - begun
    return {
        "method": method,
        "steps": clock.steps,
        "training_seconds": round(clock.elapsed, 2),
        "labelling_seconds": round(labelling, 2),
        "wall_seconds": round(wall, 2),
        "switched_at": clock.switched_at,
        "transport_loss": clock.transport_loss,
        **accuracy(module.to("cpu"), train, evaluate, **others),
    }


LIKE_SSL_VIEWS = {"cj_sat": 0.4}
"""With this, views made in batches are drawn as `SSLViews` draws them."""
SHOWN = ("method", "variant", "budget", "seed", "steps", "linear_top1", "knn_top1")
KEY = ("asked", "variant", "prior", "data", "images", "budget", "seconds_full", "seed", "settings")
"""What makes a run the same run; views of both kinds are the same in distribution (view_agreement.py)."""


def private_paths(options: argparse.Namespace) -> dict[str, Path]:
    """Folders of this machine that no result may name."""
    return {"DATA_ROOT": options.data_root}


def jobs(options: argparse.Namespace, tried: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs asked for; a search over batch sizes starts from the best of those tried.

    All variants of a method share the settings that are best for it alone; the supervised ceiling has its own.
    """
    if options.action == "tune":
        grid = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
        grid = [g for g in grid if g["lr"] in (options.lrs or GRID["lr"])]
        grid = [g for g in grid if options.method == "byol" or g["momentum"] == GRID["momentum"][0]]
        if options.batch_sizes:
            grid = [{**best_of(options, tried)["settings"], "batch_size": size} for size in options.batch_sizes]
        return [{"variant": "a", "budget": options.budgets[0], "seed": 100, "settings": g} for g in grid]
    settings = {v: settings_of("supervised" if v == "f" else options.method, options.data) for v in options.variants}
    product = itertools.product(options.budgets, options.seeds, options.variants)
    return [{"variant": v, "budget": b, "seed": s, "settings": settings[v]} for b, s, v in product]


def work(options: argparse.Namespace) -> None:
    """Do the runs of this shard that nobody did before."""
    journal = Journal(RESULTS / FILES[options.action], KEY, private_paths(options))
    splits = load_splits(options.data, options.data_root, options.images)
    shard, shards = map(int, options.shard.split("/"))
    for job in jobs(options, journal.rows())[shard::shards]:
        prior = options.prior if VARIANTS[job["variant"]] is not None else None
        row = {**job, "asked": options.method, "prior": prior, "data": options.data, "images": len(splits.train)}
        row |= {"seconds_full": options.seconds, "callback": in_words(job["variant"])}
        row |= {"views": "batch"} if options.views == "batch" else {}
        if journal.has(row):
            continue
        kept = Unfinished(options.data_root, json.dumps(row, sort_keys=True))
        if options.action == "run":  # choices are made on validation images, whose accuracies stand beside
            row |= one_run(options, job, splits.train, splits.test, kept, validation=splits.validation)
        else:
            row |= one_run(options, job, splits.train, splits.validation, kept)
        journal.append(row)
        kept.forget()
        print({key: row[key] for key in SHOWN}, flush=True)
    if options.action == "tune" and options.choose:
        choose(options, best_of(options, journal.rows()))


def best_of(options: argparse.Namespace, tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The tuning run with the best validation accuracy, of those with this method, data, number of images and budget.

    Raises:
        SystemExit: If there is none.
    """
    asked = (options.method, options.data, options.images, options.seconds * options.budgets[0])
    rows = [r for r in tried if (r["asked"], r["data"], r["images"], r["seconds_full"] * r["budget"]) == asked]
    if not rows:
        raise SystemExit(f"Nothing was tried for {asked} yet: `tune` without --batch-sizes first.")
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
    parser.add_argument("--lrs", nargs="*", type=float, choices=GRID["lr"], help="learning rates to tune; all")
    parser.add_argument("--kinds", nargs="*", choices=tuple(KINDS), help="of steps to calibrate; all")
    parser.add_argument("--prior", default="efficientnet_lite0")
    parser.add_argument("--variants", nargs="*", choices=tuple(VARIANTS), default=["a", "b", "switch"])
    parser.add_argument("--budgets", nargs="*", type=float, default=[1.0], help="shares of --seconds")
    parser.add_argument("--seconds", type=float, default=240.0, help="the full budget")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--channels-last", action="store_true", help="run so: quicker on a CPU, equal up to rounding")
    parser.add_argument("--views", choices=("image", "batch"), default="image", help="made for an image, or a batch")
    parser.add_argument("--choose", action="store_true", help="after tuning, keep the best settings")
    parser.add_argument("--steps", type=int, default=8, help="steps of a calibration run, 3 of them warm-up")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_lightning()
    warnings.filterwarnings("ignore")
    RESULTS.mkdir(exist_ok=True)
    if options.action == "calibrate" and not options.batch_sizes:
        parser.error("calibrate needs --batch-sizes, such as 64 128")
    if options.views == "batch" and any("neighbours" in levers_in(variant) for variant in options.variants):
        parser.error("neighbours as positives need --views image: a batch's views are of one image each")
    calibrate(options) if options.action == "calibrate" else work(options)


if __name__ == "__main__":
    main()
