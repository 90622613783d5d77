"""A trained backbone as other programs load it: a plain state dict, ONNX, or a folder for a model hub."""

from __future__ import annotations

from rela_lightning.export.backbone import FORMATS, Format, export_backbone

__all__ = ["FORMATS", "Format", "export_backbone"]
