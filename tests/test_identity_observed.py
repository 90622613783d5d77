"""How a prior is observed: alike on other machines, small, coarse where it must be, and without leaving a trace."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from rela_lightning import build_targets, load_prior
from rela_lightning.errors import PriorError
from rela_lightning.fingerprint.prior import Observed, observe, what_differs
from tests.ranks import by_name, fresh
from tests.test_identity import HALF, Callable, named, resnet, scaled, tiny, vit, with_preprocess
from tests.test_targets import Digits


def in_another(weights, threads, queue):
    torch.set_num_threads(threads)
    made = [resnet(), vit(), with_preprocess(scaled), with_preprocess(named("bicubic"))]
    for prior, state in zip(made, torch.load(weights), strict=True):
        prior.network.load_state_dict(state)
    queue.put((torch.backends.cpu.get_cpu_capability(), tuple(prior.identity for prior in made)))


@pytest.mark.slow
def test_other_processes_threads_and_instruction_sets_give_the_same(tmp_path):
    """Plain kernels and those for AVX2 round in their own ways, as two machines do."""
    made = [resnet(), vit(), with_preprocess(scaled), with_preprocess(named("bicubic"))]
    torch.save([prior.network.state_dict() for prior in made], tmp_path / "weights.pt")
    ran = []
    for threads, capability in ((1, "default"), (2, "avx2")):
        queue, environment = fresh().Queue(), {"ATEN_CPU_CAPABILITY": capability}  # settled as the first kernel runs
        arguments = (environment, f"{__name__}.in_another", tmp_path / "weights.pt", threads, queue)
        process = fresh().Process(target=by_name, args=arguments)
        process.start()
        ran.append(queue.get(timeout=120))
        process.join()
    (default, one), (avx2, other) = ran
    assert default in ("DEFAULT", "NO")
    assert avx2 in ("AVX2", "NO") or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512")
    assert {one, other} == {tuple(prior.identity for prior in made)}


def test_numbers_apart_by_what_machines_differ_in_are_the_same_prior(tmp_path):
    """Another Pillow may be a level off in some pixels: then the identity differs, and targets are still accepted."""

    def a_level_off(image):
        pixels = scaled(image)
        return pixels + (torch.arange(pixels.numel()).reshape(pixels.shape) % 17 == 0) / 255

    first, second = with_preprocess(scaled), with_preprocess(a_level_off)
    assert first.identity != second.identity
    assert what_differs(first.observed._asdict(), second.observed) == []
    store = build_targets(first, Digits(), tmp_path / "t")
    store.verify(Digits(), second)
    assert build_targets(second, Digits(), tmp_path / "t").prior_identity == first.identity


def test_what_is_kept_is_plain_and_small():
    observed = tiny().observed
    assert Observed(**json.loads(json.dumps(observed._asdict()))) == observed
    assert len(json.dumps(observed)) < 10_000


class Single(nn.Module):
    """Knows float32 only, as kernels of one's own do."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope
        self.map = nn.Linear(3, 12)

    def forward(self, images):
        if images.dtype != torch.float32:
            raise RuntimeError("float32 only")
        return nn.functional.leaky_relu(self.map(images.mean((2, 3))), self.slope)


class Half(Single):
    """Computes in half precision inside."""

    def forward(self, images):
        return super().forward(images.float()).to(torch.bfloat16).to(images.dtype)


@pytest.mark.parametrize("kind", [Single, Half])
def test_networks_that_do_not_run_in_double_precision_are_observed_coarsely(kind):
    def made(slope):
        torch.manual_seed(0)
        return load_prior(kind(slope), **HALF)

    first, again, other = made(0.1), made(0.1), made(0.9)
    assert not first.observed.exact
    assert first.identity == again.identity != other.identity
    assert what_differs(first.observed._asdict(), other.observed) == ["features"]


GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize(
    "augment",
    [
        v2.Compose([v2.RandomHorizontalFlip(0.2), scaled]),
        lambda image: scaled(image) + torch.rand(()) / 255,
        lambda image: scaled(image) * GENERATOR.random(),
    ],
)
def test_a_preprocessing_that_draws_is_refused_before_anything_is_labelled(tmp_path, augment):
    prior = with_preprocess(augment)
    with pytest.raises(PriorError, match=r"other pixels each time[\s\S]*preprocessing for evaluation"):
        build_targets(prior, Digits(), tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_observing_leaves_the_prior_and_the_random_state_alone():
    prior = resnet()
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    torch.manual_seed(3), np.random.seed(3)
    expected = torch.rand(1), np.random.rand(1)
    torch.manual_seed(3), np.random.seed(3)
    observe(prior)
    assert torch.equal(torch.rand(1), expected[0]) and np.random.rand(1) == expected[1]
    assert all(torch.equal(value, before[name]) and value.dtype == before[name].dtype
               for name, value in prior.state_dict().items())  # fmt: skip


def test_a_changed_callable_is_seen_without_loading_again():
    preprocess = Callable(255)
    prior = with_preprocess(preprocess)
    before = prior.identity
    preprocess.by = 250
    assert prior.identity != before
    preprocess.by = 255
    assert prior.identity == before
