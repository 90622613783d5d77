"""Count right answers: sums that add up exactly over batches and processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def topk_names(num_classes: int, prefix: str) -> dict[str, int]:
    """The accuracies that mean something: `<prefix>top1`, and `<prefix>top5` above five classes."""
    return {f"{prefix}top{k}": k for k in (1, 5) if k == 1 or num_classes > k}


def topk_counts(scores: Tensor, labels: Tensor, ks: tuple[int, ...] = (1,)) -> Tensor:
    """How many labels are among the k highest scores.

    Args:
        scores: Float `[B, C]`.
        labels: Integer `[B]`; rows with a negative label are left out.
        ks: Values of k, each at most C.

    Returns:
        Float64 `[1 + len(ks)]` (float32 where the device has no float64): labelled rows, then the hits per k; these
        are NaN if a labelled row has scores that are not finite, as a backbone that has diverged gives.
    """
    labelled = labels >= 0
    broken = (labelled & ~scores.isfinite().all(dim=1)).any()
    ranked = scores.topk(max(ks), dim=1).indices == labels.unsqueeze(1)
    counts = [labelled.sum(), *((ranked[:, :k].any(dim=1) & labelled).sum() for k in ks)]
    exact = torch.stack(counts).to(torch.float32 if scores.device.type == "mps" else torch.float64)
    return torch.cat([exact[:1], exact[1:].masked_fill(broken, float("nan"))])


def summed_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of scores `[B, C]` summed over the rows whose label is not negative."""
    return F.cross_entropy(scores, labels.clamp(min=-1), ignore_index=-1, reduction="sum")


def accuracies(counts: Tensor) -> list[float]:
    """Accuracies in `[0, 1]` from summed `topk_counts`; NaN without a labelled row."""
    rows, *hits = counts.tolist()
    return [hit / rows if rows else float("nan") for hit in hits]
