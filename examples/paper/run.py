"""The benchmark design of arXiv 2405.14669: data sets × methods × budgets × priors × switches, by the `rela` command.

    python examples/paper/run.py --dry-run               # every command and what all will take, none run
    python examples/paper/run.py --data cifar10 --methods byol --priors none random clip-rn50 --budgets 10 100
    python examples/paper/run.py --data imagenet -- --trainer.devices=4 --data.batch_size=128

Each data set and method is a YAML file beside this script; priors, budgets and switches are overrides of it. What is
done is skipped, and a run that was stopped goes on, so that the script can be started again with the same words, or
with more. Only what the words name is planned, and what that needs. What follows `--` goes to every `rela fit`.
README.md beside it has the settings and their sources.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cost

HERE = Path(__file__).parent
METHODS = ("byol", "dino")
BUDGETS = (10, 20, 50, 100)


class Data(NamedTuple):
    """A data set: its data module, the backbone trained on it as a prior's `arch` and its width, how it sees images."""

    module: str
    arch: str
    width: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def settings(self) -> dict[str, Any]:
        """Options of `load_prior` for a network trained on it."""
        return {"image_size": self.size, "mean": list(self.mean), "std": list(self.std)}


DATA = {
    "cifar10": Data("CIFAR10Data", "lightly:resnet-18", 512, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Data("CIFAR100Data", "lightly:resnet-18", 512, 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny_imagenet": Data(
        "TinyImageNetData", "torchvision:resnet18", 512, 64, (0.480, 0.448, 0.398), (0.277, 0.269, 0.282)
    ),
    "imagenet": Data("ImageNetData", "torchvision:resnet50", 2048, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
ZOO = {  # spec, width of the features
    "clip-rn50": ("open_clip:RN50/openai", 1024),
    "clip-vit-b16": ("open_clip:ViT-B-16/openai", 512),
    "imagenet-rn50": ("torchvision:resnet50/IMAGENET1K_V2", 2048),
}
OWN = {f"byol-{name}": name for name in DATA}  # priors trained here: the full-budget BYOL run of a data set
NONE = "none"  # without ReLA
PRIORS = (NONE, "random", *OWN, *ZOO)
SWITCHES = {
    "static": ["--trainer.callbacks.schedule=Switch", "--trainer.callbacks.schedule.at=0.4"],
    "adaptive": ["--trainer.callbacks.schedule=AuthorsRule"],
}


@dataclass(frozen=True)
class Run:
    """One training run."""

    data: str
    method: str
    budget: int  # percent of the steps
    seed: int = 0
    prior: str | None = None
    switch: str | None = None

    @property
    def name(self) -> str:
        """Name of the run and of its folder."""
        parts = (self.method, self.data, f"{self.budget}pct", self.prior, self.switch, f"seed{self.seed}")
        return "-".join(part for part in parts if part is not None)


class Step(NamedTuple):
    """One `rela` command, whether its result is there, and what it takes."""

    words: Callable[[], list[str]]
    done: Callable[[], bool]
    cost: cost.Cost | None = None


class Passes(NamedTuple):
    """Options of labelling and probing.

    Attributes:
        devices: On which images are labelled: a number, or `auto` for all there are.
        precision: Of labelling by trained priors; random ones are always labelled in float32, as their features vary
            so little that rounding covers them (docs/targets.md).
        batch_size: Images in one forward, of labelling on each device and of probing.
        workers: Processes that read images, on each device.
        probe_device: Where backbones are probed: `auto`, `cuda:1`, ...
        probe_precision: Of their forward.
    """

    devices: str = "auto"
    precision: str = "32-true"
    batch_size: int = 256
    workers: int = 8
    probe_device: str = "auto"
    probe_precision: str = "32-true"


class Plan:
    """The commands behind a list of runs, in an order in which each finds what it needs.

    Args:
        out: Folder of targets, priors, runs and reports.
        root: Folder of the data sets; ImageNet is in `imagenet` below it.
        quick: One step on small batches, untrained priors: does everything fit together?
        frozen_map: Keep the linear map as it was drawn, as the authors' code does.
        more: Further words for `rela fit`.
        passes: How data are labelled and probed.
        rates: Images a second, for what it will take.
    """

    def __init__(
        self, out: Path, root: Path, *, quick: bool, frozen_map: bool, more: Sequence[str], passes: Passes,
        rates: cost.Rates,
    ) -> None:  # fmt: skip
        self.out, self.root, self.quick, self.frozen_map, self.more = out, root, quick, frozen_map, list(more)
        self.passes, self.rates = passes, rates

    def steps(self, runs: Sequence[Run]) -> Iterator[Step]:
        """Priors of our own, targets, runs, reports."""
        own = [Run(OWN[prior], "byol", 100) for prior in unique(run.prior for run in runs) if prior in OWN]
        for run in own:
            export = self.export(run)
            if run in runs:
                yield self.fit(run)
            elif not export.done():
                yield self.fit(run, counted_for=f"byol-{run.data}")
            yield export
        for data, prior in unique((run.data, run.prior) for run in runs if run.prior is not None):
            yield self.targets(data, prior)
        for run in runs:
            yield from (self.probe(run),) if run in own else (self.fit(run), self.probe(run))
        for data, method in unique((run.data, run.method) for run in runs):
            group = [run for run in runs if (run.data, run.method) == (data, method)]
            if len(group) > 1:
                yield self.compare(group, f"{method}-{data}")

    def targets(self, data: str, prior: str) -> Step:
        """Label a data set with a prior."""
        spec, settings = self._prior(data, prior)
        path, passes = self._targets_of(data, prior), self.passes
        words = ["targets", f"--prior={spec}", f"--prior_kwargs={json.dumps(settings)}"]
        words += [f"--data={DATA[data].module}", f"--data.root={self._root(data)}", *self._reading()]
        if not self.quick:
            precision = "32-true" if prior == "random" else passes.precision
            words += ["--trainer=lightning.pytorch.Trainer", f"--trainer.devices={passes.devices}"]
            words += [f"--trainer.precision={precision}", "--trainer.logger=false"]
        columns = ZOO[prior][1] if prior in ZOO else DATA[OWN.get(prior, data)].width
        takes = cost.of_targets(data, prior, columns, self.rates)
        return Step(lambda: [*words, f"--path={path}"], (path / "manifest.json").is_file, takes)

    def fit(self, run: Run, counted_for: str | None = None) -> Step:
        """Train, or go on where training stopped; `counted_for` is the prior whose cost it is, if not the run's own."""
        folder = self._folder(run)
        words = ["fit", f"--config={HERE / f'{run.method}_{run.data}.yaml'}", f"--name={run.name}"]
        words += [f"--trainer.default_root_dir={folder}", f"--seed_everything={run.seed}"]
        words += [f"--data.root={self._root(run.data)}", f"--data.data_ratio={run.budget / 100:g}"]
        if self.quick:
            words += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.precision=32-true"]
            words += ["--data.batch_size=4", "--data.num_workers=0"]
        words += self.more
        if run.prior is not None and run.switch is not None:
            words += ["--trainer.callbacks+=rela_lightning.ReLACallback"]
            words += [f"--trainer.callbacks.targets={self._targets_of(run.data, run.prior)}", *SWITCHES[run.switch]]
            words += ["--trainer.callbacks.transport_optimizer=null"] if self.frozen_map else []

        def done() -> bool:
            return bool(record := self._record(run)) and record["epochs"] >= record["budget"]["max_epochs"]

        takes = cost.of_fit(run.data, run.method, run.budget, counted_for or run.prior or NONE, self.rates)
        return Step(lambda: [*words, f"--ckpt_path={folder}"] if self._record(run) else words, done, takes)

    def probe(self, run: Run) -> Step:
        """Linear evaluation as in the authors' code, and kNN."""
        words = ["probe", str(self._folder(run)), "--solver=adam", "--lr=3e-4"]
        words += [f"--epochs={1 if self.quick else 100}", *self._reading()]
        words += [f"--device={self.passes.probe_device}", f"--precision={self.passes.probe_precision}"]
        takes = cost.of_probe(run.data, run.budget, run.prior or NONE, self.rates)
        return Step(lambda: words, lambda: "linear_top1" in self._record(run), takes)

    def export(self, run: Run) -> Step:
        """The backbone of a run as a prior."""
        path = self._weights_of(run.data)
        return Step(lambda: ["export", str(self._folder(run)), str(path)], path.is_file)

    def compare(self, runs: Sequence[Run], name: str) -> Step:
        """All runs of a data set and method in one report, written anew each time."""
        words = ["compare", *(str(self._folder(run)) for run in runs), f"--out={self.out / 'reports' / name}"]
        return Step(lambda: [*words, f"--title={name}", "--overwrite=true"], lambda: False)

    def _reading(self) -> list[str]:
        workers = 0 if self.quick else self.passes.workers
        return [f"--batch_size={self.passes.batch_size}", f"--num_workers={workers}"]

    def _prior(self, data: str, prior: str) -> tuple[str, dict[str, Any]]:
        """Spec and options of `load_prior`; the random prior is the backbone of the data set, untrained."""
        if prior in OWN:
            source = DATA[OWN[prior]]
            return f"checkpoint:{self._weights_of(OWN[prior])}", {"arch": source.arch, **source.settings}
        if prior == "random":
            return f"random:{DATA[data].arch}", {"seed": 0, **DATA[data].settings}
        spec = ZOO[prior][0]
        return (f"random:{spec.partition('/')[0]}", {"seed": 0}) if self.quick else (spec, {})

    def _root(self, data: str) -> Path:
        return self.root / "imagenet" if data == "imagenet" else self.root

    def _targets_of(self, data: str, prior: str) -> Path:
        return self.out / "targets" / f"{data}-{prior}"

    def _weights_of(self, data: str) -> Path:
        return self.out / "priors" / f"byol-{data}.safetensors"

    def _folder(self, run: Run) -> Path:
        return self.out / "runs" / run.name

    def _record(self, run: Run) -> dict[str, Any]:
        file = self._folder(run) / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def unique(items: Any) -> list[Any]:
    return list(dict.fromkeys(items))


def choose_runs(args: argparse.Namespace) -> list[Run]:
    """Every budget without ReLA where `none` is among the priors, then with each prior and switch."""
    runs, priors = [], [prior for prior in args.priors if prior != NONE]
    for data, method, seed in itertools.product(args.data, args.methods, args.seeds):
        runs += [Run(data, method, budget, seed) for budget in args.budgets if NONE in args.priors]
        accelerated = itertools.product(args.budgets, priors, args.switches)
        runs += [Run(data, method, budget, seed, prior, switch) for budget, prior, switch in accelerated]
    return unique(runs)


def rela(words: Sequence[str]) -> int:
    """Run `rela` in a process of its own, so that a crash or a memory error ends one run and not all."""
    return subprocess.run([sys.executable, "-m", "rela_lightning", *words], check=False).returncode


def main(argv: Sequence[str] | None = None, execute: Callable[[list[str]], int] = rela) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, choices in (("data", DATA), ("methods", METHODS), ("priors", PRIORS), ("switches", SWITCHES)):
        parser.add_argument(f"--{name}", nargs="+", choices=list(choices), default=list(choices))
    parser.add_argument(
        "--budgets", nargs="+", type=int, choices=BUDGETS, default=list(BUDGETS), help="%% of the steps"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("paper"), help="folder of everything that is made")
    parser.add_argument("--frozen-map", action="store_true", help="keep the linear map untrained, as the authors' code")
    usual = Passes()
    parser.add_argument("--label-devices", default=usual.devices, help="devices to label on: a number, or auto for all")
    parser.add_argument(
        "--label-precision", default=usual.precision,
        help="precision of labelling by trained priors, such as bf16-mixed; random ones are labelled in 32-true",
    )  # fmt: skip
    parser.add_argument("--pass-batch-size", type=int, default=usual.batch_size, help="images a forward, no training")
    parser.add_argument("--workers", type=int, default=usual.workers, help="workers of labelling and probing")
    parser.add_argument("--probe-device", default=usual.probe_device, help="where backbones are probed")
    parser.add_argument("--probe-precision", default=usual.probe_precision, help="of their forward, such as bf16-mixed")
    parser.add_argument("--training-rate", type=float, help="images a second in training, for the hours of --dry-run")
    parser.add_argument("--labelling-rate", type=float, help="images a second in labelling and probing, likewise")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands that are left and what they will take, run none"
    )
    parser.add_argument(
        "--fast-dev-run",
        action="store_true",
        help="one training step a run, untrained priors: a test; data are labelled and probed whole",
    )
    args = parser.parse_args(words[:end])
    plan = Plan(
        args.out, args.root, quick=args.fast_dev_run, frozen_map=args.frozen_map, more=words[end + 1 :],
        passes=Passes(
            args.label_devices, args.label_precision, args.pass_batch_size, args.workers,
            args.probe_device, args.probe_precision,
        ),
        rates=cost.Rates(args.training_rate, args.labelling_rate),
    )  # fmt: skip
    costs = []
    for step in plan.steps(choose_runs(args)):
        if step.done():
            continue
        costs += [step.cost] if step.cost is not None else []
        command = step.words()
        print(shlex.join(["rela", *command]), flush=True)
        if not args.dry_run and (code := execute(command)) != 0:
            print(f"stopped: this command ended with {code}; start again to go on from here", file=sys.stderr)
            return code
    if args.dry_run:
        print(cost.table(costs, plan.rates))
    return 0


if __name__ == "__main__":
    sys.exit(main())
