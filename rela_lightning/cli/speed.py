"""`--compile` and `--channels_last`: the same training, faster on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from rela_lightning.errors import ConfigError
from rela_lightning.injection.patch import Patches
from rela_lightning.networks.names import guess_backbone, shapes, unnamed_backbone

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def compile_backbone(module: nn.Module, backend: str = "inductor") -> list[str]:
    """Compile the backbone, and its teacher where there is one, in place: names in checkpoints stay as they are.

    Args:
        module: The module that will be trained.
        backend: Of `torch.compile`.

    Returns:
        Dotted names of the networks that will be compiled when they are first called.

    Raises:
        ConfigError: For an unknown backend, or if the backbone has none of the usual names.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ConfigError(
            "torch.compile has no such backend.", expected="true, or a name below", found=backend, exists=known
        )
    name = guess_backbone(module)
    if name is None:
        raise unnamed_backbone(
            f"The backbone of {type(module).__name__} to compile was not found.",
            module,
            "compile it in the module's constructor, self.my_network.compile(), and leave --compile out",
        )
    backbone = module.get_submodule(name)
    alike = {
        other: network
        for other, network in module.named_modules()
        if type(network) is type(backbone) and shapes(network) == shapes(backbone)
    }
    for network in alike.values():
        network.compile(backend=backend)
    return list(alike)


class ChannelsLast(Callback):
    """Keeps convolution weights and image batches `[B, C, H, W]` in memory as `[B, H, W, C]`; values stay the same.

    Everything is restored at the end.
    """

    def __init__(self) -> None:
        self._patches = Patches()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lay out the weights; from now on every batch, after its transfer."""
        self._patches.undo()
        lay_out(pl_module, torch.channels_last)
        for owner in (pl_module, getattr(trainer, "datamodule", None)):
            if owner is not None:
                self._patches.wrap(owner, "on_after_batch_transfer", _after_transfer)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Lay out what `configure_model` built since."""
        lay_out(pl_module, torch.channels_last)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Restore everything."""
        self._patches.undo()
        lay_out(pl_module, torch.contiguous_format)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Restore everything, also after a failure."""
        self.teardown(trainer, pl_module, "fit")


def lay_out(module: nn.Module, order: torch.memory_format) -> None:
    """Bring the weights of all 2-d convolutions into a memory format."""
    for part in module.modules():
        if isinstance(part, _CONVOLUTIONS):
            part.to(memory_format=order)


def _after_transfer(original: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    return apply_to_collection(original(batch, *args, **kwargs), Tensor, _image_last)


def _image_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
