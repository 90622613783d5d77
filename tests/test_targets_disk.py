"""A full disk, a place that cannot be written, names that cannot be: a named error, and nothing whole is lost."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from rela_lightning import build_targets
from rela_lightning.cli import main
from rela_lightning.errors import TargetError
from rela_lightning.targets import TargetStore, assemble, writer
from rela_lightning.targets.claim import HOME
from rela_lightning.targets.partial import partial_folder
from rela_lightning.targets.shards import Shape, find_shards, pass_bytes
from tests.test_targets import Digits, pixel_prior
from tests.test_targets_folders import names

resource = pytest.importorskip("resource")


@pytest.fixture(scope="module")
def prior():
    return pixel_prior()


@pytest.fixture
def largest_file():
    """Set the size from which the operating system refuses to write a file on: as a full disk, but real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_rows_that_do_not_fit_are_a_named_error_and_the_pass_goes_on_later(tmp_path, prior, largest_file):
    old, calls = build_targets(prior, Digits(), tmp_path / "t"), prior.network.calls
    largest_file(9000)
    with pytest.raises(TargetError, match=r"Files of this size[\s\S]*File too large, at .*t[\s\S]*the rows so far"):
        build_targets(prior, Digits(200), tmp_path / "t", batch_size=16, overwrite=True)
    largest_file(resource.RLIM_INFINITY)
    assert TargetStore(tmp_path / "t").fingerprint == old.fingerprint
    (kept,) = find_shards(partial_folder(tmp_path / "t"), Shape(1, 20))
    assert kept.count == 112 and prior.network.calls < calls + 200  # 112 rows of 80 bytes are seven batches
    calls = prior.network.calls
    assert len(build_targets(prior, Digits(200), tmp_path / "t", batch_size=16, overwrite=True)) == 200
    assert prior.network.calls == calls + 200 - 112 + 32 and names(tmp_path) == ["t"]


def test_a_store_that_does_not_fit_is_a_named_error_and_the_rows_are_kept(tmp_path, prior, largest_file):
    old = build_targets(prior, Digits(), tmp_path / "t")
    rows = (tmp_path / "t" / "targets.npy").read_bytes()
    largest_file(200 * 80 + 50)  # the rows fit, the same rows with a header do not
    with pytest.raises(TargetError, match="Files of this size"):
        build_targets(prior, Digits(200), tmp_path / "t", storage_dtype="float32", overwrite=True)
    largest_file(resource.RLIM_INFINITY)
    assert TargetStore(tmp_path / "t").fingerprint == old.fingerprint
    assert (tmp_path / "t" / "targets.npy").read_bytes() == rows
    calls = prior.network.calls
    assert len(build_targets(prior, Digits(200), tmp_path / "t", storage_dtype="float32", overwrite=True)) == 200
    assert prior.network.calls == calls + 32 and names(tmp_path) == ["t"]


def refuse(number):
    def raises(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return raises


@pytest.mark.parametrize("step", [(writer.ShardWriter, "append"), (assemble, "_write_rows"), (Path, "rename")])
@pytest.mark.parametrize(
    "number, says",
    [
        (errno.ENOSPC, r"The disk is full\.\n  expected: \d+\.\d kB in all\n  found: .*No space.* kB|B free\)"),
        (errno.EDQUOT, "Your share of the disk is full"),
        (errno.EROFS, r"can only be read[\s\S]*that you may write to"),
        (errno.EIO, r"cannot be written[\s\S]*Input/output error"),
    ],
)
def test_what_the_system_refuses_is_named_and_the_old_targets_stay(tmp_path, prior, monkeypatch, step, number, says):
    build_targets(prior, Digits(), tmp_path / "t")
    before = [(tmp_path / "t" / name).read_bytes() for name in names(tmp_path / "t")]
    with monkeypatch.context() as patch, pytest.raises(TargetError, match=says):
        patch.setattr(*step, refuse(number))
        build_targets(prior, Digits(), tmp_path / "t", target_dim=3, overwrite=True)
    assert [(tmp_path / "t" / name).read_bytes() for name in names(tmp_path / "t")] == before
    assert build_targets(prior, Digits(), tmp_path / "t", target_dim=3, overwrite=True).dim == 3


def test_a_pass_that_cannot_fit_is_refused_before_it_runs(tmp_path, prior, monkeypatch):
    need, calls = pass_bytes(200, Shape(1, 20)), prior.network.calls
    assert need == 200 * (20 * 4 + 8 * 4 + 4 + 8)  # features; row, size, crop; where it is
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, need - 1))
    with pytest.raises(TargetError, match=r"too little space[\s\S]*expected: 24\.8 kB free at .*t\n  found: +24\.8 kB"):
        build_targets(prior, Digits(200), tmp_path / "t")
    assert prior.network.calls == calls and not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, need))
    assert len(build_targets(prior, Digits(200), tmp_path / "t")) == 200


BAD_PLACES = {
    "no such place": ("/proc/rela/t", "cannot be written"),
    "below a file": ("file/t", "A part of the path is a file"),
    "far below a file": ("file/a/b/t", "A part of the path is a file"),
    "a long name": ("n" * 300, "too long"),
    "a long parent": ("n" * 300 + "/t", "too long"),
    "a disk of its own": ("/proc", "something else"),
    "our hidden folder": (f"{HOME}/t", "is for working files"),
}


@pytest.mark.parametrize("name", BAD_PLACES)
def test_a_place_that_cannot_be_is_refused_before_the_pass(tmp_path, prior, monkeypatch, name):
    path, says = BAD_PLACES[name]
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    calls = prior.network.calls
    for overwrite in (False, True):
        with pytest.raises(TargetError, match=says):
            build_targets(prior, Digits(), path, overwrite=overwrite)
    assert prior.network.calls == calls and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_must_not_be_written_is_refused_before_the_pass(tmp_path, prior, monkeypatch):
    build_targets(prior, Digits(), tmp_path / "t")
    (tmp_path / "empty").mkdir()
    calls, mkdir = prior.network.calls, Path.mkdir

    def guarded(self, *args, **kwargs):  # as `chmod a-w` on the parent does to all but root
        if tmp_path in self.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        mkdir(self, *args, **kwargs)

    for patch in ((os, "access", lambda *args, **kwargs: False), (Path, "mkdir", guarded)):
        with monkeypatch.context() as patched:
            patched.setattr(*patch)
            for name in ("t", "empty"):
                with pytest.raises(TargetError, match=r"must not be written[\s\S]*Permission denied \(.*\)"):
                    build_targets(prior, Digits(), tmp_path / name, overwrite=True)
            assert len(build_targets(prior, Digits(), tmp_path / "t")) == 40  # reading needs no such right
    assert prior.network.calls == calls


@pytest.mark.parametrize("where", ["/proc/rela/t", "file/t", "images"])
def test_the_command_says_so_in_a_few_lines(tmp_path, monkeypatch, capsys, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.txt").write_text("mine")
    prior = ["--prior=random:timm:resnet10t", "--prior_kwargs={image_size: 32, mean: 0.5, std: 0.5}"]
    assert main(["targets", *prior, "--data=DigitsData", f"--path={where}", "--overwrite=true"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("rela: ") and "hint:" in message and "t" in message
    if where != "/proc/rela/t":  # known before the prior is even looked for
        assert main(["targets", "--prior=timm:none", "--data=DigitsData", f"--path={where}"]) == 2
        assert message == capsys.readouterr().err
    assert (tmp_path / "images" / "a.txt").read_text() == "mine"
