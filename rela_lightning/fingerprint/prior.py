"""What a prior computes: its weights, and the function observed on a few fixed images.

Nothing is read from code, so that the same function is the same prior under every name, Python
version and file; and any change that reaches features or pixels makes another prior.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rela_lightning.compat import COMPILED, tensor_version, uncompiled
from rela_lightning.devices import home_of
from rela_lightning.errors import PriorError
from rela_lightning.rng import preserved_rng

if TYPE_CHECKING:
    from rela_lightning.priors.base import Prior

_SIZES = ((96, 64, "RGB"), (61, 97, "RGB"), (320, 240, "RGB"), (31, 33, "RGB"), (40, 40, "L"))
_SIGNS, _GRID = 16, 4
_IN_DOUBLE_UP_TO = 500_000_000
_DIGITS, _COARSE_DIGITS, _COARSE_NUMBERS, _PIXEL_DIGITS = 8, 2, 8, 4
_NEAR, _COARSE_NEAR, _PIXELS_NEAR = 2e-8, 2e-2, 2e-3


class Observed(NamedTuple):
    """A prior's weights and what it makes of fixed images, in primitives.

    Attributes:
        weights: SHA-256 of names, shapes, dtypes and bytes of the state.
        features: Of a fixed input: 16 sums under fixed signs, relative to the norm, and its logarithm.
        exact: Whether they were computed in float64 all through.
        pixels: Of each fixed image, what preprocessing makes of it: shape, logarithm of the root mean square, and
            relative to that the mean, deviation and mean differences of each channel and a 4 x 4 thumbnail;
            empty where preprocessing refuses the image.
    """

    weights: str
    features: list[float]
    exact: bool
    pixels: list[list[float]]

    def identity(self) -> str:
        """SHA-256 over the weights and the numbers, rounded to what another machine reproduces."""
        sums = self.features if self.exact else self.features[:_COARSE_NUMBERS]
        features = [_rounded(value, _DIGITS if self.exact else _COARSE_DIGITS) for value in sums]
        pixels = [[_rounded(value, _PIXEL_DIGITS) for value in image] for image in self.pixels]
        return hashlib.sha256(json.dumps([self.weights, features, pixels]).encode()).hexdigest()


def observe(prior: Prior) -> Observed:
    """Weights, features and pixels of a prior; the random state is left as it was.

    Raises:
        PriorError: If preprocessing gives other pixels each time.
    """
    with preserved_rng():
        features, exact = observe_features(prior)
        return Observed(hash_state(prior.network), features, exact, observe_pixels(prior.preprocess))


def joined(parts: Sequence[Observed]) -> Observed:
    """Several priors side by side."""
    return Observed(
        hashlib.sha256("".join(part.weights for part in parts).encode()).hexdigest(),
        [value for part in parts for value in part.features],
        all(part.exact for part in parts),
        [image for part in parts for image in part.pixels],
    )


def what_differs(stored: Mapping[str, Any], found: Observed) -> list[str]:
    """In words, what two priors differ in.

    Numbers may be apart by what other machines and builds make of them, so that two identities may
    differ although nothing is listed here.

    Args:
        stored: `Observed._asdict()`.
        found: Of the other prior.
    """
    near = _NEAR if stored["exact"] and found.exact else _COARSE_NEAR
    same_pixels = len(stored["pixels"]) == len(found.pixels) and all(
        _close(old, new, _PIXELS_NEAR) for old, new in zip(stored["pixels"], found.pixels, strict=True)
    )
    same = {
        "weights": stored["weights"] == found.weights,
        "features": _close(stored["features"], found.features, near),
        "preprocessed pixels": same_pixels,
    }
    return [name for name, agrees in same.items() if not agrees]


def hash_state(network: nn.Module) -> str:
    """SHA-256 of a network's state in `state_dict` order: names, shapes, dtypes and bytes.

    `torch.compile` and the order of channels in memory change nothing.
    """
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        name = key.replace(f"{COMPILED}.", "")
        if not isinstance(value, Tensor):
            digest.update(f"{name}={value!r};".encode())
            continue
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype};".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def version_of(network: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes whenever a tensor of the network is written to or replaced; cheap to compare."""
    tensors = (value for value in network.state_dict(keep_vars=True).values() if isinstance(value, Tensor))
    return tuple((t.data_ptr(), tensor_version(t)) for t in tensors)


def describe(preprocess: Any) -> str:
    """A callable in words: name of a function, `repr` of anything else, without memory addresses."""
    if isinstance(preprocess, functools.partial):
        return f"partial({describe(preprocess.func)}, {preprocess.args!r}, {preprocess.keywords!r})"
    if isinstance(preprocess, MethodType):
        return f"{describe(preprocess.__func__)} of {describe(preprocess.__self__)}"
    if isinstance(preprocess, FunctionType):
        return preprocess.__qualname__
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(preprocess))


