"""Every shipped YAML is parsed by the real parser; every `rela fit` one trains on real images, with targets of its own.

The folder the tests run in holds what the configs name: data sets in their own file layouts, and targets that the
`rela targets` command in a config's header made, its prior replaced by a small random one.
"""

from __future__ import annotations

import gc
import hashlib
import json
import pickle
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml
from lightning.pytorch import Callback

from rela_lightning.cli import main
from tests.image_files import crop, write_cifar10, write_classes, write_fashion, write_stl10

ROOT = Path(__file__).parent.parent
LOGGERS = sorted((ROOT / "examples" / "loggers").glob("*.yaml"))
FIT = [file for file in sorted((ROOT / "examples").rglob("*.yaml")) if file not in LOGGERS]
DOCS = sorted((ROOT / "docs" / "configs").glob("*.yaml"))
QUICK_PRIOR = [
    "--prior=random:lightly:resnet-9", "--prior_kwargs={width: 0.125, image_size: 32, mean: 0.5, std: 0.5}",
    "--trainer=null", "--num_workers=0",
]  # fmt: skip
QUICK_FIT = [
    "--data.num_workers=0", "--data.batch_size=4", "--trainer.fast_dev_run=true", "--trainer.precision=32-true",
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto", "--trainer.sync_batchnorm=false",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
]  # fmt: skip
SMALLER = {
    "byol_folder_rela": ["--data.image_size=64", "--trainer.callbacks.transport_resolution=48"],
    "byol_imagenet_ddp_rela": ["--data.image_size=64"],
    "byol_imagenet": ["--data.image_size=64"],
    "dino_imagenet": ["--data.image_size=64"],
    "barlow_twins_tiny_imagenet_rela": ["--model.method.init_args.projector_dim=256"],
    "moco_v3_stl10_rela": ["--model.backbone=timm:vit_tiny_patch16_224", "--model.hidden_dim=256"],
}
"""Overrides for networks and images that would be slow on a CPU."""


class Witness(Callback):
    """Notes what was logged in training; added to each run by its dotted path."""

    logged: ClassVar[dict[str, float]] = {}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        Witness.logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
        Witness.logged["steps"] = trainer.global_step


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photo pieces as CIFAR-100's pickles; torchvision is told their checksums."""
    from torchvision.datasets import CIFAR100

    folder = root / CIFAR100.base_folder
    folder.mkdir(parents=True)

    def write(file: str, content: Any) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

    def images(first: int, count: int) -> dict[str, Any]:
        rows = [np.asarray(crop(n, first + n, 32)).transpose(2, 0, 1).ravel() for n in range(count)]
        return {"data": np.stack(rows), "fine_labels": [n % 100 for n in range(count)]}

    monkeypatch.setattr(CIFAR100, "train_list", [write("train", images(0, 48))])
    monkeypatch.setattr(CIFAR100, "test_list", [write("test", images(48, 8))])
    _, md5 = write("meta", {"fine_label_names": [f"class {n}" for n in range(100)]})
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5})


