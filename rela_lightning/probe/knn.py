"""Weighted k-nearest-neighbour classification by cosine similarity."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rela_lightning.errors import ConfigError

Weights = Literal["distance", "uniform"]
WEIGHTS: tuple[str, ...] = ("distance", "uniform")


def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    queries: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    weights: Weights = "distance",
    chunk_size: int = 1024,
) -> Tensor:
    """Class of each query by a vote of its k most similar training features.

    Similarity s is the cosine. A neighbour's vote weighs `exp(s / temperature)` (`weights="distance"`), as in
    Wu et al. 2018 (arXiv 1805.01978) and DINO (arXiv 2104.14294, k = 20, temperature 0.07), or 1
    (`"uniform"`). Equal votes go to the lower class.

    Args:
        train_features: The bank, `[N, F]`; need not be normalised.
        train_labels: Integer `[N]` in `[0, num_classes)`.
        queries: `[Q, F]`.
        k: Neighbours per query, 1 to N.
        temperature: Above 0; small values trust the nearest.
        num_classes: Number of classes; None takes the highest label plus one.
        weights: `distance` or `uniform`.
        chunk_size: Queries per matrix product; memory is about `chunk_size * N * 4` bytes.

    Returns:
        Predicted classes, int64 `[Q]`.

    Raises:
        ConfigError: For options out of range or shapes that do not pair up.
    """
    shapes_fit = (
        train_features.ndim == queries.ndim == 2
        and train_features.shape[1] == queries.shape[1]
        and train_labels.shape == train_features.shape[:1]
    )
    if not shapes_fit:
        raise ConfigError(
            "Bank, labels and queries do not pair up.",
            expected="train_features [N, F], train_labels [N], queries [Q, F]",
            found=f"{list(train_features.shape)}, {list(train_labels.shape)}, {list(queries.shape)}",
        )
    if not 1 <= k <= len(train_features) or temperature <= 0 or weights not in WEIGHTS or chunk_size < 1:
        raise ConfigError(
            "The kNN settings cannot work.",
            expected=f"1 <= k <= {len(train_features)}, the size of the bank; temperature > 0; chunk_size >= 1; "
            f"weights one of {', '.join(WEIGHTS)}",
            found=f"k={k}, temperature={temperature}, chunk_size={chunk_size}, weights={weights!r}",
        )
    classes = num_classes or int(train_labels.max()) + 1
    bank = F.normalize(train_features.float(), dim=1)
    predicted = [train_labels.new_empty(0, dtype=torch.int64)]
    for chunk in torch.split(queries, chunk_size):
        similarity, nearest = (F.normalize(chunk.float(), dim=1) @ bank.T).topk(k, dim=1)
        # The largest similarity is subtracted so that exp cannot overflow; votes only scale.
        vote = ((similarity - similarity[:, :1]) / temperature).exp()
        vote = torch.ones_like(vote) if weights == "uniform" else vote
        votes = vote.new_zeros(len(chunk), classes).scatter_add_(1, train_labels[nearest].long(), vote)
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)
