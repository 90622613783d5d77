"""`export_backbone`: from a training run to the plain network."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from rela_lightning.errors import ConfigError
from rela_lightning.export.architecture import Recipe, missing_keys, plain_network, usual_size
from rela_lightning.export.hub import FILES, write_hub
from rela_lightning.export.inputs import Inputs, inputs_of
from rela_lightning.export.keys import cut, find_key
from rela_lightning.export.onnx import require_onnx, write_onnx
from rela_lightning.export.sequence import recognised
from rela_lightning.export.source import Source, read_source
from rela_lightning.files import check_free, write_whole
from rela_lightning.remote import is_url, write_at
from rela_lightning.runs.report import versions
from rela_lightning.weights import State

log = logging.getLogger("rela_lightning")

Format = Literal["auto", "safetensors", "torch", "onnx", "hub"]
FORMATS: dict[str, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "torch": (".pt", ".pth", ".bin"),
    "onnx": (".onnx",),
    "hub": (),
}
"""Formats and the endings of their files; a hub is a folder."""


def export_backbone(
    checkpoint: str | Path | nn.Module,
    path: str | Path,
    *,
    format: Format = "auto",
    key: str = "auto",
    architecture: str | nn.Module | None = None,
    backbone_kwargs: Mapping[str, Any] | None = None,
    cifar_stem: bool = False,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    run: str | Path | Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path | str:
    """Write the backbone alone, under the names of the plain architecture.

    The state dict loads with `strict=True` into the network that was trained: torchvision's with an identity in
    place of its classifier, timm's made with `num_classes=0`, or any other. A ResNet of torchvision wrapped as
    `nn.Sequential(*list(resnet.children())[:-1])` is recognised and gets its own names back, another network wrapped
    so by its `architecture`. Heads, teachers, optimizers and the
    prefixes of torch.compile and DDP stay behind; tensors keep their dtype.

    ONNX and hub folders compute what a module in memory computes. Of a checkpoint alone its hyper-parameters, or the
    tensors of a wrapped ResNet, are taken at their word: a network that was changed after it was built (pooling taken
    out, strides) is not known there, and needs its module, or itself as `architecture`.

    Args:
        checkpoint: Lightning checkpoint; run folder, of which the last checkpoint is taken; weights file; or a module.
        path: File to write; for `hub` a folder. Missing folders are made. Or a URL (`s3://bucket/backbone.onnx`), to
            which finished files are copied.
        format: `auto` goes by the file's ending, and takes safetensors where there is none. `safetensors`, `torch`:
            the state dict. `onnx`: images float32 `[N, C, S, S]` in, pooled features float32 `[N, F]` out, any N; needs
            the extra `export`. `hub`: `model.safetensors`, `config.json` (timm's, where a timm model takes the weights)
            and a model card.
        key: Dotted path of the backbone in the module; `auto` tries the usual names and takes the student, never the
            teacher; `""` is the whole.
        architecture: Name for `rela_lightning.methods.build_backbone`, or a network without heads. Needed for ONNX
            and hub where the checkpoint is not of `rela_lightning.methods`; wherever given, the weights must fit it.
        backbone_kwargs: Options of that name, such as `{"width": 0.5}`.
        cifar_stem: Whether that network has the stem for small images.
        image_size: Side of the images, pixels. Known of transformers; else for ONNX 224, or 32 for networks for small
            images.
        mean: Per-channel mean subtracted in training, on the [0, 1] scale; written down, not applied.
        std: Per-channel standard deviation divided by in training; written down, not applied.
        run: `run.json`, its folder or its content, for the model card; None looks beside the checkpoint.
        overwrite: Replace what is at `path`; of a hub folder the three files.

    Returns:
        `path`: the file, or the hub's folder; a URL as it was given.

    Raises:
        ConfigError: If there is no checkpoint, it holds pickled objects, the backbone is not found or not finite, does
            not fit the architecture, cannot be exported, or something is at `path`. Nothing is written then.
        PriorError: If a weights file that is no Lightning checkpoint cannot be read.

    Example:
        >>> from rela_lightning.methods import BYOL
        >>> from safetensors.torch import load_file
        >>> method = BYOL("lightly:resnet-9", backbone_kwargs={"width": 0.125})
        >>> path = export_backbone(method, "backbone.safetensors")
        >>> method.backbone.load_state_dict(load_file(path))
        <All keys matched successfully>
    """
    if is_url(path):
        options: dict[str, Any] = {
            "key": key, "architecture": architecture, "backbone_kwargs": backbone_kwargs, "cifar_stem": cifar_stem,
            "image_size": image_size, "mean": mean, "std": std, "run": run,
        }  # fmt: skip
        if format == "auto":
            format = format_of(str(path))

        def write(file: Path) -> object:
            return export_backbone(checkpoint, file, format=format, **options)

        return write_at(str(path), write, names=FILES if format == "hub" else (), overwrite=overwrite)
    out = Path(path).expanduser()
    if format == "auto":
        format = format_of(out)
    _check_output(out, format, overwrite)
    source = read_source(checkpoint, run)
    found = find_key(source.state, key, frozen=source.frozen, whole=not source.lightning)
    state = cut(source.state, found)
    _check_finite(state)
    options = {"backbone_kwargs": backbone_kwargs, "cifar_stem": cifar_stem, "image_size": image_size}
    plain = plain_network(source, found, state, architecture, **options)
    if plain.network is None and format in ("onnx", "hub"):
        raise _unknown_network(format, source)
    inputs = inputs_of(plain.network, source.facts, image_size=image_size, mean=mean, std=std)
    missing = missing_keys(plain.recipe, plain.state) if plain.recipe is not None else []
    metadata = _metadata(found, plain.recipe, missing, inputs)
    if format == "hub":
        write_hub(out, plain, inputs, source.facts, missing=missing, metadata=metadata, versions=versions())
    elif format == "onnx" and plain.network is not None:
        network, size = plain.network, inputs.size or usual_size(plain.recipe)
        metadata |= {"image_size": str(size), "normalisation": inputs.normalisation}
        write_whole(out, lambda file: write_onnx(network, file, channels=inputs.channels, size=size, metadata=metadata))
    else:
        # a ResNet that was changed and wrapped has the names of its tensors all the same
        named = recognised(plain.state) if architecture is None else None
        tensors = plain.state if named is None else named[1]
        as_safetensors = format == "safetensors"
        write_whole(
            out, lambda file: save_file(tensors, file, metadata) if as_safetensors else torch.save(tensors, file)
        )
    log.info("%s: %d tensors of %r as %s", out, len(state), found or "the whole module", format)
    return out


def format_of(path: str | Path) -> Format:
    """The format whose files end so; safetensors for a name without an ending.

    Raises:
        ConfigError: For an ending that no format has.
    """
    suffix = Path(path).suffix
    named: dict[str, Format] = {".onnx": "onnx", ".safetensors": "safetensors", "": "safetensors"}
    named |= dict.fromkeys(FORMATS["torch"], "torch")
    if suffix not in named:
        raise ConfigError(
            "The file's ending names no format.",
            expected=", ".join(ending for endings in FORMATS.values() for ending in endings),
            found=Path(path).name,
            do="end the name so, or say which format it is: format=hub (--format hub) writes a folder",
        )
    return named[suffix]


def _check_output(out: Path, format: str, overwrite: bool) -> None:
    if format not in FORMATS:
        raise ConfigError("Unknown format.", expected="one of the names below", found=format, exists=("auto", *FORMATS))
    other = [name for name, endings in FORMATS.items() if name != format and out.suffix in endings]
    if other:
        raise ConfigError(
            "The file's ending is that of another format.",
            expected=" or ".join(FORMATS[format]) or "the name of a folder",
            found=out.name,
            do=f"rename it, or choose format={other[0]} (--format {other[0]})",
        )
    if format == "hub" and out.is_file():
        raise ConfigError("The output is a file.", expected="a folder, or a free name", found=out)
    check_free([out / name for name in FILES] if format == "hub" else [out], overwrite=overwrite)
    if format == "onnx":
        require_onnx()


def _check_finite(state: State) -> None:
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ConfigError(
            "The backbone holds values that are not finite: its training diverged.",
            found=f"{len(broken)} of {len(state)} tensors, the first {broken[0]}",
            do="export an earlier checkpoint",
        )


class UnknownNetwork(ConfigError):
    """The format needs the network itself, and there are only weights."""


def _unknown_network(format: str, source: Source) -> UnknownNetwork:
    saved = source.hyper.get("backbone")
    return UnknownNetwork(
        f"The network has to be built for {format}, and nothing says what it is.",
        expected="hyper-parameters of a rela_lightning method, or `architecture`",
        found=f"backbone={saved!r}, which the weights do not fit" if saved else "weights alone",
        do="pass architecture='resnet50', 'timm:vit_small_patch16_224', 'lightly:resnet-18' or the network itself",
    )


def _metadata(key: str, recipe: Recipe | None, missing: Sequence[str], inputs: Inputs) -> dict[str, str]:
    """What is stored beside the tensors: strings only, as safetensors and ONNX want them."""
    found = {"format": "pt", "key": key, "rela_lightning": versions()["rela-lightning"]}
    if recipe is not None:
        found |= {
            "backbone": recipe.name,
            "backbone_kwargs": json.dumps(recipe.kwargs, default=str),
            "cifar_stem": str(recipe.cifar_stem).lower(),
            "left_out": ", ".join(missing),
        }
    for name, value in (("image_size", inputs.size), ("mean", inputs.mean), ("std", inputs.std)):
        found[name] = "unknown" if value is None else json.dumps(value)
    return found
