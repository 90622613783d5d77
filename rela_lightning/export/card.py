"""The model card: what is known of a backbone's making, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rela_lightning.export.architecture import Recipe
from rela_lightning.export.inputs import Inputs
from rela_lightning.runs.bill import bill_table
from rela_lightning.runs.comparison import counted_on, in_text, limits, wilson

UNKNOWN = "unknown"
_FOLDERS = re.compile(r"(?<![\w/.])~?/(?!/)(?:[^\s,/]+/)*(?=[^\s,/]+)")
_PAPER = "https://arxiv.org/abs/2405.14669"


def facts_table(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader asks, with the answer of `run.json` or `unknown`; nothing is guessed.

    Seconds are those of the whole run, accuracies of the step that was probed; where the weights are of another step,
    the row says so.

    Args:
        facts: Keys of `run.json`, and `steps_of_weights`; None counts as missing.
    """
    steps, whole = facts.get("steps_of_weights"), facts.get("steps")
    end = "" if None in (steps, whole) or steps == whole else f" (of the whole run, {whole} steps)"
    probed = facts.get("probed_steps")
    then = end if probed in (None, whole) else "" if probed == steps else f" (at {probed} steps)"
    rows = [
        ("method", facts.get("method")),
        ("prior", facts.get("prior") or ("none" if "prior" in facts else None)),
        ("training data", _data(facts.get("data"))),
        ("training images", facts.get("images")),
        ("budget", limits(facts.get("budget"))),
        ("optimizer steps", whole if steps is None else steps),
        ("epochs" + end, facts.get("epochs")),
        ("seconds, labelling included" + end, _seconds(facts.get("seconds"))),
        ("seconds of labelling", _seconds(facts.get("labelling_seconds"))),
        *((head + end, cell) for head, cell in _bill(facts)),
        ("hardware", facts.get("hardware")),
        ("linear top-1" + then, _accuracy(facts, "linear_top1")),
        ("kNN top-1" + then, _accuracy(facts, "knn_top1")),
        ("probe", _protocol(facts.get("protocol"))),
    ]
    if facts.get("top1") is not None:
        rows.append(("top-1 of the classifier trained with it" + end, _accuracy(facts, "top1")))
    return [(name, text(value)) for name, value in rows]


