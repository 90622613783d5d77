"""Networks that were wrapped, or that only a run's config knows, are exported under the names of the plain network."""

from __future__ import annotations

import copy
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torchvision import models

from rela_lightning import export_backbone
from rela_lightning.cli import main
from tests.exports import real_images


def wrapped(network: nn.Module, cut: int = 1) -> nn.Sequential:
    return nn.Sequential(*list(network.children())[:-cut])


def holding(backbone: nn.Module) -> nn.Module:
    """A module as lightly's tutorials write it."""
    module = nn.Module()
    module.backbone, module.head = backbone, nn.Linear(4, 4)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cut"), [("resnet18", 1), ("resnet18", 2), ("resnet50", 1), ("resnext50_32x4d", 1)])
def test_a_resnet_in_a_sequential_gets_its_own_names_back(name: str, cut: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = models.get_model(name).eval()
    out = export_backbone(holding(wrapped(network, cut)), tmp_path / "b.safetensors", key="backbone")
    plain = models.get_model(name)
    plain.fc = nn.Identity()
    plain.load_state_dict(load_file(out), strict=True)
    images = real_images(2, 64)
    with torch.no_grad():
        maps = wrapped(network, cut)(images)
        torch.testing.assert_close(plain.eval()(images), maps.mean(dim=(2, 3)))


def test_another_network_in_a_sequential_gets_its_names_by_its_architecture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = models.mobilenet_v2()
    loose = export_backbone(wrapped(network), tmp_path / "loose.pt", key="")
    assert all(name[0].isdigit() for name in torch.load(loose, weights_only=True))
    named = export_backbone(wrapped(network), tmp_path / "named.pt", key="", architecture="mobilenet_v2")
    network.classifier = nn.Identity()
    network.load_state_dict(torch.load(named, weights_only=True), strict=True)


def test_numbers_that_are_no_resnet_stay(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 4))
    out = export_backbone(network, tmp_path / "b.safetensors", key="")
    assert set(load_file(out)) == {"0.weight", "0.bias", "3.weight", "3.bias"}


class Named(L.LightningModule):
    """A network named by a hyper-parameter, and changed after it was built, as for small images."""

    def __init__(self, backbone: str = "resnet18", changed: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone, self.head = models.get_model(backbone), nn.Linear(512, 4)
        self.backbone.fc = nn.Identity()
        if changed:
            self.backbone.maxpool = nn.Identity()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise NotImplementedError


def dilated() -> nn.Module:
    return wrapped(models.resnet50(replace_stride_with_dilation=[False, True, True]))


@pytest.mark.slow
@pytest.mark.parametrize("make", [Named, lambda: Named(changed=False), lambda: holding(dilated())])
def test_what_is_exported_computes_what_the_module_does(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = make().train()
    images = real_images(2, 64)
    expected = pooled_features(module.backbone, images)
    out = export_backbone(module, tmp_path / "b.onnx", key="backbone", image_size=64)
    torch.testing.assert_close(onnx_features(out, images), expected, rtol=1e-3, atol=1e-3)
    folder = export_backbone(module, tmp_path / "hub", key="backbone", format="hub")
    unchanged = isinstance(module, Named) and not module.hparams.changed
    config = json.loads((folder / "config.json").read_text())
    assert ("architecture" in config) == unchanged == (config["rela_lightning"]["backbone"] is not None)
    again = make()
    again.backbone.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    torch.testing.assert_close(pooled_features(again.backbone, images), expected)
    assert module.training and module.backbone.training, "the module is left as it was"


def test_the_weights_of_a_changed_resnet_have_its_names_and_no_recipe(tmp_path: Path) -> None:
    module = holding(dilated())
    out = export_backbone(module, tmp_path / "b.safetensors", key="backbone")
    plain = models.resnet50(replace_stride_with_dilation=[False, True, True])
    plain.fc = nn.Identity()
    plain.load_state_dict(load_file(out), strict=True)
    with safe_open(out, "pt") as file:
        assert "backbone" not in file.metadata()
    images = real_images(1, 64)
    torch.testing.assert_close(pooled_features(plain, images), pooled_features(module.backbone, images))


def pooled_features(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Of a network that averages its maps itself; it is left in the mode that it was in."""
    network = copy.deepcopy(network).eval()
    with torch.no_grad():
        return network(images).flatten(1)


def onnx_features(path: Path, images: torch.Tensor) -> torch.Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_may_be_read_by_whom_new_files_may(ending: str, mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        out = export_backbone(nn.Conv2d(3, 4, 3), tmp_path / f"b.{ending}", key="")
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~mask


MINE = """
import lightning.pytorch as L
import torch
from torch import nn


class Mine(L.LightningModule):
    def __init__(self, width: int = 8):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, 4)

    def training_step(self, batch, batch_idx):
        return self.head(self.backbone(batch[0][0] if isinstance(batch[0], list) else batch[0])).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


@pytest.mark.slow
def test_what_a_run_can_build_again_becomes_onnx(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    data = ["--data", "DigitsData", "--data.batch_size", "64", "--data.num_workers", "0"]
    words = ["--model", "mine.Mine", "--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--name", "own"]
    assert main(["fit", *words, *data, "--trainer.enable_progress_bar", "false"]) == 0
    assert main(["export", "runs/own", "own.onnx", "--image_size", "32"]) == 0
    import onnxruntime

    session = onnxruntime.InferenceSession("own.onnx", providers=["CPUExecutionProvider"])
    images = real_images(2, 32)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    file = next(Path("runs/own").rglob("*.ckpt"))
    state = torch.load(file, weights_only=True)["state_dict"]
    weights = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.load_state_dict(weights)
    torch.testing.assert_close(torch.from_numpy(found), network(images).detach(), rtol=1e-3, atol=1e-4)
    (Path("runs/own") / "config.yaml").unlink()
    assert main(["export", "runs/own", "again.onnx"]) == 2
    assert "nothing says what it is" in capsys.readouterr().err
