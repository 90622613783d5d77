"""The benchmark scripts as modules, and images for them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[Callable[[str], Any]]:
    """Imports a benchmark by name as running it would, beside its siblings."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits in the files of Fashion-MNIST."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    large = np.stack([np.asarray(Image.fromarray(d.astype(np.uint8) * 15).resize((28, 28))) for d in digits.images])
    root = tmp_path_factory.mktemp("data")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, rows in (("train", slice(0, 192)), ("t10k", slice(192, 256))):
        for kind, array in (("images-idx3", large[rows]), ("labels-idx1", digits.target[rows].astype(np.uint8))):
            head = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4")
            (raw / f"{name}-{kind}-ubyte").write_bytes(head.tobytes() + array.tobytes())
    return root
