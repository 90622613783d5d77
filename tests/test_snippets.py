"""Every command and every piece of Python that README and docs show is run, with small data and small networks."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import rela_lightning
from rela_lightning.cli import main
from rela_lightning.data import Digits, ImageFolderData, RGBImages, build_views
from rela_lightning.methods import BYOL
from rela_lightning.priors import load_prior
from rela_lightning.schedules import Switch
from tests.image_files import write_cifar10, write_classes

ROOT = Path(__file__).parents[1]
PAGES = {str(page.relative_to(ROOT)): page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
SMALL = {"width": 0.125}
PRIOR = "random:lightly:resnet-9"
PRIOR_OPTIONS = {**SMALL, "image_size": 32, "mean": 0.5, "std": 0.5}
QUICK = [
    "--trainer.max_epochs=1", "--trainer.max_steps=2", "--data.batch_size=4", "--data.num_workers=0",
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true", "--trainer.num_nodes=1",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
]  # fmt: skip
NETWORK = ["--model.backbone=lightly:resnet-9", "--model.backbone_kwargs={width: 0.125}", "--model.cifar_stem=false"]
ELSEWHERE = {"rela demo": "tests/test_demo.py"}
"""Commands by their start: the test that runs them."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block of a page, in order."""
    found: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return found


def commands(page: Path) -> list[str]:
    """The lines of a page that call `rela`, as one types them."""
    text = "\n".join(text for language, text in blocks(page) if language in ("", "bash"))
    lines = text.replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines if line.startswith("rela ")]


def python(page: Path) -> list[str]:
    """The pieces of Python of a page."""
    return [text for language, text in blocks(page) if language == "python"]


