"""Weights from files: what is read, what is refused, what is said."""

from __future__ import annotations

import logging

import pytest
import torch
from lightly.models import ResNetGenerator
from safetensors.torch import save_file

from rela_lightning.errors import PriorError
from rela_lightning.priors import load_prior
from tests.parts import TinyBackbone

OPTIONS = {"width": 0.125, "image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.fixture(scope="module")
def donor():
    torch.manual_seed(11)
    return ResNetGenerator("resnet-9", width=0.125).eval()


def prefixed(state, *prefixes):
    return {prefix + key: value for prefix in prefixes for key, value in state.items()}


def check(prior, donor):
    features = []
    donor.linear.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        donor(images)
    torch.testing.assert_close(prior(images), features[0])


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
def test_plain_state_dicts(tmp_path, donor, suffix):
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(donor.state_dict(), path)
    check(load_prior(f"checkpoint:{path}", arch="lightly:resnet-9", **OPTIONS), donor)


def test_lightning_checkpoints_lose_their_prefix(tmp_path, donor, caplog):
    content = {
        "state_dict": {**prefixed(donor.state_dict(), "model.backbone."), "model.projector.weight": torch.ones(2)},
        "epoch": 3,
        "hyper_parameters": {"lr": 0.1},
    }
    torch.save(content, tmp_path / "byol.ckpt")
    with caplog.at_level(logging.INFO, "rela_lightning"):
        prior = load_prior(f"checkpoint:{tmp_path / 'byol.ckpt'}", arch="lightly:resnet-9", **OPTIONS)
    check(prior, donor)
    assert "prefix 'model.backbone.'" in caplog.text
    assert "linear.weight" in caplog.text  # unexpected: the classifier is not part of a prior


def test_the_student_comes_before_its_teacher_and_prefix_chooses(tmp_path, donor, caplog):
    torch.manual_seed(12)
    teacher = ResNetGenerator("resnet-9", width=0.125).eval()
    state = {**prefixed(donor.state_dict(), "backbone."), **prefixed(teacher.state_dict(), "backbone_momentum.")}
    save_file(state, tmp_path / "both.safetensors")
    spec = f"checkpoint:{tmp_path / 'both.safetensors'}"
    check(load_prior(spec, arch="lightly:resnet-9", prefix="backbone_momentum", **OPTIONS), teacher)
    torch.save(state, tmp_path / "both.pt")  # in the order of the module
    check(load_prior(f"checkpoint:{tmp_path / 'both.pt'}", arch="lightly:resnet-9", **OPTIONS), donor)
    assert "several prefixes" in caplog.text


def test_a_module_as_architecture_is_filled_as_a_copy(tmp_path):
    module, weights = TinyBackbone(), TinyBackbone().state_dict()
    torch.save({"model": weights}, tmp_path / "tiny.pt")
    before = module.body[0].weight.clone()
    prior = load_prior(f"checkpoint:{tmp_path / 'tiny.pt'}", arch=module, image_size=16, mean=0.5, std=0.5)
    assert torch.equal(prior.network.body[0].weight, weights["body.0.weight"])
    assert torch.equal(module.body[0].weight, before)


def test_a_torchvision_architecture_brings_its_preprocessing(tmp_path):
    import torchvision.models as zoo

    model = zoo.resnet18()
    torch.save(prefixed(model.state_dict(), "module."), tmp_path / "r18.pth")
    prior = load_prior(f"checkpoint:{tmp_path / 'r18.pth'}", arch="torchvision:resnet18")
    assert prior.preprocess.image_size == (224, 224) and prior.preprocess.resize == (256, 256)
    assert torch.equal(prior.network.layer4[1].conv2.weight, model.layer4[1].conv2.weight)


def test_missing_names_are_logged(tmp_path, donor, caplog):
    state = donor.state_dict()
    del state["layer4.0.bn2.weight"]
    torch.save(state, tmp_path / "some.pt")
    load_prior(f"checkpoint:{tmp_path / 'some.pt'}", arch="lightly:resnet-9", **OPTIONS)
    assert "1 tensors missing, left untrained: layer4.0.bn2.weight" in caplog.text


class Custom:
    """An object that a checkpoint should not hold."""


def test_files_that_cannot_be_used_are_refused(tmp_path, donor):
    def load(name, arch="lightly:resnet-9", **more):
        return load_prior(f"checkpoint:{tmp_path / name}", arch=arch, **{**OPTIONS, **more})

    torch.save({"state_dict": donor.state_dict(), "config": Custom()}, tmp_path / "objects.ckpt")
    with pytest.raises(PriorError, match="pickled objects"):
        load("objects.ckpt")
    with pytest.raises(PriorError, match=r"no such weights file[\s\S]*objects.ckpt"):
        load("objekts.ckpt")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(PriorError, match="cannot be read"):
        load("text.safetensors")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(PriorError, match=r"no state dict[\s\S]*epoch"):
        load("empty.pt")
    torch.save(donor.state_dict(), tmp_path / "good.pt")
    with pytest.raises(PriorError, match=r"other shapes[\s\S]*conv1.weight \[8, 3, 3, 3\], here \[16, 3, 3, 3\]"):
        load("good.pt", width=0.25)
    with pytest.raises(PriorError, match="found:    width"):
        load("good.pt", arch=TinyBackbone())
    with pytest.raises(PriorError, match=r"does not hold the weights[\s\S]*conv1.weight"):
        load_prior(f"checkpoint:{tmp_path / 'good.pt'}", arch=TinyBackbone(), image_size=16, mean=0.5, std=0.5)
