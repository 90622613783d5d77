"""Names of the files in a run's folder."""

from __future__ import annotations

CONFIG = "config.yaml"
RECORD = "run.json"
CHECKPOINTS = "checkpoints"
RUNS = "runs"
"""Where runs without a folder of their own go."""
REQUEUED = "hpc_ckpt_*.ckpt"
"""What Lightning saves in a run's folder before Slurm queues its job again."""
SIMILARITY = ("similarity.json", "similarity.png")
"""What a comparison of what runs see writes."""
