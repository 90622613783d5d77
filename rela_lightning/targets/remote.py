"""Targets at a URL: read from a copy on this machine, and written from a build on it, the manifest last.

Copies and builds lie in `rela_lightning/targets` beside torch.hub's folder (below `$TORCH_HOME`, or `~/.cache/torch`).
A copy is named by the URL and the content of the manifest, so that other targets at the same URL are copied anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import hub

from rela_lightning.errors import TargetError
from rela_lightning.remote import Remote
from rela_lightning.targets.claim import Claim
from rela_lightning.targets.manifest import MADE_BY, MANIFEST, read_manifest
from rela_lightning.targets.partial import partial_folder
from rela_lightning.targets.place import STORE_FILES, made_by_us, new_folder, publish, settle

if TYPE_CHECKING:
    from rela_lightning.targets.store import TargetStore

log = logging.getLogger("rela_lightning")

UPLOADING = "rela_lightning_uploading.json"
"""The first file of an upload and the last that goes: an upload that was interrupted is known by it as ours."""


def local_copy(url: str) -> Path:
    """The folder on this machine with the targets at a URL; copied there, if they are not yet.

    Raises:
        TargetError: If there are no targets, or they cannot be read.
    """
    remote = Remote(url)
    try:
        manifest = remote.read(MANIFEST)
    except OSError as error:
        raise TargetError(
            "There is no target store at this URL.",
            expected=f"a folder with {MANIFEST}, written by build_targets",
            found=f"{url}: {type(error).__name__}",
            exists=remote.names()[:12] or None,
            do="build_targets(prior, dataset, URL) writes one",
        ) from error
    built = _built(url)
    if _content(built / MANIFEST) == manifest:
        return built
    place = _home() / f"{_name(url)}-{hashlib.sha256(manifest).hexdigest()[:16]}"
    with Claim(partial_folder(place)) as claim:
        if settle(place, claim, overwrite=False):
            return place
        claim.take(wait=True)  # processes of one machine copy once
        if not settle(place, claim, overwrite=False):
            new = new_folder(claim.folder)
            names = [name for name in remote.names() if name in STORE_FILES and name != MANIFEST]
            log.info("copying %s to %s, once", url, place)
            try:
                for name in names:
                    remote.download(name, new / name)
            except OSError as error:
                raise TargetError(
                    "The targets could not be copied to this machine.",
                    found=f"{url}: {type(error).__name__}: {error}",
                    do="call again; the copy lies below $TORCH_HOME, which needs the room",
                ) from error
            (new / MANIFEST).write_bytes(manifest)
            read_manifest(new)  # what is incomplete is not kept
            publish(claim.folder, place)
    return place


def build_at(url: str, build: Callable[[Path, bool], TargetStore], trainer: Any, *, overwrite: bool) -> TargetStore:
    """Build targets on this machine and copy them to a URL.

    Args:
        url: Where to.
        build: Builds in a folder, given whether to build again.
        trainer: Of the pass; its first process copies.
        overwrite: Whether targets of ours that are there may be replaced.

    Raises:
        TargetError: If something else is at the URL, or the trainer has processes on several machines.
    """
    if getattr(trainer, "num_nodes", 1) > 1:
        raise TargetError(
            "Targets at a URL are built on one machine.",
            expected="a trainer with num_nodes=1",
            found=f"num_nodes={trainer.num_nodes}",
            do="build in a folder that all machines share, and copy it",
        )
    remote = Remote(url)
    if _holds_targets(remote, overwrite=overwrite) and not overwrite:
        return build(local_copy(url), False)  # compares what is there with what is wanted
    store = build(_built(url), overwrite)
    if trainer is None or trainer.is_global_zero:
        _upload(store.path, remote)
    return store


def _upload(folder: Path, remote: Remote) -> None:
    log.info("copying %s to %s", folder, remote.url)
    remote.write(UPLOADING, json.dumps({"made_by": MADE_BY}).encode())
    for name in (MANIFEST, *STORE_FILES):  # without its manifest there is no store
        remote.remove(name)
    for name in STORE_FILES:
        if (folder / name).is_file():
            remote.upload(folder / name, name)
    remote.remove(UPLOADING)


def _holds_targets(remote: Remote, *, overwrite: bool) -> bool:
    """Whether whole targets of ours are at a URL; anything else is refused, by name."""
    names = remote.names()
    ours = [name for name in (MANIFEST, UPLOADING) if name in names and made_by_us(remote.read(name))]
    other = [name for name in names if name not in (*STORE_FILES, UPLOADING)]
    if (names and not ours) or (other and (overwrite or MANIFEST not in ours)):
        raise TargetError(
            f"There is something else at {remote.url}; it is left as it is.",
            expected="nothing, or targets that build_targets made, and nothing beside them",
            found="a folder with other things in it",
            exists=(other or names)[:12],
            do="give another URL",
        )
    return MANIFEST in ours and UPLOADING not in ours


def _home() -> Path:
    return Path(hub.get_dir()).parent / "rela_lightning" / "targets"


def _name(url: str) -> str:
    return hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


def _built(url: str) -> Path:
    return _home() / f"{_name(url)}-built"


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None
