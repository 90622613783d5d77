"""The linear map W and the loss that pulls mapped features to their targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rela_lightning.errors import ConfigError


def transport_loss(features: Tensor, targets: Tensor) -> Tensor:
    """Mean cosine distance between mapped features and their targets.

    `mean_i (1 - cos(W h_i, y_i))`: the linear-transport loss of arXiv 2405.14669, as in the authors'
    code. Computed in float32 whatever the inputs are.

    Args:
        features: Mapped features `W h`, float `[B, D]`.
        targets: Targets `y`, float `[B, D]`, one row per row of `features`.

    Returns:
        Scalar float32 tensor in `[0, 2]`.

    Raises:
        ConfigError: If the shapes differ.

    Example:
        >>> import torch
        >>> transport_loss(torch.eye(2), torch.eye(2))
        tensor(0.)
        >>> transport_loss(torch.eye(2), -torch.eye(2))
        tensor(2.)
    """
    check_pairs(features, targets)
    return (1.0 - F.cosine_similarity(features.float(), targets.float(), dim=-1)).mean()


def check_pairs(features: Tensor, targets: Tensor) -> None:
    """Raise a `ConfigError` unless there is one target of the same width for each row of features."""
    if features.shape != targets.shape:
        raise ConfigError(
            "Features and targets do not pair up.",
            expected="two tensors of one shape [B, D]",
            found=f"features {list(features.shape)}, targets {list(targets.shape)}",
            do="map the features with LinearTransport first",
        )


class LinearTransport(nn.Module):
    """The linear map W from the student's feature space to the target space.

    Always float32 and outside autocast: it is one small product, and its gradient reaches the
    backbone.

    Args:
        feature_dim: Width F of the student's features.
        target_dim: Width D of the targets.
        seed: Seed of its initial weights; the global random state is left as it was.

    Example:
        >>> import torch
        >>> head = LinearTransport(feature_dim=128, target_dim=512, seed=0)
        >>> head(torch.zeros(4, 128)).shape
        torch.Size([4, 512])
    """

    def __init__(self, feature_dim: int, target_dim: int, *, seed: int = 0) -> None:
        super().__init__()
        skipped = nn.utils.skip_init(nn.Linear, feature_dim, target_dim, dtype=torch.float32)  # type: ignore[no-untyped-call]
        self.linear: nn.Linear = skipped
        generator, bound = torch.Generator().manual_seed(seed), feature_dim**-0.5
        with torch.no_grad():  # nn.Linear's own distribution, from a generator of its own
            for parameter in self.linear.parameters():
                parameter.uniform_(-bound, bound, generator=generator)

    @property
    def feature_dim(self) -> int:
        """Width F of the features it takes."""
        return self.linear.in_features

    @property
    def target_dim(self) -> int:
        """Width D of the targets it maps to."""
        return self.linear.out_features

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[B, F]` of any float dtype to `[B, D]`, float32."""
        with torch.autocast(features.device.type, enabled=False):
            mapped: Tensor = self.linear(features.float())
        return mapped
