"""A run's module and data, built again from its config; a network from a checkpoint or a prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from rela_lightning.config import own_errors, register_names
from rela_lightning.errors import ConfigError
from rela_lightning.networks.encode import find_backbone
from rela_lightning.priors import Prior, load_prior
from rela_lightning.priors.load import SCHEMES
from rela_lightning.rng import preserved_rng
from rela_lightning.runs.folder import run_of
from rela_lightning.runs.names import CONFIG, RECORD
from rela_lightning.runs.read import find_checkpoint, read_checkpoint, read_config, read_run, setting_of
from rela_lightning.runs.resume import check_belongs


class Subject(NamedTuple):
    """What is probed."""

    network: nn.Module
    name: str
    folder: Path | None = None
    """The run's folder, where it is one."""
    checkpoint: Path | None = None
    data: Any = None
    """The run's own data module."""
    trained: bool = True
    """False for the network of a run as it is before training."""
    steps: int | None = None
    """Optimizer steps of a run's weights, where the checkpoint tells."""

    @property
    def preprocess(self) -> Any:
        """A prior's preprocessing; None for a network trained here, which takes the probe view."""
        return self.network.preprocess if isinstance(self.network, Prior) else None


def find_subject(
    given: str, *, backbone: str = "auto", prior_kwargs: dict[str, Any] | None = None, untrained: bool = False
) -> Subject:
    """The network behind a run's folder, a checkpoint or the spec of a prior.

    Args:
        given: Folder of a run, a checkpoint in one, or what `load_prior` takes.
        backbone: Dotted path of the network in the run's module; `auto` tries the usual names.
        prior_kwargs: Options of `load_prior`, for a spec.
        untrained: The run's network as it is before training, built anew with its seed.

    Raises:
        ConfigError: If there is no such thing, or the checkpoint does not belong to the run's config.
        PriorError: If there is no such prior.
    """
    path = Path(given).expanduser()
    scheme = given.partition(":")[0]
    if not path.exists() and any(known.startswith(f"{scheme}:") for known in SCHEMES):
        if untrained:
            raise ConfigError(
                "Only the network of a run can be had untrained.",
                expected="the folder of a run",
                found=given,
                do=f"for a library's network rela probe random:{given}",
            )
        prior = load_prior(given, **(prior_kwargs or {}))
        return Subject(prior, prior.name)
    file = find_checkpoint(path)
    folder = folder_of(path, file)
    if folder is None:
        raise ConfigError(
            "A checkpoint holds weights, not a network, and there is no config beside it.",
            expected=f"{CONFIG} in the run's folder, as `rela fit` writes it",
            found=file,
            do=f"rela probe checkpoint:{file} --prior_kwargs.arch torchvision:resnet18 (and prior_kwargs.image_size)",
        )
    module, data, steps = (*_fresh(folder / CONFIG), 0) if untrained else _filled(folder / CONFIG, file)
    found = find_backbone(module, backbone)
    network = found.network if found.call is found.network else _Called(found.network, found.call)
    if untrained:
        return Subject(network, f"{folder.name}, untrained", folder, None, data, trained=False)
    return Subject(network, folder.name, folder, file, data, steps=steps)


def rebuilt(path: Path) -> tuple[LightningModule, dict[str, Any]] | None:
    """The module of a run with the weights of a checkpoint, and the facts of the run; None without a config.

    Args:
        path: Folder of a run, or a checkpoint in one.
    """
    file = find_checkpoint(path)
    folder = folder_of(path, file)
    if folder is None:
        return None
    module, _, step = _filled(folder / CONFIG, file)
    facts = read_run(folder) if (folder / RECORD).is_file() else {}
    return module, {**facts, "steps_of_weights": step}


def folder_of(path: Path, file: Path) -> Path | None:
    """The folder with the config of a run: the one that is given, or that of its checkpoint; None without a config."""
    folder = path if path.is_dir() and (path / CONFIG).is_file() else run_of(file)
    return folder if folder is not None and (folder / CONFIG).is_file() else None


def _fresh(config: Path) -> tuple[LightningModule, Any]:
    """Module and data module of a run's config, as they are before training."""
    with preserved_rng(int(setting_of(config.parent).get("seed") or 0)):
        return build(config)


def _filled(config: Path, file: Path) -> tuple[LightningModule, Any, int | None]:
    """Module with the weights of a checkpoint, data module of the run's config, and the step of the weights."""
    module, data = build(config)
    check_belongs(module, file)
    content = read_checkpoint(file)
    module.load_state_dict(content["state_dict"])
    return module, data, content.get("global_step")


class _Called(nn.Module):
    """A network that is called by one of its methods."""

    def __init__(self, network: nn.Module, call: Any) -> None:
        super().__init__()
        self.network, self._call = network, call

    def forward(self, images: torch.Tensor) -> Any:
        return self._call(images)


def build(config: Path) -> tuple[LightningModule, Any]:
    """Module and data module (or None) of a run's config.

    Raises:
        ConfigError: If the config cannot be built any more.
    """
    content = read_config(config)
    parts = {name: content[name] for name in ("model", "data") if content.get(name) is not None}
    built = _built(parts, config, required=True)
    return built.model, built.get("data")


def build_data(options: dict[str, Any]) -> Any:
    """A data module alone, from its class path and options.

    Raises:
        ConfigError: If it cannot be built.
    """
    return _built({"data": options}, "--data", required=False).data


def _built(parts: dict[str, Any], where: object, *, required: bool) -> Any:
    register_names()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", fail_untyped=False, required=required)
    parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False, required=False)
    try:
        parsed = parser.parse_object(parts)
    except Exception as error:
        raise ConfigError("The run's config does not parse any more.", found=f"{where}: {error}") from error
    with own_errors():
        return parser.instantiate_classes(parsed)
