"""Files that are not ours survive every kind of call, at, beside and inside the path of targets."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from rela_lightning import build_targets
from rela_lightning.errors import TargetError
from rela_lightning.targets import TargetStore
from rela_lightning.targets.claim import HOME, LOCK
from rela_lightning.targets.manifest import KEYS
from rela_lightning.targets.partial import WORKING, partial_folder
from rela_lightning.targets.place import STORE_FILES
from tests.test_targets import Digits, pixel_prior

WRITTEN = tuple(name for name in STORE_FILES if name != KEYS)
"""The files of targets by row."""


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


class Fragile(Digits):
    """Fails in the middle of the pass, once."""

    def __getitem__(self, row):
        if self.fail_at is not None and len(self.reads) > self.fail_at:
            raise Killed
        return super().__getitem__(row)


@pytest.fixture(scope="module")
def prior():
    return pixel_prior()


def tree(folder):
    """Every file and folder below, with a hash of what is in it; links as they are."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = str(path.readlink()) if path.is_symlink() else "" if path.is_dir() else path.read_bytes().hex()
        found[str(path.relative_to(folder))] = hashlib.sha256(content.encode()).hexdigest()
    return found


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def write(folder, *files):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")


def surround(folder):
    """Files of a user with names that this package, or an earlier version of it, could take for its own."""
    write(folder, *(f"{beside}/{name}" for beside in ("t.old", "t.partial") for name in (*STORE_FILES, *WORKING)))
    write(folder, "t.txt", "new/a", "old/a", "ready/a", "lock", LOCK, "fields.json", "rows-00000.bin", ".t/a", "T2/a")
    return tree(folder)


def kill_at_rename(monkeypatch, number):
    """End at the rename of this number, before it is done; a list of how many there were."""
    rename, done = Path.rename, []

    def counted(self, target):
        if len(done) == number:
            raise Killed
        done.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", counted)
    return done


@pytest.mark.slow
def test_files_beside_the_targets_survive_every_kind_of_call(tmp_path, prior, monkeypatch):
    mine, dataset = surround(tmp_path), Fragile(200)

    def unharmed(*also):
        now = tree(tmp_path)
        assert {name: now.get(name) for name in mine} == mine
        top = {Path(name).parts[0] for name in now} - {Path(name).parts[0] for name in mine}
        assert top == set(also)

    dataset.fail_at = 140  # 73 reads are the sample
    with pytest.raises(Killed):
        build_targets(prior, dataset, tmp_path / "t", batch_size=16)
    unharmed(HOME)
    dataset.fail_at = None
    build_targets(prior, dataset, tmp_path / "t", batch_size=16)  # resumed
    unharmed("t")
    build_targets(prior, dataset, tmp_path / "t")  # repeated
    with pytest.raises(TargetError, match="another target_dim"):
        build_targets(prior, dataset, tmp_path / "t", target_dim=3)
    unharmed("t")
    dataset.fail_at = len(dataset.reads) + 140
    with pytest.raises(Killed):
        build_targets(prior, dataset, tmp_path / "t", batch_size=16, overwrite=True)
    unharmed("t", HOME)
    dataset.fail_at = None
    with monkeypatch.context() as patch:
        kill_at_rename(patch, 2)
        with pytest.raises(Killed):
            build_targets(prior, dataset, tmp_path / "t", target_dim=3, overwrite=True)
    unharmed("t", HOME)
    assert build_targets(prior, dataset, tmp_path / "t", target_dim=3, overwrite=True).dim == 3
    unharmed("t")
    assert names(tmp_path / "t") == sorted(WRITTEN)


def a_file(path, store):
    path.write_text("mine")


def a_folder(path, store):
    write(path, "images/a.png", "notes.txt")


def an_empty_folder_inside(path, store):
    (path / "empty").mkdir(parents=True)


def names_of_ours(path, store):
    write(path, *STORE_FILES)


def another_manifest(path, store):
    path.mkdir()
    (path / "manifest.json").write_text(json.dumps({"name": "web app", "settings": {}, "fingerprint": 1}))