def text(value: Any) -> str:
    """Any JSON value in one table cell; of a file on the author's machine the name alone."""
    if value is None or value in ("", {}, []):
        return UNKNOWN
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str):
            name = value["class_path"].rsplit(".", maxsplit=1)[-1]
            options = text(value["init_args"]) if value.get("init_args") else ""
            return f"{name} ({options})" if options else name
        return ", ".join(f"{key}: {text(inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(text(inner) for inner in value)
    return _FOLDERS.sub("", " ".join(str(value).split())).replace("|", "\\|")


def _bill(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What training took, where the run kept it."""
    known = facts.get("bill") and facts.get("labelling_seconds") is not None
    table = bill_table([{"name": "", **facts}]) if known else []
    return list(zip(table[0][2:], table[1][2:], strict=True)) if table else []


def _data(data: Any) -> Any:
    """The data without what other rows of the card say, and without its place on the author's machine."""
    if not isinstance(data, Mapping):
        return data
    rest = {name: value for name, value in data.items() if name not in ("name", "root", "image_size", "mean", "std")}
    named = data.get("name")
    return rest if named is None else f"{named} ({text(rest)})" if rest else named


def _seconds(value: Any) -> Any:
    return f"{value:.1f}" if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _protocol(protocol: Any) -> Any:
    """How the accuracies were measured, in words, without the hash that tells images apart."""
    known = isinstance(protocol, Mapping) and protocol
    return in_text({name: value for name, value in protocol.items() if name != "images"}) if known else None


def _accuracy(facts: Mapping[str, Any], name: str) -> Any:
    """In percent, with the 95% interval of its validation images where their number is known."""
    value, count = facts.get(name), counted_on(facts, name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return value
    if count is None:
        return f"{100 * value:.1f}%"
    return f"{100 * value:.1f}% ± {100 * wilson(value, count):.1f} (95% interval of {count:,} images)"


def loading_code(recipe: Recipe | None, missing: Sequence[str], *, timm: str | None, weights: str) -> str:
    """Python that loads the weights strictly into the plain architecture.

    Args:
        recipe: How it is built; None for a network of the author's own.
        missing: Names that the library's own network has and the file has not.
        timm: Name of the timm model that takes the weights, or None.
        weights: The safetensors file.
    """
    load = "from safetensors.torch import load_file\n"
    fill = f'backbone.load_state_dict(load_file("{weights}"), strict=True)\nbackbone.eval()\n'
    if recipe is None:
        return load + f"\nbackbone = ...  # the network it was trained in, without heads\n{fill}"
    if recipe.source == "timm" and timm is not None:
        options = "".join(f", {name}={value!r}" for name, value in recipe.kwargs.items())
        return f'import timm\n{load}\nbackbone = timm.create_model("{timm}", num_classes=0{options})\n{fill}'
    owners = {name.rpartition(".")[0] for name in missing}
    if recipe.source == "torchvision" and not recipe.cifar_stem and len(owners) == 1:
        parent, _, child = owners.pop().rpartition(".")
        no_head = f'setattr(backbone.get_submodule("{parent}"), "{child}", nn.Identity())'
        no_head = no_head if parent else f"backbone.{child} = nn.Identity()"
        options = "".join(f", {name}={value!r}" for name, value in recipe.kwargs.items())
        return (
            f"from torch import nn\nfrom torchvision.models import get_model\n{load}\n"
            f'backbone = get_model("{recipe.model}"{options})\n'
            f"{no_head}  # no classifier\n{fill}"
        )
    options = ", cifar_stem=True" if recipe.cifar_stem else ""
    options += "".join(f", {name}={value!r}" for name, value in recipe.kwargs.items())
    return (
        f"from rela_lightning.methods import build_backbone\n{load}\n"
        f'backbone, width = build_backbone("{recipe.name}"{options})\n{fill}'
    )


def model_card(
    title: str,
    facts: Mapping[str, Any],
    inputs: Inputs,
    code: str,
    *,
    network: Sequence[tuple[str, str]],
    versions: Mapping[str, str],
    timm: str | None,
    folder: str,
) -> str:
    """The card in Markdown, with the header that model hubs read.

    Args:
        title: Heading.
        facts: Keys of `run.json`.
        inputs: What the network takes.
        code: How to load it.
        network: Rows about the network itself.
        versions: Libraries of the export, name to version.
        timm: Name of the timm model that takes the folder, or None.
        folder: Name of the folder.
    """
    size = f"{inputs.size} x {inputs.size} pixels" if inputs.size else "size unknown"
    rows = [*network, *facts_table(facts), ("images", f"{inputs.channels} channels, {size}")]
    rows.append(("normalisation", inputs.normalisation))
    header = ["---", f"library_name: {'timm' if timm else 'pytorch'}", "pipeline_tag: image-feature-extraction"]
    header += ["tags:", "- image-feature-extraction", "- self-supervised-learning", "- rela-lightning", "---"]
    lines = [*header, "", f"# {title}", "", "An image backbone without a classifier: images in, features out.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    if any(facts.get(name) is not None for name in ("linear_top1", "knn_top1")):
        lines += ["Top-1 accuracies are of a linear classifier and of nearest neighbours on the frozen features.", ""]
    lines += ["## Load", "", "```python", code.rstrip(), "```", ""]
    if timm:
        lines += ["Or with timm, from this folder or after an upload:", "", "```python"]
        lines += ["import timm", "", f'backbone = timm.create_model("local-dir:{folder}", pretrained=True)', "```", ""]
    lines += [
        "## Licence",
        "",
        "Not stated. Whoever publishes the weights chooses one: add `license:` to the header.",
        "",
    ]
    made = facts.get("versions")
    lines += ["## Versions", "", f"Trained with: {text(made)}.", ""]
    lines += [f"Exported with: {text(versions)}.", ""]
    if facts.get("prior") is not None:
        lines += ["## Method", "", f"Trained with the help of a prior by ReLA ([paper]({_PAPER})).", ""]
    return "\n".join(lines)
