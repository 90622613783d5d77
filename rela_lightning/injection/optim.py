"""The map W and its own optimizer: stepped beside the user's, never inside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rela_lightning.errors import ConfigError
from rela_lightning.transport import LinearTransport

OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


class TransportMap:
    """W, built when the feature width is known, trained by an optimizer of its own.

    It is no submodule of the user's module and adds no parameter group: strict loading, schedulers,
    resume and DDP of the user's module stay as they were.

    Args:
        optimizer: Builds the optimizer from parameters; None keeps W frozen, as the authors' code does.
        seed: Seed of W's initial weights, the same on all ranks.
    """

    def __init__(self, optimizer: OptimizerFactory | None, seed: int = 0) -> None:
        self._factory = optimizer
        self._seed = seed
        self._restored: dict[str, Any] | None = None
        self._loss: Tensor | None = None  # of the last step whose gradient W holds
        self._losses = 0  # whose gradients W holds
        self.losses_per_step = 1
        """Losses that went into the last step of W: more than one where gradients are accumulated."""
        self.linear: LinearTransport | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def build(self, feature_dim: int, target_dim: int, device: torch.device) -> LinearTransport:
        """The map for features of this width, built at the first call.

        It maps to the first `min(feature_dim, target_dim)` target columns, the ones of largest variance.

        Raises:
            ConfigError: If a resumed map was made for another width.
        """
        if self.linear is not None:
            if self.linear.feature_dim != feature_dim:
                raise _other_width(feature_dim, self.linear.feature_dim)
            return self.linear
        linear = LinearTransport(feature_dim, min(feature_dim, target_dim), seed=self._seed)
        if self._restored is not None:
            weight = self._restored["map"]["linear.weight"]
            if tuple(weight.shape) != (linear.target_dim, feature_dim):
                raise _other_width(feature_dim, weight.shape[1])
            linear.load_state_dict(self._restored["map"])
        self.linear = linear.to(device)
        if self._factory is not None:
            self.optimizer = self._factory(self.linear.parameters())
            if self._restored is not None and "optimizer" in self._restored:
                check_same("transport_optimizer", type(self.optimizer).__name__, self._restored["optimizer_class"])
                self.optimizer.load_state_dict(self._restored["optimizer"])
        else:
            self.linear.requires_grad_(False)
        return self.linear

    def saw(self, loss: Tensor) -> None:
        """Note a scalar loss that W's next step will follow."""
        self._loss, self._losses = loss.detach(), self._losses + 1

    def forget(self) -> None:
        """Drop the gradients that no step has used: those of the backbone were dropped."""
        if self.linear is not None:
            self.linear.zero_grad(set_to_none=True)
        self._losses = 0

    def step(self, trainer: Any) -> Tensor | None:
        """One step of W's optimizer, gradients averaged over ranks.

        Args:
            trainer: For its strategy's reduction and its precision plugin's scaler.

        Returns:
            The last loss averaged over ranks; it travels with the gradients, in one reduction. None, and no step, where
            no loss came since the last one: another optimizer of the module is stepping.
        """
        if self._loss is None:
            return None
        loss, self._loss = self._loss, None
        self.losses_per_step, self._losses = self._losses, 0
        parameters = list(self.linear.parameters()) if self.linear is not None else []
        gradients = [p.grad for p in parameters if p.grad is not None]
        loss = loss.float().reshape(1)
        if trainer.world_size > 1:
            flat = torch.cat([g.reshape(-1) for g in gradients] + [loss])
            flat = trainer.strategy.reduce(flat, reduce_op="mean")
            loss = flat[-1:]
            start = 0
            for gradient in gradients:
                gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
                start += gradient.numel()
        if self.optimizer is not None and gradients:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            if scaler is not None:
                scaler.unscale_(self.optimizer)
                scaler.step(self.optimizer)
            else:
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.reshape(())

    def state_dict(self) -> dict[str, Any]:
        """W and its optimizer; what was restored, if W has not been needed since; else empty."""
        if self.linear is None:
            return self._restored or {}
        state: dict[str, Any] = {"map": {k: v.detach().cpu().clone() for k, v in self.linear.state_dict().items()}}
        if self.optimizer is not None:
            state["optimizer"] = self.optimizer.state_dict()
            state["optimizer_class"] = type(self.optimizer).__name__
        state["losses_per_step"] = self.losses_per_step
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state until `build` knows the device."""
        self._restored = state or None
        self.losses_per_step = state.get("losses_per_step", 1)


def check_same(option: str, now: str, before: str) -> None:
    """Refuse to resume with another class behind an option.

    Raises:
        ConfigError: Naming both.
    """
    if now != before:
        raise ConfigError(
            f"`{option}` differs from the run that is resumed, and its state does not fit.",
            expected=before,
            found=now,
            do=f"resume with {before}, or start afresh",
        )


def _other_width(found: int, expected: int) -> ConfigError:
    return ConfigError(
        "The backbone's features do not fit the transport map.",
        expected=f"features of width {expected}, as in the run that is resumed (or in the step before)",
        found=f"width {found}",
        do="resume with the backbone, `backbone`, `feature_layer` and `pooling` of that run, or start afresh",
    )
