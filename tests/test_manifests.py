"""Whatever happens to the files of a store, it is refused by name or gives what was written."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from rela_lightning import TargetStore, build_targets
from rela_lightning.errors import TargetError
from rela_lightning.targets.manifest import MANIFEST, PROJECTION, TARGETS
from tests.test_targets import Digits, pixel_prior

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return build_targets(pixel_prior(), Digits(), tmp_path_factory.mktemp("whole") / "t", views=1).path


@pytest.fixture
def copied(whole, tmp_path):
    """Puts a fresh copy at the same place."""

    def copy() -> Path:
        shutil.rmtree(tmp_path / "t", ignore_errors=True)
        return Path(shutil.copytree(whole, tmp_path / "t"))

    return copy


def content(path: Path) -> tuple[Any, ...]:
    """All that a store says: its rows, its crops, its projection and its manifest."""
    store = TargetStore(path)
    rows = store.read(np.arange(len(store)))
    parts = [part.tobytes() for part in (*rows, *(value.numpy() for value in store.projection))]
    return (*parts, json.dumps(store.manifest), len(store), store.views, store.dim, repr(store.settings))


def same_or_refused(path: Path, whole: Path) -> None:
    try:
        found = content(path)
    except TargetError:
        return
    assert found == content(whole)


@given(data=st.data())
def test_a_byte_that_changed_is_found(copied, whole, data):
    file = copied() / data.draw(st.sampled_from([MANIFEST, TARGETS, PROJECTION]))
    raw = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(raw)
    same_or_refused(file.parent, whole)


@given(data=st.data())
def test_a_part_that_is_missing_or_too_much_is_found(copied, whole, data):
    file = copied() / data.draw(st.sampled_from([MANIFEST, TARGETS, PROJECTION]))
    raw = file.read_bytes()
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, min(len(raw), start + 200)))
    file.write_bytes(raw[:start] + data.draw(st.binary(max_size=40)) + raw[end:])
    same_or_refused(file.parent, whole)


@given(value=json_values)
def test_any_other_json_is_no_manifest(copied, value):
    path = copied()
    (path / MANIFEST).write_text(json.dumps(value))
    with pytest.raises(TargetError, match=r"not a manifest|another format|has changed"):
        TargetStore(path)


@given(key=st.sampled_from(["length", "views", "dim", "targets_bytes", "storage_dtype"]), value=json_values)
@example(key="views", value=0)  # fewer records than there are
@example(key="length", value=1)
@example(key="targets_bytes", value=0)
@example(key="views", value=2**33)  # more than memory holds
@example(key="dim", value=2**63)
def test_a_value_that_another_writer_left_is_named(copied, key, value):
    """With a check sum that fits, so that nothing but the value itself can be looked at."""
    path = copied()
    manifest = json.loads((path / MANIFEST).read_text())
    manifest.pop("sum")
    where = manifest if key in manifest else manifest["settings"]
    assume(where[key] != value)
    where[key] = value
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / MANIFEST).write_text(json.dumps({**manifest, "sum": digest}))
    with pytest.raises(TargetError):
        TargetStore(path).read(np.arange(1))


def test_a_manifest_nested_without_end_is_refused_and_its_folder_kept(copied):
    place = copied()
    (place / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(TargetError, match="is not a manifest"):
        TargetStore(place)
    with pytest.raises(TargetError):
        build_targets(pixel_prior(), Digits(), place, overwrite=True)
    assert (place / TARGETS).is_file()