def rows_alone(path, store):
    path.mkdir()
    shutil.copy(store / "targets.npy", path)


def a_link_to_a_folder(path, store):
    write(path.parent / "elsewhere", "a.txt")
    path.symlink_to(path.parent / "elsewhere")


def a_link_to_itself(path, store):
    path.symlink_to(path)


FOREIGN = [a_file, a_folder, an_empty_folder_inside, names_of_ours, another_manifest, rows_alone]
FOREIGN += [a_link_to_a_folder, a_link_to_itself]


@pytest.fixture(scope="module")
def built(tmp_path_factory, prior):
    return build_targets(prior, Digits(), tmp_path_factory.mktemp("built") / "t").path


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_not_ours_at_the_path_is_refused_by_name(tmp_path, prior, built, what, overwrite):
    what(tmp_path / "t", built)
    before, calls, dataset = tree(tmp_path), prior.network.calls, Digits()
    with pytest.raises(TargetError, match=r"something else at .*; it is left as it is[\s\S]*hint:"):
        build_targets(prior, dataset, tmp_path / "t", overwrite=overwrite)
    assert tree(tmp_path) == before and prior.network.calls == calls and not dataset.reads


def a_file_inside(store):
    write(store, "notes.txt")


def a_folder_inside(store):
    write(store, "images/a.png")


def a_link_inside(store):
    (store / "targets.npy").rename(store.parent / "rows-of-mine.npy")
    (store / "targets.npy").symlink_to(store.parent / "rows-of-mine.npy")


@pytest.mark.parametrize("what", [a_file_inside, a_folder_inside, a_link_inside])
def test_targets_with_files_of_the_user_are_read_and_not_replaced(tmp_path, prior, built, what):
    shutil.copytree(built, tmp_path / "t")
    what(tmp_path / "t")
    before, calls = tree(tmp_path), prior.network.calls
    assert len(build_targets(prior, Digits(), tmp_path / "t")) == 40  # as it is
    with pytest.raises(TargetError, match=r"more than targets[\s\S]*found: +(notes\.txt|images|targets\.npy)\n"):
        build_targets(prior, Digits(), tmp_path / "t", overwrite=True)
    assert tree(tmp_path) == before and prior.network.calls == calls


@pytest.mark.parametrize("path", [".", "", "..", "/", "~", "../t/", "./"])
def test_folders_in_use_are_refused_however_they_are_written(tmp_path, prior, monkeypatch, path):
    write(tmp_path, "t/a.txt", "t/in/b.txt")
    monkeypatch.chdir(tmp_path / "t" / ("in" if path == ".." else ""))
    monkeypatch.setenv("HOME", str(tmp_path / "t"))
    before = tree(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(TargetError, match="something else"):
            build_targets(prior, Digits(), path, overwrite=overwrite)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("path", ["t", "t/", "./t", "missing/deeper/t", "empty", ".", "link"])
def test_a_free_place_is_built_in_and_the_folder_stays_the_users(tmp_path, prior, monkeypatch, path):
    for name in ("empty", "in"):
        (tmp_path / name).mkdir(mode=0o750)
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "in" if path == "." else tmp_path)
    before = (tmp_path / "empty").stat(), (tmp_path / "in").stat()
    for overwrite in (False, True):
        assert len(build_targets(prior, Digits(), path, overwrite=overwrite)) == 40
    assert names(path) == sorted(WRITTEN)
    for name, was in zip(("empty", "in"), before, strict=True):
        assert ((tmp_path / name).stat().st_ino, (tmp_path / name).stat().st_mode) == (was.st_ino, was.st_mode)
    assert (tmp_path / "link").is_symlink() and not list(tmp_path.rglob(HOME))