def observe_features(prior: Prior) -> tuple[list[float], bool]:
    """Numbers of `Observed.features`, and whether float64 held all through.

    A copy of the network is run in float64 on the CPU, where other machines agree to some 12 digits. A network that
    cannot (other precisions inside, kernels of its own, above 500 million parameters) is run as it is.
    """
    channels, height, width = prior.input_shape
    inputs = torch.from_numpy(_pattern(width, height, channels) / 64.0 - 2.0).permute(2, 0, 1)[None].contiguous()
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        torch.default_generator.manual_seed(0)
        try:
            features, exact = _in_double(prior, inputs)
        except Exception:  # whatever a network raises that knows one precision or one device
            features, exact = prior(inputs.float().to(home_of(prior.network))).cpu().double(), False
    columns, rows = np.arange(features.shape[1])[:, None] + 1, np.arange(_SIGNS)[None] + 7
    signs = torch.from_numpy(1.0 - 2.0 * (columns * rows * 2654435761 % 2**32 >> 31))
    norm = features.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return _plain(torch.cat([features @ signs / norm, norm.log()], dim=1).flatten()), exact


def observe_pixels(preprocess: Callable[[Any], Any]) -> list[list[float]]:
    """Numbers of `Observed.pixels`.

    Raises:
        PriorError: If an image gives other pixels each time.
    """
    from PIL import Image

    arrays = [_pattern(width, height, 3 if mode == "RGB" else 1) for width, height, mode in _SIZES]
    images: list[Any] = [Image.fromarray(array if array.shape[2] == 3 else array[..., 0]) for array in arrays]
    before = _random_state()
    seen = [_try(preprocess, image) for image in images]
    if not any(isinstance(pixels, Tensor) for pixels in seen):  # made for tensors
        images = [torch.from_numpy(array).permute(2, 0, 1).contiguous() for array in arrays]
        seen = [_try(preprocess, image) for image in images]
    draws = _random_state() != before
    for image, pixels in zip(images, seen, strict=True):
        for _ in range(16 if draws else 1):
            again = _try(preprocess, image)
            if isinstance(pixels, Tensor) and not (isinstance(again, Tensor) and torch.equal(again, pixels)):
                raise PriorError(
                    "The prior's `preprocess` gives other pixels each time.",
                    expected="the same tensor for the same image",
                    found=describe(preprocess),
                    do="leave random augmentation out of it: use the preprocessing for evaluation",
                )
    return [_numbers(pixels.double()) if isinstance(pixels, Tensor) else [] for pixels in seen]


class _Lower(TorchFunctionMode):
    """Notes whether a result has fewer digits than float64."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float16, torch.bfloat16):
                self.found = True
        return result


def _in_double(prior: Prior, inputs: Tensor) -> tuple[Tensor, bool]:
    network: Any = uncompiled(prior.network)
    if sum(p.numel() for p in network.parameters()) > _IN_DOUBLE_UP_TO:
        raise PriorError("Too large to be copied.")
    memo: dict[int, Any] = {}
    for value in network.parameters():
        memo[id(value)] = nn.Parameter(_double(value), requires_grad=False)
    for value in network.buffers():
        memo[id(value)] = _double(value)
    with _Lower() as lower:
        output = _eager(copy.deepcopy(network, memo))(inputs)
        features = prior.pool(output, inputs)
    return features.double(), not lower.found


def _double(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return value.double() if value.is_floating_point() else value.clone()


def _eager(network: Any) -> Any:
    """The network with compiled parts replaced by what they were compiled from."""
    for name, child in list(network.named_children()):
        setattr(network, name, _eager(uncompiled(child)))
    return network


def _pattern(width: int, height: int, channels: int) -> np.ndarray:
    """A fixed picture of gradients and fine detail, uint8 `[height, width, channels]`."""
    y, x, c = np.ogrid[:height, :width, :channels]
    slow = _triangle(3 * x + (c + 1) * y, 97) + _triangle(x * y // 16 + 31 * c, 61)
    fine = (x * x + 3 * y * y + 50 * c) % 256
    pattern: np.ndarray = ((slow + fine) // 3).astype(np.uint8)
    return pattern


def _triangle(values: np.ndarray, period: int) -> np.ndarray:
    triangle: np.ndarray = np.abs(values % (2 * period) - period) * 255 // period
    return triangle


def _try(preprocess: Callable[[Any], Any], image: Any) -> Any:
    try:
        return preprocess(image.clone() if isinstance(image, Tensor) else image.copy())
    except Exception:  # a mode or a form it was not made for
        return None


def _numbers(pixels: Tensor) -> list[float]:
    """Numbers of one preprocessed image `[C, H, W]`, float64."""
    scale = pixels.square().mean().sqrt().clamp(min=1e-30)
    relative = pixels / scale
    dy, dx = (relative.diff(dim=dim).abs().mean((1, 2)) for dim in (1, 2))
    height, width = pixels.shape[1:]
    rows, columns = ([side * i // _GRID for i in range(_GRID + 1)] for side in (height, width))
    cells = [
        relative[:, top : max(bottom, top + 1), left : max(right, left + 1)].mean((1, 2))
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]
    per_channel = torch.stack([relative.mean((1, 2)), relative.std((1, 2), correction=0), dx, dy, *cells], dim=1)
    return _plain(torch.cat([pixels.new_tensor(pixels.shape), scale.log()[None], per_channel.flatten()]))


def _plain(values: Tensor) -> list[float]:
    return [float(f"{value:.10g}") for value in values.nan_to_num(nan=0.0, posinf=1e30, neginf=-1e30).tolist()]


def _rounded(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # no -0.0


def _close(first: Sequence[float], second: Sequence[float], apart: float) -> bool:
    return len(first) == len(second) and bool(np.allclose(first, second, rtol=0.0, atol=apart))


def _random_state() -> tuple[Any, ...]:
    return torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate()
