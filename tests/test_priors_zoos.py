"""The adapters: heads off, preprocessing as the zoo's own, the zoo's weights asked for."""

from __future__ import annotations

import logging

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from rela_lightning.errors import PriorError
from rela_lightning.priors import load_prior


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A colour photograph, 427 by 640."""
    return Image.fromarray(load_sample_images().images[0])


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


@pytest.mark.parametrize("name, size", [("resnet18", 64), ("vit_tiny_patch16_224", 64)])
def test_timm_gives_pooled_features(name, size):
    import timm

    prior = load_prior(f"random:timm:{name}", image_size=size)
    images = torch.randn(2, 3, size, size)
    options = {"img_size": size} if name.startswith("vit") else {}
    oracle = timm.create_model(name, **options).eval()
    assert not oracle.load_state_dict(prior.network.state_dict(), strict=False).unexpected_keys
    with torch.no_grad():
        features = oracle.forward_features(images)
    expected = features.mean((2, 3)) if name == "resnet18" else features[:, 0]
    torch.testing.assert_close(prior(images), expected)


def test_timm_preprocessing_is_timms_own(photo):
    import timm
    from timm.data import create_transform, resolve_model_data_config

    oracle = create_transform(**resolve_model_data_config(timm.create_model("resnet18")), is_training=False)
    torch.testing.assert_close(load_prior("random:timm:resnet18").preprocess(photo), oracle(photo))


def test_torchvision_gives_what_its_classifier_reads(photo):
    import torchvision.models as zoo

    prior, weights = load_prior("random:torchvision:resnet18", seed=2), zoo.ResNet18_Weights.IMAGENET1K_V1
    image = prior.preprocess(photo)
    torch.testing.assert_close(image, weights.transforms()(photo))
    oracle, seen = seeded(zoo.resnet18, seed=2), []
    oracle.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        oracle(image[None])
    torch.testing.assert_close(prior(image[None]), seen[0])


@pytest.mark.parametrize(
    "name, width",
    [("mobilenet_v3_small", 1024), ("squeezenet1_1", 512), ("shufflenet_v2_x0_5", 1024), ("vit_b_16", 768)],
)
def test_torchvision_heads_come_off(name, width):
    assert load_prior(f"random:torchvision:{name}", image_size=64).feature_dim == width


@pytest.mark.slow
def test_open_clip_gives_the_image_tower_without_the_text_tower(photo):
    import open_clip

    prior = load_prior("random:open_clip:ViT-S-32", seed=1)
    oracle = seeded(lambda: open_clip.create_model("ViT-S-32"), seed=1)
    image = prior.preprocess(photo)
    torch.testing.assert_close(image, open_clip.image_transform(224, is_train=False)(photo))
    with torch.no_grad():
        torch.testing.assert_close(prior(image[None]), oracle.encode_image(image[None]))
    assert prior.state_dict().keys() == {f"network.{key}" for key in oracle.visual.state_dict()}


def test_open_clip_takes_its_weights_settings_and_leaves_the_log_alone():
    handlers = list(logging.getLogger().handlers)
    prior = load_prior("random:open_clip:PE-Core-T-16-384", image_size=64)
    assert prior.preprocess.image_size == (64, 64)
    assert prior(torch.zeros(1, 3, 64, 64)).shape == (1, prior.feature_dim)
    assert logging.getLogger().handlers == handlers


def test_lightly_gives_what_its_classifier_reads():
    from lightly.models import ResNetGenerator

    prior = load_prior("random:lightly:resnet-9", width=0.25, image_size=32, mean=0.5, std=0.5, seed=4)
    oracle, seen = seeded(lambda: ResNetGenerator("resnet-9", width=0.25), seed=4), []
    oracle.linear.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        oracle(images)
    torch.testing.assert_close(prior(images), seen[0])


class Asked(Exception):
    """Raised in place of a download, with what was asked for."""


def test_timm_is_asked_for_its_weights(monkeypatch):
    import timm

    def ask(name, **options):
        raise Asked(f"{name} {options}")

    monkeypatch.setattr(timm, "create_model", ask)
    with pytest.raises(PriorError, match=r"resnet18.a1_in1k {'pretrained': True, 'num_classes': 0, 'cache_dir': 'x'}"):
        load_prior("timm:resnet18.a1_in1k", cache_dir="x")


def test_torchvision_is_asked_for_its_weights(monkeypatch):
    import torchvision.models as zoo

    def ask(name, **options):
        raise Asked(f"{name} {options}")

    monkeypatch.setattr(zoo, "get_model", ask)
    with pytest.raises(PriorError, match=r"resnet50 {'weights': ResNet50_Weights.IMAGENET1K_V2}"):
        load_prior("torchvision:resnet50/IMAGENET1K_V2")


@pytest.mark.parametrize("spec, gelu", [("ViT-B-32/openai", True), ("ViT-B-32/laion2b_s34b_b79k", False)])
def test_open_clip_is_asked_for_its_weights_with_their_activation(monkeypatch, spec, gelu):
    import open_clip

    asked = {}

    def ask(name, **options):
        asked.update(options, name=name)
        raise Asked

    monkeypatch.setattr(open_clip, "create_model", ask)
    with pytest.raises(PriorError, match="could not be loaded"):
        load_prior(f"open_clip:{spec}", image_size=160)
    assert (asked["name"], asked["pretrained"]) == tuple(spec.split("/"))
    assert asked["require_pretrained"] and asked["load_weights"]
    assert asked.get("force_quick_gelu", False) is gelu
    assert asked["force_image_size"] == 160


def test_open_clip_preprocessing_comes_with_the_tag(monkeypatch):
    import open_clip

    tower = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    tower.preprocess_cfg = {"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    model = torch.nn.Module()
    model.visual = tower
    monkeypatch.setattr(open_clip, "create_model", lambda *args, **options: model)
    prior = load_prior("open_clip:ViT-B-16-SigLIP/webli")
    assert (prior.preprocess.fit, prior.preprocess.image_size, prior.preprocess.mean) == ("squash", (8, 8), (0.5,) * 3)


def test_pretrained_weights_load_into_the_prior(monkeypatch):
    """torchvision's own loading code, with its download replaced by a state dict at hand."""
    import torchvision.models as zoo

    donor = seeded(zoo.resnet18, seed=9)
    monkeypatch.setattr(zoo.ResNet18_Weights, "get_state_dict", lambda self, *args, **options: donor.state_dict())
    prior = load_prior("torchvision:resnet18/IMAGENET1K_V1", image_size=64)
    assert torch.equal(prior.network.conv1.weight, donor.conv1.weight)
    assert prior.name == "torchvision:resnet18/IMAGENET1K_V1"


def test_a_model_without_a_classifier_is_refused(monkeypatch):
    import torchvision.models as zoo

    monkeypatch.setattr(zoo, "get_model", lambda *args, **options: torch.nn.Conv2d(3, 3, 1))
    with pytest.raises(PriorError, match="no classifier to take off"):
        load_prior("random:torchvision:resnet18")
