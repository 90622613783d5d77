"""Real images, real modules, small enough for two cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools
import importlib.metadata
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import sklearn.datasets
import torch
from hypothesis import HealthCheck, settings
from sklearn.utils import Bunch

from tests.parts import load_all, make_digits

torch.set_num_threads(1)
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)  # each Trainer reads them all again
if not torch.cuda.is_available():  # it would keep a stack trace for each kind of device that is not there
    torch.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))
warnings.filterwarnings("ignore", message=".*lightning.*")

any_time = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
settings.register_profile("same", max_examples=60, derandomize=True, **any_time)  # no luck of the draw
settings.register_profile("explore", max_examples=3000, **any_time)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def lightning_speaks() -> None:
    """Lightning's own level of messages, whatever an earlier test has set."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.INFO)


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path) -> Iterator[None]:
    """A module that a test writes is gone with it: the next one's may have the same name."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (vars(sys.modules[name]).get("__file__") or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="session", autouse=True)
def few_images() -> Iterator[None]:
    """A third of the digits in place of all: 450 to train on, 150 to test."""
    whole = load_all()
    few = Bunch(images=whole.images[:600], target=whole.target[:600], target_names=whole.target_names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", lambda: few)
        yield


@pytest.fixture(scope="module")
def all_images(few_images: None) -> Iterator[None]:
    """All digits, for a module whose tests count, learn or measure on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", load_all)
        yield


@pytest.fixture(scope="session")
def digits64():
    """The first 64 training digits, no transform, as `(image, label)`."""
    return make_digits(64)


@pytest.fixture(scope="session")
def targets64(tmp_path_factory: pytest.TempPathFactory, digits64) -> Path:
    """Targets of `digits64` by an untrained prior."""
    from rela_lightning import build_targets, load_prior

    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, seed=1)
    path = tmp_path_factory.mktemp("targets") / "digits64"
    build_targets(prior, digits64, path, standardise="per_dim", storage_dtype=torch.float32)
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, digits64):
    """Targets of `digits64` and of some crops of each image."""
    from rela_lightning import build_targets
    from tests.test_crops import CROPS, prior

    path = tmp_path_factory.mktemp("crops") / "t"
    return build_targets(prior(), digits64, path, views=CROPS, storage_dtype="float32")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with targets in `t` and a run without ReLA in `runs/plain`, made by the command once a process."""
    from rela_lightning.cli import main
    from tests.test_cli import BYOL, DIGITS, PRIOR

    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["targets", *PRIOR, DIGITS, "--path=t"]) == 0
        assert main([*BYOL, "--trainer.max_epochs=1", "--name=plain"]) == 0
    return folder


@pytest.fixture
def targets(made: Path, tmp_path: Path) -> Path:
    """Targets of the training digits."""
    return Path(shutil.copytree(made / "t", tmp_path / "t"))


@pytest.fixture
def plain(made: Path, tmp_path: Path) -> Path:
    """A finished run of one epoch."""
    return Path(shutil.copytree(made / "runs/plain", tmp_path / "runs/plain"))