WITH_COMMANDS = [name for name, page in PAGES.items() if commands(page)]
WITH_PYTHON = [name for name, page in PAGES.items() if python(page)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages take for granted: data, photos, the examples."""
    write_cifar10(tmp_path / "data", monkeypatch)
    for part in ("train", "val"):
        write_classes(tmp_path / "photos" / part, 6)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_shards() -> None:
    """A hundred shards of one photo each, as WebDataset reads them."""
    photos = sorted(Path("photos").rglob("*.jpg"))
    for number in range(100):
        with tarfile.open(f"photos-{number:03}.tar", "w") as shard:
            for ending, content in (("jpg", photos[number % len(photos)].read_bytes()), ("cls", b"0")):
                member = tarfile.TarInfo(f"{number:03}.{ending}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def small_prior(spec: Any, **options: Any) -> Any:
    """`load_prior`, with a small random network in place of one that is downloaded."""
    downloaded = isinstance(spec, str) and spec.partition(":")[0] in ("open_clip", "timm", "torchvision")
    return load_prior(PRIOR, **PRIOR_OPTIONS) if downloaded else load_prior(spec, **options)


def quick(line: str) -> list[str]:
    """The words of a command, made small: another network, two steps."""
    command, *words = shlex.split(line)[1:]
    if command == "fit":
        return [command, *words, *NETWORK, *QUICK]
    if command == "finetune":
        small = [word.replace("torchvision:resnet50/DEFAULT", "lightly:resnet-9") for word in words]
        return [command, *small, *QUICK, *(["--data.image_size=32"] if small != words else [])]
    small = {
        "similarity": ["--num_samples=12"],
        "targets": ["--num_workers=0"],
        "probe": ["--epochs=1"],
        "export": [],
        "embed": [],
        "compare": [],
    }[command]
    return [command, *words, *small]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_commands_do_what_the_page_shows(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import resnet18

    for module in ("priors", "cli.targets", "runs.rebuild"):
        monkeypatch.setattr(f"rela_lightning.{module}.load_prior", small_prior)
    monkeypatch.setattr("rela_lightning.cli.command.wait_at_exit", lambda: None)
    torch.save(resnet18().state_dict(), "weights.pth")
    if name == "docs/choosing.md":
        main(["fit", "--model=BYOL", "--data=DigitsData", "--name=fast", *NETWORK, *QUICK])
        shutil.copy(next(Path("runs/fast").rglob("*.ckpt")), "runs/fast/checkpoints/epoch=3.ckpt")
    if name == "docs/export.md":
        main(["fit", "--model=BYOL", "--data=DigitsData", "--name=byol", *NETWORK, *QUICK])
    if name == "docs/examples.md":
        words = ["--data=CIFAR10Data", "--data.root=data", "--path=targets/cifar10-clip-b16"]
        main(["targets", "--prior=timm:resnet50", *words])
    for line in commands(PAGES[name]):
        if "HuggingFaceData" in line:
            pytest.importorskip("datasets")
        if not any(line.startswith(start) for start in ELSEWHERE):
            assert main(quick(line)) == 0, line


def step() -> Any:
    """A module and its loader, as a reader has them."""
    module = BYOL("lightly:resnet-9", backbone_kwargs=SMALL)
    images = RGBImages(Digits("train"), build_views("two", 32, mean=[0.5] * 3, std=[0.5] * 3))
    return module, DataLoader(images, batch_size=225, drop_last=True)


class OwnBYOL(BYOL):
    """Stands for the reader's own class."""

    def __init__(self, *args: Any) -> None:
        super().__init__("lightly:resnet-9", backbone_kwargs=SMALL)


def few_images(root: str, **options: Any) -> ImageFolderData:
    """The data module of the page, for as few images as there are."""
    return ImageFolderData(root, **{**options, "batch_size": 4, "num_workers": 0, "image_size": 32})


class Trainer(lightning.pytorch.Trainer):
    """A trainer of one quick epoch on the CPU, whatever the page asks for."""

    def __init__(self, **options: Any) -> None:
        own = {"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu", "devices": 1, "precision": "32-true"}
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        super().__init__(**{**options, **own, **quiet})


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python_runs_as_it_stands(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, loader = step()
    images, around = Digits("train"), {}
    monkeypatch.setattr(rela_lightning, "load_prior", small_prior)
    monkeypatch.setattr(lightning.pytorch, "Trainer", Trainer)
    if name == "docs/callback.md":
        rela_lightning.build_targets(load_prior(PRIOR, **PRIOR_OPTIONS), images, "targets/clip-b16")
        around = {"BYOL": OwnBYOL, "Switch": Switch, "backbone": module.backbone}
    if name == "docs/data.md":
        pytest.importorskip("webdataset")
        write_shards()
        monkeypatch.setattr("rela_lightning.methods.BYOL", OwnBYOL)
        monkeypatch.setattr("rela_lightning.data.ImageFolderData", few_images)
        around = {"CIFAR10": lambda root, transform: RGBImages(images, transform)}
        around |= {"mean": [0.5] * 3, "std": [0.5] * 3, "LightningModule": lightning.pytorch.LightningModule}
        around["MyPlankton"] = Digits
    if name == "docs/distributed.md":
        around = {"build_targets": rela_lightning.build_targets, "prior": load_prior(PRIOR, **PRIOR_OPTIONS)}
    if name == "docs/export.md":
        around = exported(place)
    space: dict[str, Any] = {"train_images": images, "images": images, "your_module": module, "module": module}
    space |= {"your_loader": loader, "loader": loader, **around}
    for text in python(PAGES[name]):
        exec(compile(text, name, "exec"), space)
    if name == "docs/data.md":
        assert space["Plankton"]().dataset("train")[3][1] == images[3][1]


def exported(place: Path) -> dict[str, Any]:
    """A run of a ResNet-18, a checkpoint of it, a hub folder, and a module with an encoder."""
    words = ["--model=BYOL", "--model.backbone=resnet18", "--data=DigitsData", "--name=byol", *QUICK]
    assert main(["fit", *words]) == 0
    (place / "epoch=9.ckpt").write_bytes(next((place / "runs/byol").rglob("*.ckpt")).read_bytes())
    assert main(["export", "runs/byol", "my-backbone", "--format=hub"]) == 0
    model = nn.Module()
    model.encoder = rela_lightning.methods.build_backbone("resnet18")[0]
    return {"model": model}


def test_the_pages_have_what_is_looked_for() -> None:
    assert sum(len(commands(page)) for page in PAGES.values()) > 25
    assert sum(len(python(page)) for page in PAGES.values()) > 12
    assert all(any(line.startswith(start) for page in PAGES.values() for line in commands(page)) for start in ELSEWHERE)
