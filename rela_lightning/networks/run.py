"""What a run of `rela fit` has trained, to go on with: as a backbone to fine-tune, or as the prior of another run."""

from __future__ import annotations

from typing import Any

from rela_lightning.data.views import probe_margin
from rela_lightning.errors import NetworkError
from rela_lightning.networks.build import Built
from rela_lightning.networks.preprocess import Preprocess


def build(
    name: str, *, backbone: str = "auto", pretrained: bool = False, image_size: int | None = None, **kwargs: Any
) -> Built:
    """The backbone of a run with the weights of its last checkpoint, and the probe view of its data.

    A run's folder is code: classes that its `config.yaml` names are imported and built.

    Args:
        name: Folder of a run, or a checkpoint in one.
        backbone: Dotted path of the network in the run's module; `auto` tries the usual names.
        pretrained: Not read: the weights are always the run's.
        image_size: Not read: the network is the run's.
        kwargs: None are taken.

    Raises:
        ConfigError: If there is no such run, or its checkpoint does not belong to its config.
        NetworkError: For other options.
    """
    from rela_lightning.runs.rebuild import find_subject

    if kwargs:
        raise NetworkError("A run has its network built already.", expected="backbone=", found=", ".join(kwargs))
    subject = find_subject(name, backbone=backbone)
    return Built(subject.network, probe_preprocess(subject.data))


def probe_preprocess(data: Any) -> Preprocess | None:
    """What `probe_view` does to an image of a data module; None where it does not tell its size and normalisation."""
    size, mean, std = (getattr(data, option, None) for option in ("image_size", "mean", "std"))
    if size is None or mean is None or std is None:
        return None
    margin = probe_margin(size)
    return Preprocess((size, size), tuple(mean), tuple(std), resize=(margin, margin), interpolation="bilinear")
