"""Two ways to fit a linear classifier on features: the exact optimum, and the authors' protocol."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fit_logistic(
    features: Tensor, labels: Tensor, num_classes: int, *, l2: float = 1.0, max_iter: int = 1000
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression, solved by full-batch L-BFGS and a few Newton steps in float64.

    Minimises `sum_i CE(W x_i + b, y_i) + l2 / 2 ||W||²`: scikit-learn's `LogisticRegression(C=1 / l2)`, the
    bias free of penalty. No learning rate, no randomness. It is solved on centred features, which moves no optimum
    and is far better conditioned, until no slope is above 1e-9 (scikit-learn: 1e-4). L-BFGS alone would take most of
    its time below 1e-6, where rounding hides from its line search what a step gains. Takes about `N * F * 16` bytes.

    Args:
        features: `[N, F]`.
        labels: Integer `[N]` in `[0, num_classes)`.
        num_classes: Number of classes C.
        l2: Strength of the penalty, above 0.
        max_iter: Most iterations of L-BFGS.

    Returns:
        Weight `[C, F]` and bias `[C]`, float64, on the features' device (the CPU for `mps`).
    """
    device = torch.device("cpu") if features.device.type == "mps" else features.device  # mps has no float64
    x, y = features.to(device, torch.float64), labels.to(device)
    mean = x.mean(dim=0)
    z = x - mean
    weight = z.new_zeros(num_classes, z.shape[1], requires_grad=True)
    bias = z.new_zeros(num_classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iter,
        max_eval=2 * max_iter,
        tolerance_grad=1e-6,
        tolerance_change=1e-15,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> float:
        with torch.enable_grad():
            penalty = l2 / (2 * len(x)) * weight.square().sum()
            loss = F.cross_entropy(F.linear(z, weight, bias), y) + penalty
            weight.grad, bias.grad = torch.autograd.grad(loss, (weight, bias))
        return float(loss.detach())

    solver.step(objective)  # type: ignore[no-untyped-call]
    weight, bias = _newton(z, y, weight.detach(), bias.detach(), l2 / len(x))
    return weight, bias - weight @ mean


def _newton(z: Tensor, y: Tensor, weight: Tensor, bias: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """From near the optimum of the mean loss to it; a step that does not lower the largest slope is not taken."""
    labels = F.one_hot(y, len(weight)).to(z.dtype)
    solution = torch.cat([weight, bias[:, None]], dim=1)
    decay = torch.full_like(solution, l2)
    decay[:, -1] = 0.0

    def slopes(at: Tensor) -> tuple[Tensor, Tensor]:
        shares = F.linear(z, at[:, :-1], at[:, -1]).softmax(dim=1)
        return across(shares - labels) + decay * at, shares

    def across(rows: Tensor) -> Tensor:
        return torch.cat([rows.T @ z, rows.sum(dim=0)[:, None]], dim=1) / len(z)

    def curvature(along: Tensor, shares: Tensor) -> Tensor:
        rows = shares * F.linear(z, along[:, :-1], along[:, -1])
        return across(rows - shares * rows.sum(dim=1, keepdim=True)) + decay * along

    slope, shares = slopes(solution)
    for _ in range(20):
        if float(slope.abs().max()) <= 1e-9:
            break
        step, left = torch.zeros_like(slope), -slope
        direction, size = left, float(left.square().sum())
        enough = 1e-6 * size
        for _ in range(1000):  # conjugate gradients
            bent = curvature(direction, shares)
            length = size / float((direction * bent).sum())
            step, left = step + length * direction, left - length * bent
            before, size = size, float(left.square().sum())
            if size <= enough:
                break
            direction = left + size / before * direction
        new_slope, new_shares = slopes(solution + step)
        if not float(new_slope.abs().max()) < float(slope.abs().max()):
            break
        solution, slope, shares = solution + step, new_slope, new_shares
    return solution[:, :-1], solution[:, -1]


def fit_adam(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    epochs: int = 100,
    lr: float = 3e-4,
    weight_decay: float = 0.0,
    batch_size: int = 128,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Linear classifier trained by Adam from zero: the authors' protocol (frozen features, 3e-4, 100 epochs).

    Args:
        features: `[N, F]`.
        labels: Integer `[N]` in `[0, num_classes)`.
        num_classes: Number of classes C.
        epochs: Passes over the features.
        lr: Learning rate.
        weight_decay: L2 coefficient added to the gradient.
        batch_size: Rows per step.
        seed: Seed of the order of rows; the global random state is not used.

    Returns:
        Weight `[C, F]` and bias `[C]`, float32.
    """
    x = features.float()
    weight = x.new_zeros(num_classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=lr, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(x), generator=generator).to(x.device), batch_size):
                loss = F.cross_entropy(F.linear(x[rows], weight, bias), labels[rows])
                weight.grad, bias.grad = torch.autograd.grad(loss, (weight, bias))
                optimizer.step()
    return weight.detach(), bias.detach()
