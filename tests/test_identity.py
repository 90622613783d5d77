"""The identity of a prior: another for whatever changes features or pixels, the same for everything else."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import types

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from rela_lightning import build_targets, load_prior
from rela_lightning.errors import PriorError
from rela_lightning.fingerprint.prior import Observed, observe, what_differs
from rela_lightning.priors import Preprocess, Prior
from tests.parts import TinyBackbone
from tests.ranks import by_name, fresh
from tests.test_priors import Tokens
from tests.test_targets import Digits

HALF = {"image_size": 16, "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}


def tiny(seed=0, **change):
    torch.manual_seed(seed)
    return load_prior(TinyBackbone(), **{**HALF, **change})


def with_preprocess(preprocess):
    torch.manual_seed(0)
    return load_prior(TinyBackbone(), preprocess=preprocess)


def changed(change, prior=tiny):
    """The same weights with something about the network changed in place."""
    made = prior()
    change(made.network)
    return made


# A preprocessing written out, and its variations in places that no name or text shows


def scaled(image, size=16, by=255.0, interpolation=Image.Resampling.BICUBIC):
    array = np.array(image.convert("RGB").resize((size, size), interpolation))
    return torch.from_numpy(array).permute(2, 0, 1) / by


def default_argument(image, size=16, by=250.0, interpolation=Image.Resampling.BICUBIC):
    return scaled(image, size, by, interpolation)


def closure(by):
    def scaled(image):
        return globals()["scaled"](image, by=by)

    return scaled


SCALE = 255.0


def reads_a_global(image):
    return scaled(image, by=SCALE)


OTHER_GLOBAL = types.FunctionType(reads_a_global.__code__, {"scaled": scaled, "SCALE": 128.0})


class Callable:
    def __init__(self, by):
        self.by = by

    def __call__(self, image):
        return scaled(image, by=self.by)


class Method:
    by = 255.0

    def apply(self, image):
        return scaled(image, by=self.by)


class OtherMethod(Method):
    by = 254.0


def bgr(image):
    return scaled(image)[[2, 1, 0]]


def mirrored(image):
    return scaled(image).flip(-1)


def named(interpolation):
    return Preprocess((16, 16), HALF["mean"], HALF["std"], resize=(20, 20), interpolation=interpolation)


def fit(how):
    return Preprocess((16, 16), HALF["mean"], HALF["std"], fit=how)


def resnet(**options):
    torch.manual_seed(0)
    return load_prior(timm.create_model("resnet18", num_classes=0, **options), image_size=64, mean=0.5, std=0.5)


def vit(**options):
    torch.manual_seed(0)
    made = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=2, **options)
    return load_prior(made, image_size=32, mean=0.5, std=0.5)


def dilated(rates):
    torch.manual_seed(0)
    made = torchvision.models.resnet50(replace_stride_with_dilation=rates)
    made.fc = nn.Identity()
    return load_prior(made, image_size=64, mean=0.5, std=0.5)


def one_element(network):
    with torch.no_grad():
        network.body[0].weight[0, 0, 0, 0] += 1e-6


def eps(network):
    network.body[1].eps = 1.1e-5


def activation(network):
    network.body[2] = nn.Hardswish()


class Named(nn.Module):
    """Another name around the same layers, for the same state."""

    def __init__(self, inner):
        super().__init__()
        self.body = inner.body

    def forward(self, images):
        return self.body(images).mean(dim=(2, 3))


def tokens(pooling):
    torch.manual_seed(0)
    return load_prior(Tokens(True), pooling=pooling, **HALF)


OTHER = {
    "output stride of timm's": (lambda: resnet(output_stride=32), lambda: resnet(output_stride=8)),
    "dilation of torchvision's": (lambda: dilated(None), lambda: dilated([False, True, True])),
    "class token or mean of timm's": (lambda: vit(global_pool="token"), lambda: vit(global_pool="avg", fc_norm=False)),
    "pooling": (lambda: tokens("cls"), lambda: tokens("avg")),
    "default argument": (lambda: with_preprocess(scaled), lambda: with_preprocess(default_argument)),
    "closure": (lambda: with_preprocess(closure(255.0)), lambda: with_preprocess(closure(250.0))),
    "global": (lambda: with_preprocess(reads_a_global), lambda: with_preprocess(OTHER_GLOBAL)),
    "keyword of a partial": (
        lambda: with_preprocess(functools.partial(scaled, by=255)),
        lambda: with_preprocess(functools.partial(scaled, by=254)),
    ),
    "attribute of a callable": (lambda: with_preprocess(Callable(255)), lambda: with_preprocess(Callable(254))),
    "attribute behind a method": (
        lambda: with_preprocess(Method().apply),
        lambda: with_preprocess(OtherMethod().apply),
    ),
    "body of a lambda": (
        lambda: with_preprocess(lambda image: 1.00 * scaled(image)),
        lambda: with_preprocess(lambda image: 1.01 * scaled(image)),
    ),
    "order of channels": (lambda: with_preprocess(scaled), lambda: with_preprocess(bgr)),
    "mirror": (lambda: with_preprocess(scaled), lambda: with_preprocess(mirrored)),
    "mean": (tiny, lambda: tiny(mean=(0.5, 0.4, 0.31))),
    "std": (tiny, lambda: tiny(std=(0.25, 0.2, 0.301))),
    "image size": (lambda: tiny(image_size=32), lambda: tiny(image_size=64)),
    "interpolation": (lambda: with_preprocess(named("bicubic")), lambda: with_preprocess(named("bilinear"))),
    "interpolation of one's own": (
        lambda: with_preprocess(scaled),
        lambda: with_preprocess(functools.partial(scaled, interpolation=Image.Resampling.LANCZOS)),
    ),
    "crop or squash": (lambda: with_preprocess(fit("shortest")), lambda: with_preprocess(fit("squash"))),
    "one weight, a little": (tiny, lambda: changed(one_element)),
    "seed": (tiny, lambda: tiny(1)),
    "activation": (tiny, lambda: changed(activation)),
    "activation of timm's": (lambda: vit(act_layer="gelu"), lambda: vit(act_layer="gelu_tanh")),
    "eps of a norm": (tiny, lambda: changed(eps)),
    "precision of the weights": (tiny, lambda: changed(lambda network: network.half())),
    "order of a fusion": (lambda: load_prior([tiny(0), tiny(1)]), lambda: load_prior([tiny(1), tiny(0)])),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER)
def test_what_computes_something_else_is_another_prior(name):
    first, second = (make() for make in OTHER[name])
    assert first.identity != second.identity
    assert what_differs(first.observed._asdict(), second.observed)  # beyond what machines differ in, too


def another_module():
    """The same function in a notebook's cell, as it were, under another name."""
    module = types.ModuleType("cell")
    code = (
        "import numpy, torch\n"
        "def prepare(picture):\n"
        "    small = picture.convert('RGB').resize((16, 16), 3)\n"
        "    return torch.as_tensor(numpy.array(small)).movedim(2, 0) / 255\n"
    )
    exec(code, module.__dict__)
    return module.prepare


