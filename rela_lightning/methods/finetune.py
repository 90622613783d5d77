"""Fine-tuning with labels: what a pre-trained backbone is worth in use."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from rela_lightning.errors import ConfigError, check_positive
from rela_lightning.methods.supervised import Supervised

Part = Literal["all", "head"]
PARTS: tuple[str, ...] = ("all", "head")


class FineTune(Supervised):
    """A backbone that was trained before and a new linear classifier, under cross-entropy.

    The backbone learns at a lower rate than the classifier, which starts from nothing, as in the fine-tuning of SwAV
    (arXiv 2006.09882, A.4) and VICReg (arXiv 2105.04906, 4.1). With `train="head"` it stays as it is, batch norm's
    statistics included: the linear probe with augmented images.

    Args:
        backbone: `run:<folder>` for what a run has trained, `checkpoint:<file>` (with `arch` in `backbone_kwargs`), or
            another name for `build_backbone`; or a module.
        num_classes: Classes, at least 2. `rela finetune` takes those of the data.
        train: `all` trains backbone and classifier, `head` the classifier alone.
        backbone_rate: Learning rate of the backbone, as a share of the classifier's, > 0.
        options: Those of `Supervised`.

    Raises:
        ConfigError: For an unknown backbone or values out of range.
        DataError: As `Supervised`.

    Example:
        >>> module = FineTune("random:lightly:resnet-9", num_classes=10, train="head")
        >>> sum(parameter.requires_grad for parameter in module.parameters())
        2
    """

    drop_last = False  # of a few labels each counts

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        num_classes: int | None = None,
        train: Part = "all",
        backbone_rate: float = 0.1,
        **options: Any,
    ) -> None:
        if train not in PARTS:
            raise ConfigError("`train` names no part.", expected="one of the names below", found=train, exists=PARTS)
        if num_classes is None:
            raise ConfigError("The number of classes is not known.", expected="num_classes, 2 or more", found=None)
        check_positive(backbone_rate=backbone_rate)
        super().__init__(backbone, num_classes=num_classes, **options)
        self.part, self.backbone_rate = train, backbone_rate
        self.backbone.requires_grad_(train == "all").train(train == "all")

    def train(self, mode: bool = True) -> FineTune:
        """Training mode, but for a backbone that stays as it is."""
        super().train(mode)
        if self.part == "head":
            self.backbone.eval()
        return self

    def configure_optimizers(self) -> Any:
        """The classifier's parameters, and those of the backbone at their own rate."""
        if self.part == "head" or self.backbone_rate == 1.0:
            return super().configure_optimizers()
        grouped = [_as_dicts(self._groups_of(part)) for part in (self.classifier, self.backbone)]
        optimizer = self._optimizer([group for groups in grouped for group in groups])
        for group in optimizer.param_groups[len(grouped[0]) :]:
            group["lr"] *= self.backbone_rate
        return self._scheduled(optimizer)


def _as_dicts(groups: list[Any]) -> list[dict[str, Any]]:
    """Groups of parameters, or plain parameters as one group."""
    return groups if isinstance(groups[0], dict) else [{"params": groups}]
