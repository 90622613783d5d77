"""Image towers of OpenCLIP (github.com/mlfoundations/open_clip)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from rela_lightning.networks.build import Built, unknown
from rela_lightning.networks.preprocess import Fit, Preprocess

_FITS: dict[str, Fit] = {"shortest": "shortest", "longest": "longest", "squash": "squash"}
_HOSTED = ("hf-hub:", "local-dir:")


def build(name: str, *, pretrained: bool, image_size: int | None = None, **kwargs: Any) -> Built:
    """Image tower of a CLIP model; the text tower is dropped.

    Args:
        name: `<arch>/<tag>`, such as `ViT-B-16/openai`, or `hf-hub:<org>/<repo>`, or
            `local-dir:<folder>`. The tag may be left out for an untrained network.
        pretrained: Load the weights of the tag.
        image_size: Side of the images, in pixels; position embeddings are resized to it.
        kwargs: For `open_clip.create_model`, such as `cache_dir`.
    """
    import open_clip

    hosted = name.startswith(_HOSTED)
    arch, _, tag = (name, "", "") if hosted else name.partition("/")
    if not hosted:
        _check(arch, tag, pretrained)
    weights: dict[str, Any] = {"pretrained": tag or None, "load_weights": pretrained}
    if pretrained:
        weights["require_pretrained"] = True
    else:
        weights.update(pretrained=None, pretrained_image=False, pretrained_text=False)
    config = (open_clip.get_pretrained_cfg(arch, tag) if tag else None) or {}
    if config.get("quick_gelu"):  # the activation these weights were trained with
        kwargs.setdefault("force_quick_gelu", True)
    if image_size is not None:
        kwargs.setdefault("force_image_size", image_size)
    with _own_logs():
        model: nn.Module = open_clip.create_model(arch, **weights, **kwargs)
    settings = {
        **open_clip.get_model_preprocess_cfg(model),
        **_present(config, "mean", "std", "interpolation", "resize_mode"),
    }
    return Built(model.get_submodule("visual"), _preprocess(settings))


def _preprocess(settings: dict[str, Any]) -> Preprocess:
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    return Preprocess(
        (int(height), int(width)),
        tuple(float(v) for v in settings["mean"]),
        tuple(float(v) for v in settings["std"]),
        interpolation=settings.get("interpolation") or "bicubic",
        fit=_FITS[settings.get("resize_mode") or "shortest"],
    )


def _check(arch: str, tag: str, pretrained: bool) -> None:
    import open_clip

    if arch not in open_clip.list_models():
        raise unknown("OpenCLIP architecture", arch, open_clip.list_models(), do="write open_clip:<arch>/<tag>")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if pretrained and not _is_tag(tag, tags):
        raise unknown(f"OpenCLIP weights for {arch}", tag, tags, do=f"write open_clip:{arch}/<tag>")


def _is_tag(tag: str, tags: list[str]) -> bool:
    from pathlib import Path

    return tag.lower() in {known.lower() for known in tags} or (bool(tag) and Path(tag).is_file())


def _present(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: settings[key] for key in keys if settings.get(key) is not None}


@contextmanager
def _own_logs() -> Iterator[None]:
    """Keep OpenCLIP, which logs through the root logger, from installing a handler there for good."""
    root, quiet = logging.getLogger(), logging.NullHandler()
    root.addHandler(quiet)
    try:
        yield
    finally:
        root.removeHandler(quiet)
