"""Weighted k-nearest-neighbour classification by cosine similarity."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rela_lightning.errors import ConfigError
from rela_lightning.probe.checks import check_widths, directions, finite_features, labelled_rows

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
        train_features: The bank, `[N, F]`, a tensor or numpy array; need not be normalised.
        train_labels: Integer `[N]` below `num_classes`; rows with a negative label are left out.
        queries: `[Q, F]`.
        k: Neighbours per query, 1 to the number of labelled rows.
        temperature: Above 0; small values trust the nearest.
        num_classes: Number of classes; None takes the highest label plus one.
        weights: `distance` or `uniform`.
        chunk_size: Queries per matrix product; memory is about `chunk_size * N * 4` bytes.

    Returns:
        Predicted classes, int64 `[Q]`.

    Raises:
        ConfigError: For options out of range.
        DataError: For shapes that do not pair up, features that are not finite, labels out of range.

    Example:
        >>> import torch
        >>> bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
        >>> knn_predict(bank, labels, torch.tensor([[0.1, 2.0, 0.0]]), k=1)
        tensor([1])
    """
    train_features, train_labels = labelled_rows(train_features, train_labels, "bank", num_classes)
    queries = finite_features(queries, "query")
    check_widths(train_features, queries, ("bank", "query"))
    if not 1 <= k <= len(train_features) or temperature <= 0 or weights not in WEIGHTS or chunk_size < 1:
        raise ConfigError(
            "The kNN settings cannot work.",
            expected=f"1 <= k <= {len(train_features)}, the size of the bank; temperature > 0; chunk_size >= 1; "
            f"weights one of {', '.join(WEIGHTS)}",
            found=f"k={k}, temperature={temperature}, chunk_size={chunk_size}, weights={weights!r}",
        )
    classes = num_classes or int(train_labels.max()) + 1
    bank = directions(train_features)
    predicted = [train_labels.new_empty(0, dtype=torch.int64)]
    for chunk in torch.split(queries, chunk_size):
        similarity, nearest = (directions(chunk) @ bank.T).topk(k, dim=1)
        # The largest similarity is subtracted so that exp cannot overflow; votes only scale.
        vote = ((similarity - similarity[:, :1]) / temperature).exp()
        vote = torch.ones_like(vote) if weights == "uniform" else vote
        votes = vote.new_zeros(len(chunk), classes).scatter_add_(1, train_labels[nearest], vote)
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)