def write_tiny_imagenet(root: Path) -> None:
    """Photo pieces as Tiny-ImageNet comes: `train/<wnid>/images`, a flat `val/images` with a list of labels."""
    wnids = ("n01443537", "n01629819")
    for kind, wnid in enumerate(wnids):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for number in range(16):
            crop(kind, number, 64).save(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    for number in range(4):
        crop(number, 20 + number, 64).save(root / "val" / "images" / f"val_{number}.JPEG")
    lines = [f"val_{number}.JPEG\t{wnids[number % 2]}\t0\t0\t9\t9\n" for number in range(4)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with every data set that the configs name, as the working directory."""
    folder = tmp_path_factory.mktemp("configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_cifar10(folder / "data", patch, each=10)
        write_cifar100(folder / "data", patch)
        write_stl10(folder / "data", patch)
        write_fashion(folder / "data", train=48, test=16)
        write_tiny_imagenet(folder / "data" / "tiny-imagenet-200")
        for split, count in (("train", 16), ("val", 4)):
            write_classes(folder / "data" / "imagenet" / split, count, ("n01440764", "n01443537"), suffix="JPEG")
            write_classes(folder / "photos" / split, count)
        (folder / "photos" / "train" / "temple" / "torn.jpg").write_bytes(b"no image")  # its config says: skip
        yield folder


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    yield
    gc.collect()  # large modules of one config go before the next


def header(file: Path) -> str:
    """The comment at the top, continued lines joined."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = [line.lstrip("# ") for line in lines[: next(n for n, x in enumerate(lines) if not x.startswith("#"))]]
    return re.sub(r"\\\n", "", "\n".join(comment))


def commands(file: Path) -> list[list[str]]:
    """The `rela` commands in the header."""
    return [shlex.split(line)[1:] for line in header(file).splitlines() if line.startswith("rela ")]


def make_targets(file: Path) -> None:
    for words in commands(file):
        if words[0] == "targets":
            path = Path(words[words.index("--path") + 1])
            if not path.exists():
                assert main([*words, *QUICK_PRIOR]) == 0
            assert path.is_dir()


def given(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*words, "--print_config"])
    output = capsys.readouterr()
    assert stop.value.code == 0, output.err
    config: dict[str, Any] = yaml.safe_load(output.out)
    return config


def within(part: Any, whole: Any, at: str = "") -> None:
    """Every value of `part` is in `whole`."""
    if isinstance(part, dict):
        for key, value in part.items():
            within(value, whole[key], f"{at}.{key}")
    elif isinstance(part, list) and part and isinstance(part[0], dict):
        for number, (own, other) in enumerate(zip(part, whole, strict=True)):
            within(own, other, f"{at}.{number}")
    else:
        assert part == whole, at


# ---- rela fit ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_there_are_configs_for_every_method_and_data_set():
    from rela_lightning import data, methods

    everything = "\n".join(file.read_text(encoding="utf-8") for file in FIT)
    used = set(re.findall(r"rela_lightning\.(?:methods|data)\.(\w+)", everything))
    wanted = {name for name in methods.__all__ if name[0].isupper() and "Method" not in name}
    elsewhere = {"FineTune", "HuggingFaceData"}  # a command of its own, an extra: tests/test_snippets.py runs both
    wanted |= {name for name in data.__all__ if name.endswith("Data") and name != "ImageData"}
    assert wanted - elsewhere <= used
    assert len(FIT) >= 10


@pytest.mark.slow
def test_the_index_lists_every_config_and_script():
    index = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w-]+\.(?:yaml|py)\b", index))
    files = {file.name for file in [*FIT, *LOGGERS, *DOCS] if file.parent.name != "paper"}
    assert files | {file.name for file in (ROOT / "examples").glob("*.py")} == listed


@pytest.mark.slow
@pytest.mark.parametrize("file", FIT, ids=name)
def test_a_fit_config_is_complete_and_trains(file, capsys):
    """Its header names its own file; the targets it reads are those of its header's command; then it trains."""
    fits = [words for words in commands(file) if words[0] == "fit"]
    assert fits and all(f"--config {name(file)}" in " ".join(words) for words in fits)
    config = printed(["fit", f"--config={file}"], capsys)
    within(given(file), config)
    make_targets(file)
    Witness.logged = {}
    words = [*QUICK_FIT, *SMALLER.get(file.stem, []), "--trainer.callbacks+=tests.test_configs.Witness"]
    assert main(["fit", f"--config={file}", *words]) == 0
    assert Witness.logged["steps"] == 1
    accelerated = "ReLACallback" in str(given(file)) or "accelerate" in str(given(file))
    plain = file.parent.name == "paper" or file.stem == "byol_cifar10"
    assert accelerated == ("rela/loss" in Witness.logged) == (not plain)
    assert np.isfinite(list(Witness.logged.values())).all()


