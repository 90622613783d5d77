"""The identity of a prior: another for whatever changes features or pixels, the same for everything else."""

from __future__ import annotations

import copy
import functools
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

from rela_lightning import load_prior
from rela_lightning.fingerprint.prior import what_differs
from rela_lightning.priors import Preprocess, Prior
from tests.parts import TinyBackbone
from tests.test_priors import Tokens

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
