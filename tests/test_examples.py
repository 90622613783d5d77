"""Every example runs as a user would run it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_add_callback_builds_targets_trains_and_probes(tmp_path):
    from rela_lightning import TargetStore

    output = run("add_callback.py", tmp_path, "--epochs", "1", "--probe-epochs", "3")
    results = ast.literal_eval(output.strip().splitlines()[-1])
    assert len(TargetStore(tmp_path / "targets" / "digits")) == 1347
    assert [path.name for path in tmp_path.iterdir()] == ["targets"]  # no logs, no checkpoints
    assert set(results) == {"knn/top1", "probe/top1"}
    assert 0.3 < min(results.values()) <= max(results.values()) <= 1  # chance is 0.1


def test_add_callback_marks_exactly_three_lines():
    lines = (EXAMPLES / "add_callback.py").read_text().splitlines()
    assert len([line for line in lines if re.search(r"\S.*  # ReLA", line)]) == 3