@pytest.mark.slow
def test_the_callback_is_added_on_the_command_line(capsys):
    """The line that the header of byol_cifar10.yaml shows, as it stands there."""
    file = ROOT / "examples" / "configs" / "byol_cifar10.yaml"
    make_targets(file.with_name("byol_cifar10_rela.yaml"))
    _, words = commands(file)
    assert "--trainer.callbacks+=rela_lightning.ReLACallback" in words
    words[words.index("--config") + 1] = str(file)
    quick = [word for word in QUICK_FIT if "fast_dev_run" not in word]
    folder = "--trainer.default_root_dir=by-hand"
    assert main([*words, *quick, folder, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]) == 0
    run = json.loads(Path("by-hand/run.json").read_text())
    assert (run["method"], run["prior"], run["schedule"]) == ("BYOL", "random:lightly:resnet-9", "Plateau")
    assert run["labelling_seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("file", LOGGERS, ids=name)
def test_a_logger_goes_beside_a_config(file, capsys, monkeypatch):
    """The command in its header is parsed; where the logger's package is installed, a run writes into it."""
    fit = next(words for words in commands(file) if words[0] == "fit")
    assert fit[-1] == name(file)
    words = [word if word == "fit" or word.startswith("-") else str(ROOT / word) for word in fit]
    config = printed(words, capsys)
    within(given(file), config)
    assert config["trainer"]["callbacks"][0]["class_path"] == "rela_lightning.ReLACallback"
    if find_spec(file.stem) is None:
        assert main(words) == 2
        assert file.stem in capsys.readouterr().err
        pytest.skip(f"{file.stem} is not installed")
    make_targets(ROOT / fit[2])
    monkeypatch.setenv("WANDB_MODE", "offline")
    quick = [word for word in QUICK_FIT if "fast_dev_run" not in word]
    folder = f"--trainer.default_root_dir=logged-{file.stem}"
    assert main([*words, *quick, folder, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]) == 0
    assert any(file.stem in str(path) and path.is_file() for path in Path("runs").rglob("*"))


# ---- the other commands ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("file", DOCS, ids=name)
def test_a_config_of_another_command_is_parsed(file, capsys):
    command = file.stem.split("_")[0]
    assert f"rela {command} --config {name(file)}" in file.read_text(encoding="utf-8")
    within(given(file), printed([command, f"--config={file}"], capsys))


@pytest.mark.slow
def test_the_other_configs_make_one_story():
    """Targets of one prior and of two, two runs, probes, exports and a comparison, each from its config."""
    configs = ROOT / "docs" / "configs"
    small = ["--model.backbone=lightly:resnet-9", "--model.backbone_kwargs={width: 0.125}"]
    small += [word for word in QUICK_FIT if "fast_dev_run" not in word]
    small += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    assert main(["targets", f"--config={configs / 'targets_clip_cifar10.yaml'}", *QUICK_PRIOR]) == 0
    fusion = [*QUICK_PRIOR, "--prior=[random:lightly:resnet-9, random:lightly:resnet-9]", "--target_dim=100"]
    assert main(["targets", f"--config={configs / 'targets_fusion_folder.yaml'}", *fusion]) == 0
    for kind in ("byol_cifar10", "byol_cifar10_rela"):
        assert main(["fit", f"--config={ROOT}/examples/configs/{kind}.yaml", *small]) == 0
    quick = ["--num_workers=0", "--device=cpu", "--epochs=2"]
    for run in ("byol-cifar10", "byol+rela-cifar10"):
        assert main(["probe", f"--config={configs / 'probe_run.yaml'}", *quick, f"--run=runs/{run}"]) == 0
    prior = [QUICK_PRIOR[0].replace("--prior", "--run"), QUICK_PRIOR[1]]
    assert main(["probe", f"--config={configs / 'probe_prior.yaml'}", *quick, *prior]) == 0
    for kind in ("safetensors", "onnx", "hub"):
        assert main(["export", f"--config={configs / f'export_{kind}.yaml'}"]) == 0
    assert main(["compare", f"--config={configs / 'compare.yaml'}"]) == 0
    made = ("byol-cifar10.safetensors", "byol-rela-cifar10.onnx", "byol-rela-cifar10/config.json")
    made += ("probes/cifar10-clip-b16/probe.json", "comparison/report.json")
    assert [path for path in made if not Path(path).is_file()] == []
    assert len(json.loads(Path("comparison/report.json").read_text())["runs"]) == 2
