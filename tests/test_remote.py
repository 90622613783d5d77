"""Targets and exports at a URL: copied whole, once, and nothing of others replaced."""

from __future__ import annotations

import fsspec
import lightning.pytorch as L
import pytest
import torch
from safetensors.torch import load_file

from rela_lightning import ReLACallback, TargetStore, build_targets
from rela_lightning.errors import ConfigError, TargetError
from rela_lightning.export import export_backbone
from rela_lightning.methods import BYOL
from rela_lightning.schedules import TransportOnly
from tests.modules import byol
from tests.ranks import succeeded
from tests.test_callback import Log, fit, seeded
from tests.test_streams import Shards, prior, write_shards
from tests.test_targets import Digits, pixel_prior


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of its own, where copies lie."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    memory = fsspec.filesystem("memory")
    yield tmp_path / "home"
    for path in memory.find(""):
        memory.rm_file(path)


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    return "memory://bucket/targets/a" if request.param == "memory" else f"file://{tmp_path}/remote/targets/a"


def names(url: str) -> list[str]:
    system, root = fsspec.core.url_to_fs(url)
    return sorted(str(path).rpartition("/")[2] for path in system.find(root))


def put(url: str, content: bytes = b"mine") -> None:
    with fsspec.open(url, "wb", auto_mkdir=True) as file:
        file.write(content)


def get(url: str) -> bytes:
    with fsspec.open(url, "rb") as file:
        return file.read()


WRITTEN = ["manifest.json", "projection.safetensors", "targets.npy"]


def test_targets_at_a_url_are_those_of_a_folder(tmp_path, url, home):
    network = pixel_prior()
    alone = build_targets(network, Digits(), tmp_path / "t")
    made = build_targets(network, Digits(), url)
    assert names(url) == WRITTEN and get(f"{url}/targets.npy") == (alone.path / "targets.npy").read_bytes()
    assert torch.equal(made[torch.arange(40)], alone[torch.arange(40)])
    calls = network.network.calls
    again = build_targets(network, Digits(), url)
    assert network.network.calls - calls < 40 and again.fingerprint == made.fingerprint, "no second pass"
    with pytest.raises(TargetError, match="another data set length"):
        build_targets(network, Digits(30), url)


def test_another_machine_copies_them_once_and_anew_when_they_change(tmp_path, url, monkeypatch):
    build_targets(pixel_prior(), Digits(), url)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "elsewhere"))
    first = TargetStore(url)
    assert tmp_path / "elsewhere" in first.path.parents and len(first) == 40
    before = (first.path / "targets.npy").stat().st_mtime_ns
    assert TargetStore(f"{url}/").path == first.path == TargetStore(url).path
    assert (first.path / "targets.npy").stat().st_mtime_ns == before
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    build_targets(pixel_prior(), Digits(50), url, overwrite=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "elsewhere"))
    assert len(TargetStore(url)) == 50 and len(first) == 40 and torch.isfinite(first[[39]]).all()


def test_an_incomplete_copy_is_made_again(tmp_path, url, monkeypatch):
    build_targets(pixel_prior(), Digits(), url)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "elsewhere"))
    rows = get(f"{url}/targets.npy")
    fsspec.core.url_to_fs(url)[0].rm_file(fsspec.core.url_to_fs(f"{url}/targets.npy")[1])
    with pytest.raises(TargetError, match="incomplete"):
        TargetStore(url)
    put(f"{url}/targets.npy", rows)
    assert len(TargetStore(url)) == 40, "what was incomplete is not kept"


def test_an_upload_that_was_interrupted_goes_on_without_a_pass(url, monkeypatch):
    from rela_lightning.remote import Remote

    network, upload = pixel_prior(), Remote.upload

    def failing(remote, file, name):
        if name == "projection.safetensors":
            raise OSError("the network went away")
        upload(remote, file, name)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "upload", failing)
        with pytest.raises(OSError, match="went away"):
            build_targets(network, Digits(), url)
    with pytest.raises(TargetError, match="no target store at this URL"):
        TargetStore(url)
    calls = network.network.calls
    build_targets(network, Digits(), url)
    assert names(url) == WRITTEN and network.network.calls - calls < 40


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_stays(url, overwrite):
    put(f"{url}/targets.npy")
    with pytest.raises(TargetError, match=r"something else at[\s\S]*targets.npy"):
        build_targets(pixel_prior(), Digits(), url, overwrite=overwrite)
    assert get(f"{url}/targets.npy") == b"mine" and names(url) == ["targets.npy"]


