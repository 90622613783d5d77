"""`rela export`: the backbone of a run, alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rela_lightning.export import export_backbone
from rela_lightning.export.backbone import UnknownNetwork
from rela_lightning.runs.rebuild import rebuilt


def export(checkpoint: str, path: str, *, architecture: str | None = None, **options: Any) -> None:
    """Write the backbone alone, under the names of the plain architecture.

    Heads, teachers, optimizers and the prefixes of torch.compile and DDP stay behind.

    Args:
        checkpoint: Lightning checkpoint, or a run folder, of which the last checkpoint is taken; or a weights file.
        path: File to write; for `hub` a folder. Missing folders are made.
        architecture: `resnet50`, `timm:<model>` or `lightly:<resnet>`. Needed for ONNX and hub where the checkpoint is
            not of `rela_lightning.methods` and lies in no folder of a run, whose config.yaml says how to build the
            network; wherever given, the weights must fit it. A run's folder is code: classes that its config.yaml
            names are imported and built. Export those that you trust.
        **options: Those of `rela_lightning.export_backbone`.
    """
    try:
        written = export_backbone(checkpoint, path, architecture=architecture, **options)
    except UnknownNetwork:
        found = rebuilt(Path(checkpoint).expanduser())
        if found is None:
            raise
        module, facts = found
        given = options.pop("run", None)
        written = export_backbone(module, path, run=facts if given is None else given, **options)
    sys.stdout.write(f"{written}\n")
