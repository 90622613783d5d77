"""`rela fit --help` on one screen: our own options, and those of Lightning that most runs set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

METHODS = (
    "BYOL", "BarlowTwins", "DINO", "FineTune", "MoCoV2", "MoCoV3", "SimCLR", "SimSiam", "Supervised", "SwAV", "VICReg",
)  # fmt: skip
DATA = (
    "CIFAR100Data", "CIFAR10Data", "DigitsData", "FashionMNISTData", "HuggingFaceData", "ImageFolderData",
    "ImageNetData", "STL10Data", "TinyImageNetData",
)  # fmt: skip
"""Named here too, as importing them takes seconds."""
Group = Mapping[str, str]

_LOADING: Group = {
    "--data.batch_size N": "images in a step and process",
    "--data.num_workers N": "processes that make views",
}
_WHAT: Group = {
    "--model NAME": "{methods}; or module.Class of your own",
    "--model.backbone NAME": "resnet18, timm:<model>, lightly:<resnet>, or module.Class of your own",
    "--data NAME": "{data}; or module.Class",
    "--data.root DIR": "where its images are",
    **_LOADING,
}
TUNED: Group = {
    "START": "a run's folder or checkpoint, or a network: torchvision:resnet50/DEFAULT, timm:<model>",
    "--model.train PART": "all, or head for the classifier alone",
    "--model.backbone_rate X": "the backbone's learning rate, as a share of the classifier's; 0.1 unless given",
    "--data NAME": "the run's own data unless given; {data}; or module.Class",
    "--data.labels_per_class N": "train on so few labelled images of each class",
    **_LOADING,
}
_RELA: Group = {
    "--trainer.callbacks+ ReLACallback": "pull features to cached targets first",
    "--trainer.callbacks.targets DIR": "what `rela targets` wrote",
    "--trainer.callbacks.schedule NAME": "Plateau (the default), Switch, Blend, Mix, TransportOnly",
}
_HOW: Group = {
    "--trainer.max_epochs N": "passes over the images; or --trainer.max_steps, --trainer.max_time",
    "--trainer.devices N": "with --trainer.accelerator, --trainer.strategy, --trainer.num_nodes as in Lightning",
    "--trainer.precision P": "32-true, bf16-mixed, 16-mixed",
    "--optimizer NAME": "in place of the method's own; likewise --lr_scheduler",
    "--seed_everything N": "0 unless given",
    "--compile true": "compile the backbone and its teacher",
    "--channels_last true": "weights and images channels last in memory",
}
_RUN: Group = {
    "--name NAME": "the run's folder is runs/NAME; <method>-<data> unless given",
    "--resume RUN": "go on with a run from its last checkpoint",
    "--config FILE": "YAML with any of these options; later words change it",
    "--print_config": "all options as they would be used, as YAML; nothing is run",
}
_MORE: Group = {
    "--help all": "every option; takes half a minute",
    "--model.help NAME": "options of a method; likewise --data.help NAME",
    "--trainer.callbacks.help NAME": "options of a callback, as ReLACallback",
}
GROUPS: Mapping[str, Group] = {
    "What is trained": _WHAT,
    "With ReLA": _RELA,
    "How": _HOW,
    "The run": _RUN,
    "More": _MORE,
}
EVALUATED: Mapping[str, Group] = {
    "What is run": {
        **_WHAT,
        "--ckpt_path RUN": "weights: a run's folder, of which the last checkpoint is taken, or a checkpoint",
    },
    "How": {
        "--trainer.callbacks+ KNNProbe": "a callback; this one measures features in a validation",
        **{name: text for name, text in _HOW.items() if not name.startswith(("--trainer.max", "--optimizer"))},
    },
    "Files": {name: text for name, text in _RUN.items() if name not in ("--name NAME", "--resume RUN")},
    "More": _MORE,
}
"""Of `validate`, `test` and `predict`, which train nothing."""
_NARROW, _WIDE, PAGE = 36, 46, 118
"""Least and most letters of the first column, and of a page."""


def short_help(command: str, line: str) -> str:
    """The page.

    Args:
        command: `fit`, `validate`, `test`, `predict` or `finetune`.
        line: What it does.
    """
    names = {"methods": ", ".join(METHODS), "data": ", ".join(DATA)}
    tunes, resumes = command == "finetune", command in ("fit", "finetune")
    first = "START" if tunes else "--model NAME --data NAME"
    forms = [f"{first} [options]", *([] if tunes else ["--config FILE [options]"])]
    forms += ["--resume RUN [options]" if resumes else "--config RUN/config.yaml --ckpt_path RUN [options]"]
    usage = "usage: " + "\n       ".join(f"rela {command} {form}" for form in forms)
    pages = [usage, f"{line[0].upper()}{line[1:]}. Every option may also stand in a YAML file."]
    for title, group in (GROUPS if resumes else EVALUATED).items():
        shown = TUNED if tunes and group is _WHAT else group
        pages.append(rows(title, {name: text.format(**names) for name, text in shown.items()}))
    return "\n\n".join(pages) + "\n"


def wants_short_help(words: Sequence[str]) -> bool:
    """Whether the words ask for help, and not for all of it."""
    at = next((number for number, word in enumerate(words) if word in ("-h", "--help")), None)
    return at is not None and list(words[at + 1 : at + 2]) != ["all"]


def full_help(words: Sequence[str]) -> list[str]:
    """The words with `--help` for `--help all`, and likewise of a class: the parser's own help."""
    before = pairwise(["", "", *words])
    asked = [one in ("-h", "--help") or ".help=" in one or two.endswith(".help") for two, one in before]
    return [word for word, ask in zip(words, asked, strict=False) if not (ask and word == "all")]


def rows(title: str, options: Group) -> str:
    """A title, and options with their texts in two columns."""
    from textwrap import wrap

    width = min(max([_NARROW, *(len(name) + 4 for name in options)]), _WIDE)
    lines = [f"{title}:" if options else f"{title}: none"]
    for name, text in options.items():
        first, *rest = wrap(text, PAGE - width) or [""]
        lines += [f"  {name:{width - 2}}{first}".rstrip(), *(" " * width + more for more in rest)]
    return "\n".join(lines)
