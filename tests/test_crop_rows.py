"""Rows of several views on disk: what storing them loses, and files that changed or that another version wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rela_lightning import TargetStore, build_targets
from rela_lightning.errors import TargetError
from tests.test_crops import CROPS, ROWS, prior


def test_int8_rows_say_what_they_lose(store: TargetStore, digits64: Any, tmp_path: Path) -> None:
    small = build_targets(prior(), digits64, tmp_path / "t", views=CROPS, storage_dtype="int8")
    rows = np.arange(ROWS)
    exact, kept = store.read(rows).targets, small.read(rows).targets
    cosine = (exact * kept).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(kept, axis=-1)
    said = small.manifest["storage_cosine"]
    assert cosine.min() == pytest.approx(said["least"], abs=1e-5)
    assert cosine.mean() == pytest.approx(said["mean"], abs=1e-5)
    assert said["mean"] > 0.999
    size = {path: (path / "targets.npy").stat().st_size for path in (store.path, small.path)}
    assert size[small.path] < 0.5 * size[store.path]


def test_a_flipped_bit_is_found_when_its_row_is_read(store: TargetStore, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store.path, tmp_path / "t"))
    content = bytearray((copy / "targets.npy").read_bytes())
    content[-100] ^= 1  # in the last row's last view
    (copy / "targets.npy").write_bytes(bytes(content))
    opened = TargetStore(copy)
    opened.read(np.arange(ROWS - 1))
    with pytest.raises(TargetError, match=r"changed since they were written[\s\S]*rows \[63\]"):
        opened.read([0, 63])
    for name in ("manifest.json", "projection.safetensors"):
        copy = Path(shutil.copytree(store.path, tmp_path / name))
        content = bytearray((copy / name).read_bytes())
        place = content.index(b"0.0") if name == "manifest.json" else -1
        content[place] ^= 1
        (copy / name).write_bytes(bytes(content))
        with pytest.raises(TargetError, match=r"has changed since|is not a manifest"):
            TargetStore(copy)


def test_old_and_newer_formats_say_what_to_do(store: TargetStore, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store.path, tmp_path / "t"))
    manifest = json.loads((copy / "manifest.json").read_text())
    for version, words in ((1, "overwrite=True"), (3, "newer rela_lightning")):
        manifest["settings"]["format_version"] = version
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(TargetError, match=words):
            TargetStore(copy)
