"""Names of the files in a run's folder."""

from __future__ import annotations

CONFIG = "config.yaml"
RECORD = "run.json"
CHECKPOINTS = "checkpoints"
RUNS = "runs"
"""Where runs without a folder of their own go."""
