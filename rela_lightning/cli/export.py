"""`rela export`: the backbone of a run, alone."""

from __future__ import annotations

import sys
from typing import Any

from rela_lightning.export import Format, export_backbone


def export(
    checkpoint: str,
    path: str,
    *,
    format: Format = "auto",
    key: str = "auto",
    architecture: str | None = None,
    backbone_kwargs: dict[str, Any] | None = None,
    cifar_stem: bool = False,
    image_size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    run: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write the backbone alone, under the names of the plain architecture.

    Heads, teachers, optimizers and the prefixes of torch.compile and DDP stay behind.

    Args:
        checkpoint: Lightning checkpoint, or a run folder, of which the last checkpoint is taken; or a weights file.
        path: File to write; for `hub` a folder. Missing folders are made.
        format: `auto` goes by the ending of the file. `safetensors` or `torch`: a state dict. `onnx`: images float32
            `[N, C, S, S]` in, features `[N, F]` out; needs the extra `export`. `hub`: a folder with weights,
            `config.json` and a model card.
        key: Dotted path of the backbone in the module; `auto` tries the usual names and takes the student.
        architecture: `resnet50`, `timm:<model>` or `lightly:<resnet>`. Needed for ONNX and hub where the checkpoint is
            not of `rela_lightning.methods`; wherever given, the weights must fit it.
        backbone_kwargs: Options of that architecture, such as `{"width": 0.5}`.
        cifar_stem: Whether that architecture has the stem for small images.
        image_size: Side of the images, pixels. Known of transformers; else for ONNX 224, or 32 for networks for small
            images.
        mean: Per-channel mean subtracted in training, on the [0, 1] scale; written down, not applied.
        std: Per-channel standard deviation divided by in training; written down, not applied.
        run: `run.json` or its folder, for the model card; found beside the checkpoint if not given.
        overwrite: Replace what is at `path`; of a hub folder its three files.

    Raises:
        ConfigError: If there is no checkpoint, the backbone is not found, does not fit or cannot be exported, or
            something is at `path`. Nothing is written then.
        PriorError: If a weights file that is no Lightning checkpoint cannot be read.
    """
    written = export_backbone(
        checkpoint,
        path,
        format=format,
        key=key,
        architecture=architecture,
        backbone_kwargs=backbone_kwargs,
        cifar_stem=cifar_stem,
        image_size=image_size,
        mean=mean,
        std=std,
        run=run,
        overwrite=overwrite,
    )
    sys.stdout.write(f"{written}\n")
