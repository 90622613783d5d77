"""A queue of earlier features that is part of the checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class FeatureQueue(nn.Module):
    """The latest features, the oldest replaced first; random unit vectors until it is full.

    Unlike lightly's memory bank it is saved and restored with the module, so that a resumed run goes on where
    it stood, and needs no batch size that divides its own.

    Args:
        size: Features held.
        dim: Width of a feature.
    """

    rows: Tensor
    """Features `[size, dim]`, in no order."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", normalize(torch.randn(size, dim), dim=1))
        self.seen = 0

    @property
    def full(self) -> bool:
        """Whether every row has been replaced by a feature."""
        return self.seen >= len(self.rows)

    @torch.no_grad()
    def push(self, features: Tensor) -> None:
        """Put features `[B, dim]` in the place of the oldest; of more than `size`, the last."""
        size = len(self.rows)
        latest = features.detach()[-size:]
        self.seen += len(features)
        at = torch.arange(self.seen - len(latest), self.seen, device=self.rows.device) % size
        self.rows[at] = latest.to(self.rows.dtype)

    def get_extra_state(self) -> Tensor:
        """Features seen so far."""
        return torch.tensor(self.seen)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of features seen."""
        self.seen = int(state)
