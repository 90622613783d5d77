"""A folder that model hubs and `timm.create_model("local-dir:...")` read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from rela_lightning.errors import ConfigError
from rela_lightning.export.architecture import Plain, timm_name
from rela_lightning.export.card import loading_code, model_card, text
from rela_lightning.export.inputs import Inputs
from rela_lightning.files import write_whole
from rela_lightning.networks.encode import measure_feature_dim

FILES = ("model.safetensors", "README.md", "config.json")


def config(plain: Plain, timm: str | None, inputs: Inputs, width: int, versions: dict[str, str]) -> dict[str, Any]:
    """What `config.json` holds: timm's fields where a timm model takes the weights, and always our own.

    Args:
        plain: The network and its recipe.
        timm: Name of the timm model, or None.
        inputs: What it takes; what is unknown is left out.
        width: Width F of its features.
        versions: Library to version.
    """
    recipe = plain.recipe
    known = {"mean": inputs.mean, "std": inputs.std, "image_size": inputs.size}
    own: dict[str, Any] = {
        "backbone": recipe.name if recipe else None,
        "backbone_kwargs": recipe.kwargs if recipe else {},
        "cifar_stem": recipe.cifar_stem if recipe else False,
        "class": f"{type(plain.network).__module__}.{type(plain.network).__qualname__}",
        "in_channels": inputs.channels,
        **{name: value for name, value in known.items() if value is not None},
        "versions": versions,
    }
    if timm is None or recipe is None:
        return {"num_features": width, "rela_lightning": own}
    pretrained: dict[str, Any] = {"num_classes": 0, "custom_load": False}
    pretrained |= {name: list(known[name]) for name in ("mean", "std") if known[name] is not None}  # type: ignore[arg-type]
    if inputs.size is not None:
        pretrained |= {"input_size": [inputs.channels, inputs.size, inputs.size]}
    return {
        "architecture": timm,
        "num_classes": 0,
        "num_features": width,
        "model_args": recipe.kwargs,
        "pretrained_cfg": pretrained,
        "rela_lightning": own,
    }


def write_hub(
    folder: Path,
    plain: Plain,
    inputs: Inputs,
    facts: dict[str, Any],
    *,
    missing: list[str],
    metadata: dict[str, str],
    versions: dict[str, str],
) -> None:
    """Write weights, card and configuration; the configuration comes last.

    Args:
        folder: Made if missing; other files in it stay.
        plain: The network with the weights, and its recipe.
        inputs: What the network takes.
        facts: What the card states.
        missing: Names that the library's own network has and the weights have not.
        metadata: Stored with the weights.
        versions: Library to version.

    Raises:
        ConfigError: If the options the network was built with cannot be written as JSON.
    """
    network, recipe, state = plain
    if network is None:
        raise ConfigError("A hub folder needs the network, not its weights alone.", do="pass `architecture`")
    timm, width = timm_name(plain), measure_feature_dim(network)
    try:
        written = json.dumps(config(plain, timm, inputs, width, versions), indent=2)
    except TypeError as error:
        raise ConfigError(
            "The backbone's options cannot be written as JSON.",
            expected="numbers, strings, lists and dicts",
            found=str(error),
            do="build the backbone yourself and pass it as `architecture`",
        ) from error
    name = recipe.name if recipe else type(network).__name__
    rows = [
        ("backbone", text(name) + (", 3x3 stem for small images" if recipe and recipe.cifar_stem else "")),
        ("parameters", f"{sum(parameter.numel() for parameter in network.parameters()):,}"),
        ("features", str(width)),
        ("left out", ", ".join(missing) or "nothing"),
    ]
    method = facts.get("method")
    card = model_card(
        f"{name.rpartition(':')[2]}, {method}" if isinstance(method, str) else name,
        facts,
        inputs,
        loading_code(recipe, missing, timm=timm, weights=FILES[0]),
        network=rows if recipe else rows[:-1],
        versions=versions,
        timm=timm,
        folder=folder.absolute().name,
    )
    write_whole(folder / FILES[0], lambda file: save_file(state, file, metadata))
    write_whole(folder / FILES[1], lambda file: file.write_text(card, encoding="utf-8"))
    write_whole(folder / FILES[2], lambda file: file.write_text(written + "\n", encoding="utf-8"))
