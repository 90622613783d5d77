"""Priors: frozen, with their own preprocessing, under an identity that means something."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import pickle
import random as python_random

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from rela_lightning.errors import DataError, PriorError
from rela_lightning.priors import FusedPrior, Preprocess, Prior, load_prior
from tests.parts import TinyBackbone
from tests.ranks import fresh

HALF = {"image_size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
SMALL = {"width": 0.125, "image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Two colour photographs, 427 by 640."""
    return [Image.fromarray(array) for array in load_sample_images().images]


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_a_prior_is_frozen_in_eval_and_leaves_the_users_module_alone():
    module = TinyBackbone().train()
    before = copy.deepcopy(module.state_dict())
    prior = load_prior(module, **HALF)
    prior.train()
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    features = prior(images)
    assert features.shape == (4, prior.feature_dim) == (4, 16)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert not any(m.training for m in prior.modules())
    assert not any(p.requires_grad for p in prior.parameters())
    assert all(torch.equal(value, before[name]) for name, value in prior.network.state_dict().items())
    assert module.training and all(p.requires_grad for p in module.parameters())


def test_features_are_those_of_the_module_in_eval():
    module, images = TinyBackbone(), torch.randn(3, 3, 16, 16)
    module.body[1].running_mean += 0.3  # train mode would answer otherwise
    torch.testing.assert_close(load_prior(module, **HALF)(images), module.eval()(images).detach())


class Tokens(nn.Module):
    """`[B, 5, 8]` tokens, with or without a class token."""

    def __init__(self, cls: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, stride=8)
        if cls:
            self.cls_token = nn.Parameter(torch.full((1, 1, 8), 7.0))

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return (
            torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) if hasattr(self, "cls_token") else tokens
        )


def test_token_sequences_give_the_class_token_or_their_mean():
    images = torch.randn(2, 3, 16, 16)
    assert (load_prior(Tokens(True), **HALF)(images) == 7.0).all()
    without = Tokens(False)
    torch.testing.assert_close(load_prior(without, **HALF)(images), without(images).detach().mean(1))
    torch.testing.assert_close(load_prior(Tokens(True), pooling="avg", **HALF)(images).shape, torch.Size([2, 8]))


def test_preprocessing_is_resize_of_the_shorter_side_centre_crop_and_normalise(photos):
    preprocess = load_prior(TinyBackbone(), image_size=96, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)).preprocess
    for photo in photos:
        resized = photo.resize((int(96 * 640 / 427), 96), Image.Resampling.BICUBIC)
        left = round((resized.width - 96) / 2)
        array = np.array(resized.crop((left, 0, left + 96, 96))) / 255.0
        expected = (array - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
        found = preprocess(photo)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_tensors_and_pil_images_are_treated_alike(photos):
    preprocess = Preprocess((64, 64), (0.0,) * 3, (1.0,) * 3)
    pil, tensor = preprocess(photos[0]), preprocess(as_tensor(photos[0]))
    scaled = preprocess(as_tensor(photos[0]) / 255)
    assert (pil - tensor).abs().max() <= 4 / 255
    assert (scaled - tensor).abs().max() <= 4 / 255
    assert scaled.min() >= 0.0 and scaled.max() <= 1.0  # bicubic overshoots


def test_a_float_image_is_not_written_to():
    image = torch.rand(3, 16, 16)
    before = image.clone()
    Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3)(image)
    assert torch.equal(image, before)


def test_gray_becomes_colour_and_colour_gray(photos):
    gray = photos[0].convert("L")
    colour = Preprocess((32, 32), (0.0,) * 3, (1.0,) * 3)
    expected = colour(gray.convert("RGB"))
    torch.testing.assert_close(colour(gray), expected)
    torch.testing.assert_close(colour(gray.convert("RGBA")), expected)
    assert colour(torch.from_numpy(np.array(gray))[None]).shape == (3, 32, 32)
    assert colour(torch.zeros(4, 40, 40, dtype=torch.uint8)).shape == (3, 32, 32)
    single = load_prior(nn.Sequential(nn.Conv2d(1, 4, 3)), image_size=8, mean=[0.1, 0.2, 0.3], std=0.5)
    assert single.preprocess.mean == pytest.approx((0.2,))
    assert single.preprocess(photos[0]).shape == (1, 8, 8)


