"""Open image files, and find those that cannot be opened, once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import IO

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image
from torch import hub

from rela_lightning.data.eight_bit import eight_bit
from rela_lightning.files import write_whole

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What PIL raises for files that are no images, or broken ones."""
ORIENTATION = 0x0112
"""EXIF's tag of how a picture is turned."""
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes each orientation upright; `ImageOps.exif_transpose` fails on tags that it cannot write again."""
_BLOCK = 4096


def open_rgb(source: Path | IO[bytes]) -> Image.Image:
    """Decode an image file as 8-bit RGB, upright: turned and mirrored as its EXIF says.

    Modes are converted as `eight_bit` has it. Of an animation the first picture is read.

    Args:
        source: Its path, or the open file, which is left open.

    Raises:
        OSError: Or another of `UNREADABLE`, if it cannot be decoded.
    """
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        opened = Image.open(file)
        image = eight_bit(opened)
        image.load()  # also turns what Pillow turns by itself (TIFF)
        turn = _TURNS.get(opened.getexif().get(ORIENTATION, 1))
        return (image if turn is None else image.transpose(turn)).convert("RGB")


def unreadable(root: Path, names: Sequence[str]) -> set[str]:
    """Those of the files `root/name` that cannot be decoded.

    Each file is decoded once. The answer is kept in `rela_lightning/readable` beside torch.hub's folder (below
    `$TORCH_HOME`, or `~/.cache/torch`), for as long as names, sizes and times of change stay the same: later runs and
    other processes read it there, so that they all leave out the same rows.

    Args:
        root: Folder.
        names: File names relative to it.

    Returns:
        The names of unreadable files.
    """
    file = Path(hub.get_dir()).parent / "rela_lightning" / "readable" / f"{_key(root, names)}.json"
    if file.is_file():
        return set(json.loads(file.read_text(encoding="utf-8"))["unreadable"])
    rank_zero_info(f"Decoding all {len(names)} images under {root} once, to leave out unreadable ones.")
    broken: list[str] = []
    remaining = iter(names)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while block := list(islice(remaining, _BLOCK)):
            readable = pool.map(lambda name: _decodes(root / name), block)
            broken.extend(name for name, fine in zip(block, readable, strict=True) if not fine)
    try:
        content = json.dumps({"root": str(root), "images": len(names), "unreadable": broken})
        write_whole(file, lambda part: part.write_text(content, encoding="utf-8"))
    except OSError as error:
        rank_zero_warn(f"The list of unreadable images could not be kept; it is made again next time: {error}")
    return set(broken)


def _decodes(path: Path) -> bool:
    try:
        open_rgb(path)
    except UNREADABLE:
        return False
    return True


def _key(root: Path, names: Sequence[str]) -> str:
    digest = hashlib.sha256(os.fsencode(root.resolve()))
    for name in names:
        try:
            state = (root / name).stat()
        except OSError:  # a link to nothing
            digest.update(os.fsencode(f"{name}|\n"))
        else:
            digest.update(os.fsencode(f"{name}|{state.st_size}|{state.st_mtime_ns}\n"))
    return digest.hexdigest()[:32]