def test_a_file_beside_targets_keeps_them_from_being_replaced(url):
    build_targets(pixel_prior(), Digits(), url)
    put(f"{url}/notes.txt")
    assert len(build_targets(pixel_prior(), Digits(), url)) == 40
    before = get(f"{url}/manifest.json")
    with pytest.raises(TargetError, match=r"something else at[\s\S]*notes.txt"):
        build_targets(pixel_prior(), Digits(50), url, overwrite=True)
    assert get(f"{url}/manifest.json") == before and get(f"{url}/notes.txt") == b"mine"


def test_keys_go_along_and_leave_again(tmp_path, url):
    shards = write_shards(tmp_path)
    build_targets(prior(), Shards(shards), url)
    assert names(url) == sorted([*WRITTEN, "keys.npy"])
    assert TargetStore(url).rows_of(["digits/00003"]).shape == (1,)
    build_targets(pixel_prior(), Digits(), url, overwrite=True)
    assert names(url) == WRITTEN and not TargetStore(url).keyed


def test_a_url_that_cannot_be_read_says_what_to_do():
    with pytest.raises(TargetError, match=r"no target store at this URL[\s\S]*memory://bucket/none"):
        TargetStore("memory://bucket/none")
    with pytest.raises(ConfigError, match=r"cannot be opened[\s\S]*pip install s3fs"):
        TargetStore("nonsense://bucket/none")


@pytest.mark.slow
def test_training_takes_targets_from_a_url(digits64):
    url = "memory://bucket/digits"
    build_targets(prior(), digits64, url)
    log = Log()
    fit(seeded(byol), ReLACallback(url, schedule=TransportOnly()), log)
    assert all("rela/loss" in entry for entry in log.seen)


def label_on_both(url: str) -> None:
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    assert len(build_targets(pixel_prior(), Digits(), url, trainer=trainer, batch_size=4)) == 40


@pytest.mark.slow
def test_two_processes_build_and_one_copies(tmp_path, home):
    url = f"file://{tmp_path}/remote/t"
    succeeded(label_on_both, url)
    assert names(url) == WRITTEN and len(TargetStore(url)) == 40


@pytest.mark.parametrize("format", ["safetensors", "hub"])
def test_exports_go_to_a_url_and_replace_only_when_asked(tmp_path, url, format):
    torch.manual_seed(0)
    method = BYOL("lightly:resnet-9", backbone_kwargs={"width": 0.125})
    out = url if format == "hub" else f"{url}/backbone.safetensors"
    put(f"{url}/notes.txt")
    assert export_backbone(method, out, format=format) == out
    weights = f"{url}/{'model' if format == 'hub' else 'backbone'}.safetensors"
    (tmp_path / "w.safetensors").write_bytes(get(weights))
    method.backbone.load_state_dict(load_file(tmp_path / "w.safetensors"))
    put(weights)
    with pytest.raises(ConfigError, match=r"there already[\s\S]*overwrite=True"):
        export_backbone(method, out, format=format)
    assert get(weights) == b"mine"
    export_backbone(method, out, format=format, overwrite=True)
    (tmp_path / "again.safetensors").write_bytes(get(weights))
    method.backbone.load_state_dict(load_file(tmp_path / "again.safetensors"))
    assert get(f"{url}/notes.txt") == b"mine"


@pytest.mark.slow
def test_the_commands_take_urls(plain, tmp_path, monkeypatch, capsys):
    from rela_lightning.cli import main
    from tests.test_cli import DIGITS, PRIOR

    monkeypatch.chdir(tmp_path)
    assert main(["export", str(plain), f"file://{tmp_path}/out/b.safetensors"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"file://{tmp_path}/out/b.safetensors")
    assert load_file(tmp_path / "out" / "b.safetensors")
    assert main(["targets", *PRIOR, DIGITS, "--path=memory://bucket/t"]) == 0
    assert names("memory://bucket/t") == WRITTEN
