"""`rela export`: the backbone of a run, alone."""

from __future__ import annotations

import sys
from typing import Any

from rela_lightning.export import export_backbone


def export(checkpoint: str, path: str, *, architecture: str | None = None, **options: Any) -> None:
    """Write the backbone alone, under the names of the plain architecture.

    Heads, teachers, optimizers and the prefixes of torch.compile and DDP stay behind.

    Args:
        checkpoint: Lightning checkpoint, or a run folder, of which the last checkpoint is taken; or a weights file.
        path: File to write; for `hub` a folder. Missing folders are made.
        architecture: `resnet50`, `timm:<model>` or `lightly:<resnet>`. Needed for ONNX and hub where the checkpoint is
            not of `rela_lightning.methods`; wherever given, the weights must fit it.
        **options: Those of `rela_lightning.export_backbone`.
    """
    sys.stdout.write(f"{export_backbone(checkpoint, path, architecture=architecture, **options)}\n")
