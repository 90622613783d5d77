"""A prior: a frozen network together with the preprocessing it was trained with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rela_lightning.devices import home_of
from rela_lightning.errors import PriorError, ReLAError
from rela_lightning.fingerprint.prior import Observed, describe, joined, observe, observe_pixels, version_of
from rela_lightning.networks.pooling import Pooling, has_cls_token, pool, select
from rela_lightning.networks.preprocess import EachPreprocess, Preprocess
from rela_lightning.rng import preserved_rng


class Prior(nn.Module):
    """A frozen network that turns preprocessed images into one feature vector each.

    Always in eval mode, without gradients; `train()` changes nothing.

    Args:
        network: Any module from images `[B, C, H, W]` to features, maps or tokens.
        preprocess: Callable from a PIL image or uint8 tensor `[C, H, W]` to a float tensor.
        pooling: How maps and token sequences become one vector, see `rela_lightning.networks.pooling.pool`.
        name: What to call it in messages and reports.

    Attributes:
        preprocess: The callable above.
        feature_dim: Width of the features.
        name: The name above.
        options: What `load_prior` was given for its network besides, in words (`seed 1, width 0.25`).

    Raises:
        PriorError: If preprocessing does not give a tensor `[C, H, W]` or the network does not take
            it. One blank image is sent through both.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from rela_lightning.priors import Preprocess
        >>> prior = Prior(nn.Conv2d(3, 16, 3), Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3))
        >>> image = torch.zeros(3, 40, 60, dtype=torch.uint8)
        >>> prior(prior.preprocess(image)[None]).shape
        torch.Size([1, 16])
    """

    preprocess: Callable[[Any], Any]
    feature_dim: int
    name: str
    options: str = ""

    def __init__(
        self,
        network: nn.Module,
        preprocess: Callable[[Any], Any],
        *,
        pooling: Pooling = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__()
        if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
            raise PriorError(
                "The prior has layers that have no weights yet.",
                expected="a network that is ready",
                found=f"{type(network).__name__} with lazy layers",
                do="send one batch of images through it first",
            )
        self.network = network
        self.preprocess = preprocess
        self.pooling: Pooling = pooling
        self.name = name or type(network).__name__
        self.has_cls_token = has_cls_token(network)
        self._observed: tuple[object, Observed] | None = None
        self.requires_grad_(False)
        self.eval()
        self.input_shape = _input_shape(preprocess)
        self._memory_format = torch.channels_last  # up to 1.6 times as quick for convolutions on a CPU
        self.feature_dim = self._measure()

    def forward(self, images: Any) -> Tensor:
        """Embed a batch.

        Args:
            images: Float tensor `[B, C, H, W]` of preprocessed images; for a fusion the tuple of
                tensors that collating its preprocessed images gives.

        Returns:
            Float32 features `[B, feature_dim]`, without gradient.

        Raises:
            PriorError: If the batch is not of the size that preprocessing gives.
        """
        self._check(images)
        with torch.no_grad():
            return self._encode(images)

    def train(self, mode: bool = True) -> Prior:
        """Stay in eval mode, whatever is asked."""
        super().train(False)
        return self

    @property
    def identity(self) -> str:
        """SHA-256 (64 hexadecimal digits) over the weights and over what the prior makes of a few fixed images.

        Features are observed in float64 and pixels as they come, both rounded, so that code, names, Python and the
        machine do not matter, and whatever changes features or pixels does. See `observed`.

        Raises:
            PriorError: If preprocessing gives other pixels each time.
        """
        return self.observed.identity()

    @property
    def observed(self) -> Observed:
        """Weights, features and preprocessed pixels of fixed images, from which the identity is made.

        The first call runs a copy of the network in float64 on the CPU, once for each state of the weights.
        """
        version = (version_of(self), self.pooling)
        if self._observed is None or self._observed[0] != version:
            self._observed = (version, observe(self))
            return self._observed[1]
        with preserved_rng():
            return self._observed[1]._replace(pixels=observe_pixels(self.preprocess))

    @property
    def description(self) -> str:
        """The preprocessing and the pooling in words."""
        return f"{describe(self.preprocess)} pooling={self.pooling}"

    def __repr__(self) -> str:
        """One line; `print(prior.network)` shows the layers."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """Name, width and preprocessing for `print(prior)`."""
        return f"{self.name}, feature_dim={self.feature_dim}, preprocess={describe(self.preprocess)}"

    def pool(self, output: Any, images: Tensor) -> Tensor:
        """Features `[B, feature_dim]` from what the network made of images `[B, C, H, W]`."""
        size = images.shape[-2:]
        return pool(output, self.pooling, has_cls_token=self.has_cls_token, image_size=size, made_by=self.network)

    def _encode(self, images: Tensor) -> Tensor:
        return self.pool(self._output(images), images).float()

    def _output(self, images: Tensor) -> Any:
        dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), images.dtype)
        if images.device.type == "cpu":
            images = images.contiguous(memory_format=self._memory_format)
        return self.network(images.to(dtype))

    def _check(self, images: Any) -> None:
        fits = isinstance(images, Tensor) and images.is_floating_point()
        if not fits or images.ndim != 4 or tuple(images.shape[1:]) != self.input_shape:
            found = f"{list(images.shape)}, {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            channels, height, width = self.input_shape
            raise PriorError(
                f"The prior {self.name} was given a batch it was not made for.",
                expected=f"a float tensor [B, {channels}, {height}, {width}]",
                found=found,
                do="apply `prior.preprocess` to each image, or load the prior with `image_size=`",
            )

    def _measure(self) -> int:
        blank = torch.zeros(1, *self.input_shape, device=home_of(self.network))
        try:
            try:
                return self._width(blank)
            except RuntimeError:  # a network may take views of its input that only this order of channels allows
                self._memory_format = torch.contiguous_format
                return self._width(blank)
        except ReLAError:
            raise
        except Exception as error:  # whatever the network raises for images it was not made for
            raise PriorError(
                f"The network {self.name} cannot take the images its preprocessing gives.",
                expected=f"a network for [B, {', '.join(map(str, self.input_shape))}]",
                found=f"{type(error).__name__}: {error}",
                do="give the `image_size` and the number of `mean` values it was trained with",
            ) from error

    def _width(self, blank: Tensor) -> int:
        """Width of the features; says which of several outputs they are read from."""
        with torch.no_grad():
            output = self._output(blank)
        width = int(self.pool(output, blank).shape[1])
        which = select(output)[1]
        if which:
            warnings.warn(
                f"The prior {self.name} returns several tensors: {which} is read, {width} features. "
                "Wrap the network to return another one.",
                stacklevel=4,
            )
        return width


class FusedPrior(Prior):
    """Several priors as one: features side by side, in the given order.

    Each keeps its own preprocessing: `preprocess` gives a tuple of tensors, and `forward` takes the
    tuple (or list) of batches that collating gives.

    Args:
        priors: Two priors or more.

    Example:
        >>> from rela_lightning import load_prior
        >>> options = {"width": 0.125, "image_size": 32, "mean": 0.5, "std": 0.5}
        >>> parts = [load_prior("random:lightly:resnet-9", seed=seed, **options) for seed in (0, 1)]
        >>> FusedPrior(parts).feature_dim == 2 * parts[0].feature_dim
        True
    """

    def __init__(self, priors: Sequence[Prior]) -> None:
        nn.Module.__init__(self)
        if not priors:
            raise PriorError("A fusion needs priors.", expected="a list of at least one", found="an empty list")
        self.network = nn.ModuleList(priors)
        self.preprocess = EachPreprocess(tuple(prior.preprocess for prior in priors))
        self.feature_dim = sum(prior.feature_dim for prior in priors)
        self.name = " + ".join(prior.name for prior in priors)
        self.pooling = "auto"
        self.eval()

    @property
    def observed(self) -> Observed:
        """What the parts give, in order."""
        return joined([prior.observed for prior in self._priors])

    @property
    def description(self) -> str:
        """The parts' descriptions, in order."""
        return " | ".join(prior.description for prior in self._priors)

    @property
    def _priors(self) -> list[Prior]:
        parts: Any = self.network  # a list, which children() would shorten: one prior may be there twice
        return list(parts)

    def _check(self, images: Any) -> None:
        if not isinstance(images, (tuple, list)) or len(images) != len(self._priors):
            raise PriorError(
                "A fusion of priors takes one batch for each of them.",
                expected=f"a tuple of {len(self._priors)} tensors",
                found=f"{len(images)} of them" if isinstance(images, (tuple, list)) else type(images).__name__,
                do="collate what `prior.preprocess` gives",
            )

    def _encode(self, images: Any) -> Tensor:
        return torch.cat([prior(part) for prior, part in zip(self._priors, images, strict=True)], dim=1)


def _input_shape(preprocess: Callable[[Any], Any]) -> tuple[int, int, int]:
    """Shape `[C, H, W]` that preprocessing gives, from a blank image."""
    if isinstance(preprocess, Preprocess):
        return len(preprocess.mean), *preprocess.image_size
    from PIL import Image

    try:
        try:
            result = preprocess(Image.new("RGB", (64, 64)))
        except Exception:  # made for tensors
            result = preprocess(torch.zeros(3, 64, 64, dtype=torch.uint8))
    except Exception as error:
        raise PriorError(
            "`preprocess` failed on a blank image, as a PIL image and as a uint8 tensor.",
            expected="a callable from one image to a float tensor [C, H, W]",
            found=f"{type(error).__name__}: {error}",
        ) from error
    if not isinstance(result, Tensor) or result.ndim != 3 or not result.is_floating_point():
        raise PriorError(
            "`preprocess` does not give what a prior can take.",
            expected="a float tensor [C, H, W]",
            found=f"{list(result.shape)}, {result.dtype}" if isinstance(result, Tensor) else type(result).__name__,
        )
    channels, height, width = result.shape
    return channels, height, width
