"""Reading targets in training: opening a large store, and one batch of random rows, by eight readers at once.

    python benchmarks/lookup.py --folder DIR [--rows 10000000] [--batch 1024] [--readers 8]

DIR needs room for the store (11 GB for ten million rows of 512 columns, float16). Every reader is a process that looks
up batches of random rows, as a loader's worker does, and collates them. Where the system lets us, the page cache is
dropped first, so that the first pass reads from the disk ("cold").
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import header, write_result

from rela_lightning import TargetStore
from rela_lightning.fingerprint.settings import FORMAT
from rela_lightning.injection.tagging import IndexedCollate, IndexedDataset, Wanted
from rela_lightning.targets.lookup import TargetLookup
from rela_lightning.targets.manifest import PROJECTION, TARGETS, write_manifest
from rela_lightning.targets.records import Geometry, encode, record_type

CHUNK = 2**15


class Nothing(torch.utils.data.Dataset):
    """Rows without images: what is timed is the look-up and the collating of targets alone."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> int:
        return row


def write_store(path: Path, rows: int, dim: int) -> TargetStore:
    """A store of random rows; one that is there already is kept."""
    if (path / "manifest.json").exists():
        return TargetStore(path)
    path.mkdir(parents=True)
    generator, kind = np.random.default_rng(0), record_type(dim, "float16")
    with (path / TARGETS).open("wb") as file:
        describe = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (rows, 1)}
        np.lib.format.write_array_header_1_0(file, describe)
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            geometry = Geometry(np.full((count, 2), 32, np.int32), np.zeros((count, 1, 5), np.int32))
            file.write(encode(generator.standard_normal((count, 1, dim), dtype=np.float32), geometry, "float16").data)
    (path / PROJECTION).write_bytes(b"none")
    settings = {"format_version": FORMAT, "storage_dtype": "float16", "prior_identity": "none"}
    made = {"fingerprint": "none", "prior": "random rows", "length": rows, "views": 0, "dim": dim}
    write_manifest(path, {**made, "settings": settings, "sample": {}})
    return TargetStore(path)


def read_batches(job: tuple[str, int, int, int]) -> list[tuple[float, float]]:
    """Seconds of looking up, and of collating, each of some batches of random rows."""
    path, batch, count, seed = job
    store, generator = TargetStore(path), np.random.default_rng(seed)
    wanted = Wanted.shared()
    wanted.targets[0] = 1
    data = IndexedDataset(Nothing(len(store)), None, wanted, TargetLookup(store))
    collate, spent = IndexedCollate(torch.tensor, checks=0), []
    for _ in range(count):
        rows = generator.integers(0, len(store), batch).tolist()
        begun = time.perf_counter()
        tagged = data.__getitems__(rows)
        looked_up = time.perf_counter()
        collate(tagged)
        spent.append((looked_up - begun, time.perf_counter() - looked_up))
    return spent


def drop_caches() -> bool:
    """Whether the page cache could be emptied."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def readers(options: argparse.Namespace, path: Path, seed: int) -> dict[str, float]:
    """Median milliseconds of a batch, with all readers at work."""
    jobs = [(str(path), options.batch, options.batches, seed + number) for number in range(options.readers)]
    with multiprocessing.get_context("spawn").Pool(options.readers) as pool:
        spent = [pair for part in pool.map(read_batches, jobs, chunksize=1) for pair in part]
    lookups, collates = zip(*spent, strict=True)
    quick = statistics.quantiles(lookups, n=10)
    return {
        "lookup_ms_median": round(1000 * statistics.median(lookups), 3),
        "lookup_ms_90th": round(1000 * quick[-1], 3),
        "collate_ms_median": round(1000 * statistics.median(collates), 3),
    }


def opening(path: Path) -> dict[str, float]:
    """Seconds to open a store and read one row, and the peak memory in MB, in a process of its own."""
    code = (
        "import json, resource, sys, time\nfrom rela_lightning import TargetStore\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\nbegun = time.perf_counter()\n"
        "store = TargetStore(sys.argv[1])\nopened = time.perf_counter() - begun\nstore[len(store) // 2]\n"
        "print(json.dumps({'open_seconds': opened, 'open_and_read_seconds': time.perf_counter() - begun, "
        "'memory_added_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=40, help="of each reader")
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "lookup.json")
    options = parser.parse_args()
    path = options.folder / f"rows-{options.rows}-{options.dim}"
    write_store(path, options.rows, options.dim)
    dropped = drop_caches()
    result: dict[str, Any] = {
        "cold" if dropped else "first pass": readers(options, path, 0),
        "warm": readers(options, path, 0),
        "one reader, warm": readers(argparse.Namespace(**{**vars(options), "readers": 1}), path, 0),
        "opening": opening(path),
        "bytes": (path / TARGETS).stat().st_size,
        "settings": {key: value for key, value in vars(options).items() if key not in ("folder", "out")},
    }
    print(json.dumps(result, indent=2))
    head = header(seeds=[0])
    head["command"] = head["command"].replace(str(options.folder), "DIR").replace(str(options.out), "OUT")
    write_result(options.out, head, result)


if __name__ == "__main__":
    main()
