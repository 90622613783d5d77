"""Versions that modules keep beside their tensors go through priors and exports."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import mnasnet0_5

from rela_lightning import export_backbone, load_prior
from rela_lightning.weights import changed, fill, renamed, tensors_in


class Scaled(nn.Module):
    """Since version 2 the scale is kept as its logarithm; older weights are converted when they load."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))[:, :1] * self.scale.exp()

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version", 1) < 2:
            state[prefix + "scale"] = state[prefix + "scale"].log()
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Student(L.LightningModule):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(4, 2)


def bare_mnasnet() -> nn.Module:
    network = mnasnet0_5(weights=None)
    network.classifier = nn.Identity()
    return network


SETTINGS = {"image_size": 32, "mean": 0.5, "std": 0.5}


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.model."])
def test_a_checkpoint_with_versions_is_a_prior(tmp_path: Any, prefix: str) -> None:
    network = mnasnet0_5(weights=None)
    state = renamed(network.state_dict(), lambda name: prefix + name)
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    prior = load_prior(f"checkpoint:{tmp_path / 'w.pth'}", arch="torchvision:mnasnet0_5", image_size=32)
    images = torch.rand(2, 3, 32, 32)
    network.classifier = nn.Identity()
    torch.testing.assert_close(prior(images), network.eval()(images), rtol=1e-4, atol=1e-5)
    save_file(dict(network.state_dict()), tmp_path / "w.safetensors")  # which keeps no versions
    again = load_prior(f"checkpoint:{tmp_path / 'w.safetensors'}", arch="torchvision:mnasnet0_5", image_size=32)
    torch.testing.assert_close(again(images), prior(images))


def test_weights_of_an_older_version_are_converted(tmp_path: Any) -> None:
    old = Scaled().state_dict()
    old["scale"] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    old._metadata[""]["version"] = 1
    torch.save(old, tmp_path / "old.pt")
    prior = load_prior(f"checkpoint:{tmp_path / 'old.pt'}", arch=Scaled(), **SETTINGS)
    torch.testing.assert_close(prior(torch.ones(1, 1, 32, 32))[0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    exported = export_backbone(tmp_path / "old.pt", tmp_path / "new.pt", key="")
    fresh = Scaled()
    fresh.load_state_dict(torch.load(exported, weights_only=True))
    torch.testing.assert_close(fresh.scale.exp(), torch.tensor([1.0, 2.0, 3.0, 4.0]))


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda module: module, torch.nn.DataParallel])
def test_an_export_loads_into_the_plain_network(tmp_path: Any, wrap: Any) -> None:
    student = Student(bare_mnasnet())
    path = export_backbone(wrap(student), tmp_path / "b.pt", architecture="mnasnet0_5")
    fresh = bare_mnasnet()
    fresh.load_state_dict(torch.load(path, weights_only=True), strict=True)
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.strategy.connect(student)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    path = export_backbone(tmp_path / "run.ckpt", tmp_path / "c.pt", architecture="mnasnet0_5")
    bare_mnasnet().load_state_dict(torch.load(path, weights_only=True), strict=True)
    path = export_backbone(tmp_path / "run.ckpt", tmp_path / "c.safetensors", architecture="mnasnet0_5")
    filled = bare_mnasnet()
    fill(filled, load_file(path))
    assert all(torch.equal(a, b) for a, b in zip(filled.parameters(), student.backbone.parameters(), strict=True))


def test_names_and_versions_change_together() -> None:
    state = Student(Scaled()).state_dict()
    inner = renamed(state, lambda name: name.removeprefix("backbone.") if name.startswith("backbone.") else None)
    assert list(inner) == ["scale"] and inner._metadata == {"": {"version": 2}}
    assert changed(inner, torch.exp)._metadata == inner._metadata
    assert list(tensors_in({"a": torch.ones(1), "b": 3, 4: torch.zeros(1)})) == ["a", "4"]
    assert not hasattr(tensors_in({"a": torch.ones(1)}), "_metadata")