@pytest.mark.parametrize(
    "image, message",
    [
        ("picture.png", "found:    str"),
        (Image.new("F", (9, 9), 2.0), "PIL mode F has values from 2 to 2"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), "channels first"),
        (torch.zeros(3, 9, 9, dtype=torch.int64), "torch.int64"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(DataError, match=message):
        Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3)(image)


def test_fits(photos):
    size = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    squashed = Preprocess((40, 40), fit="squash", **size)(photos[0])
    np.testing.assert_allclose(
        squashed.permute(1, 2, 0).numpy(),
        np.array(photos[0].resize((40, 40), Image.Resampling.BICUBIC)) / 255,
        atol=1e-6,
    )
    white = Image.new("RGB", (80, 40), "white")
    inside = Preprocess((40, 40), fit="longest", **size)(white)
    assert inside[:, 10:30].min() == 1.0 and inside[:, :9].max() == 0.0 and inside[:, 31:].max() == 0.0
    assert Preprocess((30, 50), **size)(photos[0]).shape == (3, 30, 50)


def test_identity_is_the_same_for_two_loads_and_another_for_any_change():
    module = TinyBackbone()
    prior = load_prior(module, **HALF)
    assert len(prior.identity) == 64 and int(prior.identity, 16)
    assert load_prior(copy.deepcopy(module), **HALF).identity == prior.identity
    assert load_prior(module, pooling="avg", **HALF).identity == prior.identity  # its features are vectors already
    changes = [{"image_size": 24}, {"mean": (0.5, 0.5, 0.4)}, {"std": (0.25, 0.25, 0.3)}]
    others = {load_prior(module, **{**HALF, **change}).identity for change in changes}
    with torch.no_grad():
        module.body[0].weight[0, 0, 0, 0] += 1e-6
    others.add(load_prior(module, **HALF).identity)
    module.body[2] = nn.GELU()  # no weights, yet another prior
    others.add(load_prior(module, **HALF).identity)
    assert len(others | {prior.identity}) == 6


def test_identity_follows_weights_that_are_written_to():
    prior = load_prior(TinyBackbone(), **HALF)
    before = prior.identity
    with torch.no_grad():
        prior.network.body[0].bias[0] += 1
    assert prior.identity != before
    with torch.no_grad():
        prior.network.body[0].bias[0] -= 1
    assert prior.double().float().identity == prior.identity


def _identity(prior: Prior, queue: multiprocessing.Queue) -> None:
    queue.put((prior.identity, prior.preprocess(Image.new("RGB", (20, 30), "red")).sum().item()))


@pytest.mark.slow
def test_identity_and_preprocessing_survive_spawn():
    prior = load_prior("random:lightly:resnet-9", **SMALL)
    queue = fresh().Queue()
    process = fresh().Process(target=_identity, args=(prior, queue))
    process.start()
    found = queue.get(timeout=120)
    process.join()
    assert found == (prior.identity, prior.preprocess(Image.new("RGB", (20, 30), "red")).sum().item())
    assert pickle.loads(pickle.dumps(prior)).identity == prior.identity


def to_float(image):
    return as_tensor(image.convert("RGB").resize((16, 16))).float() / 255


def to_other_float(image):
    return as_tensor(image.convert("RGB").resize((16, 16))).float() / 254


def test_a_preprocess_of_ones_own_is_used_and_named_in_the_identity(photos):
    module = TinyBackbone()
    prior = load_prior(module, preprocess=to_float)
    assert prior.preprocess is to_float
    torch.testing.assert_close(
        prior(prior.preprocess(photos[0])[None]), module.eval()(to_float(photos[0])[None]).detach()
    )
    assert prior.identity == load_prior(module, preprocess=to_float).identity
    assert prior.identity != load_prior(module, preprocess=to_other_float).identity


class Scale:
    """A preprocessing with a method to use."""

    def apply(self, image, by=255):
        return as_tensor(image.convert("RGB").resize((8, 8))).float() / by


class WithExtra(nn.Conv2d):
    """State that is no tensor."""

    extra = "first"

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def test_identity_tells_partials_methods_and_extra_state_apart():
    module = WithExtra(3, 4, 3)
    choices = [functools.partial(Scale().apply, by=2), functools.partial(Scale().apply, by=3), Scale().apply]
    identities = [load_prior(module, preprocess=choice).identity for choice in choices]
    assert load_prior(module, preprocess=functools.partial(Scale().apply, by=2)).identity == identities[0]
    module.extra = "second"
    identities.append(load_prior(module, preprocess=choices[0]).identity)
    assert len(set(identities)) == 4


def test_random_priors_are_a_matter_of_their_seed_and_leave_the_random_state_alone():
    torch.manual_seed(5), np.random.seed(5), python_random.seed(5)
    expected = torch.rand(2), np.random.rand(2), python_random.random()
    torch.manual_seed(5), np.random.seed(5), python_random.seed(5)
    first, again, other = (load_prior("random:lightly:resnet-9", seed=s, **SMALL) for s in (3, 3, 4))
    found = torch.rand(2), np.random.rand(2), python_random.random()
    assert torch.equal(found[0], expected[0]) and (found[1] == expected[1]).all() and found[2] == expected[2]
    assert first.identity == again.identity != other.identity


def test_a_fusion_puts_features_side_by_side(photos):
    parts = [load_prior("random:lightly:resnet-9", **SMALL), load_prior(TinyBackbone(), **HALF)]
    fused = load_prior(parts)
    batch = torch.utils.data.default_collate([fused.preprocess(photo) for photo in photos])
    assert [tuple(part.shape) for part in batch] == [(2, 3, 32, 32), (2, 3, 16, 16)]
    alone = [part(torch.stack([part.preprocess(photo) for photo in photos])) for part in parts]
    torch.testing.assert_close(fused(batch), torch.cat(alone, 1))
    assert isinstance(fused, FusedPrior) and fused.feature_dim == 64 + 16
    assert fused.identity == load_prior(parts).identity != load_prior(parts[::-1]).identity
    assert not fused.train().training
    with pytest.raises(PriorError, match="one batch for each"):
        fused(batch[:1])
    by_spec = load_prior(["random:lightly:resnet-9", parts[1]], **SMALL)
    assert by_spec.feature_dim == 80


def test_a_prior_may_be_in_a_fusion_twice(photos):
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=0.5, std=0.5)
    twice = load_prior([prior, prior])
    features = twice([part[None] for part in twice.preprocess(photos[0])])
    assert features.shape == (1, 2 * prior.feature_dim) and torch.equal(*features.chunk(2, dim=1))