def reloaded():
    prior, again = tiny(), tiny(1)
    again.network.load_state_dict(prior.network.state_dict())
    return again


def toggled():
    prior = tiny()
    prior.train()
    prior.network.train()
    prior.network.eval()
    prior.requires_grad_(True)
    return prior


def compiled(part):
    prior = tiny()
    if part:
        prior.network.body = torch.compile(prior.network.body)
    else:
        prior.network = torch.compile(prior.network)
    return prior


def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        prior = resnet()
        assert prior.identity
        return prior
    finally:
        torch.set_num_threads(threads)


def under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prior = resnet()
        assert prior.identity
        return prior


SAME = {
    "loaded from a state dict": (tiny, reloaded),
    "copied": (tiny, lambda: copy.deepcopy(tiny())),
    "pickled": (tiny, lambda: pickle.loads(pickle.dumps(tiny()))),
    "train and eval": (tiny, toggled),
    "channels last": (resnet, lambda: changed(lambda n: n.to(memory_format=torch.channels_last), resnet)),
    "compiled": (tiny, lambda: compiled(False)),
    "a compiled part": (tiny, lambda: compiled(True)),
    "another number of threads": (resnet, one_thread),
    "under autocast": (resnet, under_autocast),
    "stochastic depth": (resnet, lambda: resnet(drop_path_rate=0.5, drop_rate=0.5)),
    "another class of the same layers": (tiny, lambda: load_prior(Named(tiny().network), **HALF)),
    "a partial of the same values": (
        lambda: with_preprocess(scaled),
        lambda: with_preprocess(functools.partial(scaled, by=255.0)),
    ),
    "a callable of the same values": (lambda: with_preprocess(scaled), lambda: with_preprocess(Callable(255))),
    "a closure of the same values": (lambda: with_preprocess(scaled), lambda: with_preprocess(closure(255))),
    "a global of the same value": (lambda: with_preprocess(scaled), lambda: with_preprocess(reads_a_global)),
    "another module, name and body": (
        lambda: with_preprocess(scaled),
        lambda: with_preprocess(another_module()),
    ),
    "a method": (lambda: with_preprocess(scaled), lambda: with_preprocess(Method().apply)),
    "ours and torchvision's": (
        lambda: with_preprocess(named("bilinear")),
        lambda: with_preprocess(
            v2.Compose([
                v2.Resize(20), v2.CenterCrop(16), v2.RGB(), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(HALF["mean"], HALF["std"]),
            ])
        ),
    ),
    "another name for messages": (tiny, lambda: Prior(tiny().network, tiny().preprocess, name="other")),
    "a fusion of the same": (lambda: load_prior([tiny(0), tiny(1)]), lambda: load_prior([tiny(0), tiny(1)])),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_what_computes_the_same_is_the_same_prior(name):
    first, second = (make() for make in SAME[name])
    assert first.identity == second.identity
    assert what_differs(first.observed._asdict(), second.observed) == []


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
