"""ONNX: images in, pooled features out, checked against onnxruntime before the file appears."""

from __future__ import annotations

import copy
import importlib
import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rela_lightning.errors import ConfigError
from rela_lightning.networks.encode import pooled

OPSET = 17  # layer norm as one operator; every onnxruntime since 1.12 runs it
_TOLERANCE = 1e-3


class _Features(nn.Module):
    """Pooled features of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Features `[N, F]`."""
        return pooled(self.network, self.network(images), images)


def require_onnx() -> None:
    """Refuse early where the extra is missing.

    Raises:
        ConfigError: If onnx or onnxruntime cannot be imported.
    """
    try:
        for package in ("onnx", "onnxruntime"):
            importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            "ONNX export needs two more packages.",
            expected="onnx to write the file, onnxruntime to check it",
            found=str(error),
            do="pip install 'rela-lightning[export]'",
        ) from error


def write_onnx(network: nn.Module, file: Path, *, channels: int, size: int, metadata: Mapping[str, str]) -> None:
    """Write a network as ONNX.

    The graph takes `images`, float32 `[N, channels, size, size]` with any N, and returns `features`, float32
    `[N, F]`. It is made by tracing, which needs no further package and gives the same file from torch 2.4 on, and
    run once by onnxruntime on images of another number than it was traced with.

    Args:
        network: In eval mode; a float32 copy is exported.
        file: Written.
        channels: Channels of the images.
        size: Their side, pixels.
        metadata: Names and values stored in the file.

    Raises:
        ConfigError: If the network cannot be exported, or onnxruntime gives other features.
    """
    import onnx

    model = _Features(copy.deepcopy(network)).float().eval()
    images = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            expected = model(images)
            torch.onnx.export(
                model,
                (images[:2],),
                str(file),
                input_names=["images"],
                output_names=["features"],
                dynamic_axes={"images": {0: "N"}, "features": {0: "N"}},
                opset_version=OPSET,
                **_by_tracing(),
            )
    except Exception as error:  # the exporter and the network may raise anything
        raise ConfigError(
            "The network cannot be exported to ONNX.",
            expected=f"one that takes images [N, {channels}, {size}, {size}] and can be traced",
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            do="give the image_size it takes; or export safetensors and convert it by hand",
        ) from error
    stored = onnx.load(str(file))
    onnx.helper.set_model_props(stored, dict(metadata))
    onnx.save(stored, str(file))
    _check(file, images, expected)


def _by_tracing() -> dict[str, Any]:
    """The option that keeps the tracing exporter: torch 2.9 made another one the default, which needs onnxscript."""
    return {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}


def _check(file: Path, images: Tensor, expected: Tensor) -> None:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said below
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])
        if found.shape == expected.shape and torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
            return
        problem = f"features {list(found.shape)}"
        if found.shape == expected.shape:
            problem += f", off by up to {(found - expected).abs().max().item():.2g}"
    except Exception as error:  # onnxruntime's errors have no public base class
        problem = str(error).strip().partition("\n")[0]
    raise ConfigError(
        "The network does not compute the same as ONNX, so that no file was written.",
        expected=f"the same features {list(expected.shape)} for another number of images than it was traced with",
        found=problem,
        do="its forward branches on values or on the number of images; export safetensors instead",
    )
