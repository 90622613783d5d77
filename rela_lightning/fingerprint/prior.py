"""A name for what a prior computes: a hash of its weights, its kinds of layers and its preprocessing."""

from __future__ import annotations

import functools
import hashlib
import re
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint_module(network: nn.Module, description: str) -> str:
    """SHA-256 of a network's state and of a text.

    Goes over the state in `state_dict` order with names, shapes, dtypes and bytes. The class names of
    the layers are included, because the same weights under another activation are another prior.

    Args:
        network: Any module.
        description: What else belongs to the name, such as the preprocessing.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(description.encode())
    digest.update(repr(sorted({type(module).__name__ for module in network.modules()})).encode())
    for name, value in network.state_dict().items():
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
    return tuple((t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors)


def describe(preprocess: Any) -> str:
    """A text for a callable that is the same in every process.

    Plain functions are described by their name and a hash of their code, everything else by its
    `repr` without memory addresses. What a closure captures is not seen.
    """
    if isinstance(preprocess, functools.partial):
        return f"partial({describe(preprocess.func)}, {preprocess.args!r}, {preprocess.keywords!r})"
    if isinstance(preprocess, MethodType):
        return f"{describe(preprocess.__func__)} of {describe(preprocess.__self__)}"
    if isinstance(preprocess, FunctionType):
        code = hashlib.sha256(_code(preprocess.__code__).encode()).hexdigest()[:16]
        return f"{preprocess.__qualname__}#{code}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(preprocess))


def _code(code: CodeType) -> str:
    inner = [_code(const) if isinstance(const, CodeType) else repr(const) for const in code.co_consts]
    return repr((code.co_code.hex(), code.co_names, inner))
