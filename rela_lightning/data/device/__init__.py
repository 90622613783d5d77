"""Views of whole batches, made where the model is, from images that were decoded once."""

from __future__ import annotations

from rela_lightning.data.device.memory import InMemory, decode
from rela_lightning.data.device.views import DeviceViews, Packed

__all__ = ["DeviceViews", "InMemory", "Packed", "decode"]