def test_settings_change_a_prior_that_is_loaded_already():
    prior = load_prior("random:lightly:resnet-9", **SMALL)
    assert load_prior(prior) is prior
    larger = load_prior(prior, image_size=48)
    assert larger.preprocess.image_size == (48, 48) and larger.preprocess.mean == prior.preprocess.mean
    assert larger.identity != prior.identity


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(2, 3, 16, 20), r"\[2, 3, 16, 20\]"),
        (torch.zeros(2, 1, 16, 16), r"expected: a float tensor \[B, 3, 16, 16\]"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "prior.preprocess"),
        ([torch.zeros(3, 16, 16)], "found:    list"),
    ],
)
def test_batches_of_another_size_are_refused(images, message):
    with pytest.raises(PriorError, match=message):
        load_prior(TinyBackbone(), **HALF)(images)


@pytest.mark.parametrize(
    "spec, options, message",
    [
        ("resnet18", {}, "open_clip:<arch>/<tag>, timm:<model>, torchvision:<model>/<weights>, checkpoint:<file>"),
        ("timm:", {}, "no such prior"),
        (7, {}, "no such prior"),
        ("random:resnet18", {}, "open_clip, timm, torchvision, lightly"),
        ("timm:resnet18_", {}, "resnet18d"),
        ("torchvision:resnet1", {}, "resnet18"),
        ("torchvision:resnet18/V1", {}, "IMAGENET1K_V1"),
        ("open_clip:ViT-B16/openai", {}, "ViT-B-16"),
        ("open_clip:RN50/openia", {}, "openai"),
        ("open_clip:RN50", {}, "write open_clip:RN50/<tag>"),
        ("checkpoint:a.pt", {}, "`arch=`"),
        ("random:lightly:resnet-9", {"width": 0.125}, "no preprocessing of its own"),
        ("random:lightly:resnet-9", {"depth": 3, **HALF}, "unexpected keyword argument 'depth'"),
        ("random:lightly:resnet-9", {**SMALL, "image_size": 0}, "number of pixels"),
        ("random:lightly:resnet-9", {**SMALL, "mean": (0.5, 0.5)}, "3 values"),
        (TinyBackbone(), {}, "expected: `preprocess=`, or"),
        (TinyBackbone(), {**HALF, "preprocess": to_float}, "one or the other"),
        (TinyBackbone(), {**HALF, "seed": 1}, "found:    seed"),
        (nn.Linear(3, 4), HALF, "cannot take the images"),
        (TinyBackbone(), {"preprocess": lambda image: [image]}, "a float tensor"),
        (TinyBackbone(), {"preprocess": lambda image: image.foo}, "failed on a blank image"),
        ([], {}, "at least one"),
    ],
)
def test_specs_that_cannot_work_are_refused(spec, options, message):
    with pytest.raises(PriorError, match=message):
        load_prior(spec, **options)


class Views(nn.Module):
    """Flattens by a view, which channels-last images do not allow."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.view(images.shape[0], -1)


@pytest.mark.parametrize("network", [Views(), nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten())])
def test_features_do_not_depend_on_the_order_of_channels_in_memory(network: nn.Module) -> None:
    prior = load_prior(network, image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    images = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        expected = network(images)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        torch.testing.assert_close(prior(images.contiguous(memory_format=memory_format)), expected)


def test_printing_a_prior_takes_a_line() -> None:
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=0.5, std=0.5)
    assert repr(prior).startswith("Prior(random:lightly:resnet-9") and "feature_dim=64" in repr(prior)
    assert "\n" not in repr(prior) and "Conv2d" in repr(prior.network)
