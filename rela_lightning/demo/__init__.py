"""`rela demo`: the whole method on real images, in minutes."""

from __future__ import annotations

from rela_lightning.demo.main import demo, quiet
from rela_lightning.demo.prior import PRIOR_FILE, PRIOR_SETTINGS

__all__ = ["PRIOR_FILE", "PRIOR_SETTINGS", "demo", "quiet"]