@pytest.mark.parametrize("what", ["a.txt", "t/rows-00000.bin", "other/a.txt", None])
def test_a_hidden_folder_of_somebody_else_is_refused(tmp_path, prior, what):
    write(tmp_path, HOME if what is None else f"{HOME}/{what}")
    before = tree(tmp_path)
    with pytest.raises(TargetError, match=r"\.rela_lightning is for the working files[\s\S]*nothing here was changed"):
        build_targets(prior, Digits(), tmp_path / "t")
    assert tree(tmp_path) == before


def test_a_file_put_into_the_working_folder_stays_there(tmp_path, prior):
    dataset = Fragile(200)
    dataset.fail_at = 140
    with pytest.raises(Killed):
        build_targets(prior, dataset, tmp_path / "t", batch_size=16)
    write(partial_folder(tmp_path / "t"), "notes.txt", "old-plans/a.txt")
    dataset.fail_at = None
    for length in (200, 150):  # resumed, then begun again
        build_targets(prior, dataset if length == 200 else Digits(150), tmp_path / "t", overwrite=length == 150)
        left = sorted(tree(partial_folder(tmp_path / "t")))
        assert left == [LOCK, "notes.txt", "old-plans", "old-plans/a.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("old", [True, False])
def test_a_kill_at_any_step_of_publishing_loses_neither_store(tmp_path, prior, monkeypatch, old):
    first = build_targets(prior, Digits(), tmp_path / "first")
    wanted = build_targets(prior, Digits(), tmp_path / "wanted", target_dim=3)
    steps = 1 + len(WRITTEN) * (2 if old else 1)
    for number in range(steps + 1):
        path, calls = tmp_path / f"{number}" / "t", prior.network.calls
        if old:
            shutil.copytree(first.path, path)
        with monkeypatch.context() as patch:
            done = kill_at_rename(patch, number)
            if number == steps:
                build_targets(prior, Digits(), path, target_dim=3, overwrite=True)
            else:
                with pytest.raises(Killed):
                    build_targets(prior, Digits(), path, target_dim=3, overwrite=True)
        assert len(done) == number and prior.network.calls == calls + 72
        committed = number > steps - 1 - len(WRITTEN)
        if old and not committed:  # the old ones are whole again at the next call, the rows of the new ones are kept
            assert torch.equal(build_targets(prior, Digits(), path)[torch.arange(40)], first[torch.arange(40)])
        again = build_targets(prior, Digits(), path, target_dim=3, overwrite=old and not committed)
        assert tree(again.path).keys() == tree(wanted.path).keys()
        assert (path / "targets.npy").read_bytes() == (wanted.path / "targets.npy").read_bytes()
        assert prior.network.calls == calls + (72 if committed else 104) and names(path.parent) == ["t"]


def test_a_file_that_came_while_publishing_was_interrupted_stays(tmp_path, prior, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at_rename(patch, 2)
        with pytest.raises(Killed):
            build_targets(prior, Digits(), tmp_path / "t")
    write(tmp_path, "t/manifest.json")
    with pytest.raises(TargetError, match=r"in the place of a file[\s\S]*manifest\.json[\s\S]*move what is there away"):
        build_targets(prior, Digits(), tmp_path / "t")
    assert (tmp_path / "t" / "manifest.json").read_text() == "mine: t/manifest.json"
    (tmp_path / "t" / "manifest.json").unlink()
    calls = prior.network.calls
    assert len(build_targets(prior, Digits(), tmp_path / "t")) == 40 and prior.network.calls == calls


def test_targets_of_the_first_format_count_as_ours_and_so_do_broken_ones(tmp_path, prior, built):
    shutil.copytree(built, tmp_path / "t")
    manifest = json.loads((tmp_path / "t" / "manifest.json").read_text())
    assert (manifest.pop("made_by"), len(manifest.pop("sum"))) == ("rela_lightning", 64)
    manifest["settings"]["format_version"] = 1
    (tmp_path / "t" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "t" / "targets.npy").write_bytes(b"cut short")
    with pytest.raises(TargetError, match="overwrite=True"):
        TargetStore(tmp_path / "t")
    assert len(build_targets(prior, Digits(), tmp_path / "t", overwrite=True)) == 40
