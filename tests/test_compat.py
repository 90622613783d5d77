"""Private names of other packages: one test for each, which says what a new release has moved."""

from __future__ import annotations

import ast
import math
import re
from collections import OrderedDict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset

import rela_lightning
from rela_lightning import compat
from rela_lightning.cli.messages import ReadableParser
from rela_lightning.errors import ReLAError

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
TREES = [import_module(name) for name in compat.NAMESPACES]
_OURS, _HUGGING_FACE = "rela_lightning/compat.py", "fingerprint/leaves.py"  # data sets, read if they have them
both = pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)


@both
def test_timers_tell_their_limit(tree: Any) -> None:
    limited, open_ended = tree.callbacks.Timer(duration="00:00:02:00"), tree.callbacks.Timer()
    assert compat.timers([limited, open_ended, tree.callbacks.ModelCheckpoint()]) == [(limited, 120.0)]


@both
@pytest.mark.parametrize(
    "plan, length, steps",
    [
        ({"max_epochs": 3}, 8, 6),
        ({"max_epochs": 3, "max_steps": 5}, 8, 5),
        ({"max_epochs": 3}, None, math.inf),
        ({"max_epochs": 3, "max_steps": 5}, None, 5),
        ({"max_epochs": -1}, 8, math.inf),
    ],
)
def test_planned_steps(tree: Any, plan: dict[str, int], length: int | None, steps: float) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(torch.zeros(8, 2))

    class Net(tree.LightningModule):  # type: ignore[name-defined, misc]
        def on_train_start(self) -> None:
            found.append(compat.planned_steps(self.trainer))

        def training_step(self, batch: torch.Tensor) -> None:
            self.trainer.should_stop = True

        def configure_optimizers(self) -> None:
            return None

    found: list[float] = []
    loader = DataLoader(Stream() if length is None else torch.zeros(length, 2), batch_size=4)
    tree.Trainer(accelerator="cpu", barebones=True, **plan).fit(Net(), loader)
    assert found == [steps]


def linear(tree: Any) -> Any:
    """A module of either tree that trains."""

    class Net(tree.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.layer(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Net()


@both
def test_the_loaders_of_fit(tree: Any) -> None:
    trainer, loader = tree.Trainer(max_steps=1, **QUIET), DataLoader(torch.ones(4, 2))
    assert compat.training_loaders(trainer) is None
    trainer.fit(linear(tree), loader)
    combined = compat.training_loaders(trainer)
    assert combined.flattened == [loader]
    compat.show_loaders(combined, ["another"])
    assert combined.flattened == [loader] and trainer.train_dataloader == "another"


@both
def test_the_step_that_loggers_are_given(tree: Any) -> None:
    found: list[int] = []
    module = linear(tree)
    module.layer.register_forward_pre_hook(lambda *_: found.append(compat.logged_step(module.trainer)))
    trainer = tree.Trainer(max_epochs=1, accumulate_grad_batches=2, **QUIET)
    trainer.fit(module, DataLoader(torch.ones(4, 2)))
    assert found == [0, 0, 1, 1]


@both
@pytest.mark.parametrize("monitor", [None, "loss"])
def test_model_checkpoint_saves_its_best_in_a_method_of_its_own(tree: Any, tmp_path: Path, monitor: Any) -> None:
    saved = []

    class Watched(tree.callbacks.ModelCheckpoint):  # type: ignore[name-defined, misc]
        def _save_topk_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            saved.append(1)

    assert callable(getattr(Watched, compat.SAVE_BEST, None)), f"ModelCheckpoint.{compat.SAVE_BEST} has moved"

    class Net(tree.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            loss = self.layer(batch).sum()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    options = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = tree.Trainer(max_epochs=1, callbacks=[Watched(tmp_path, monitor=monitor)], **options)
    trainer.fit(Net(), DataLoader(torch.ones(4, 2)))
    assert saved, f"ModelCheckpoint does not go through {compat.SAVE_BEST} any more"


@pytest.mark.parametrize("name", compat.CLI_HOOKS)
def test_methods_of_the_command_line_that_ours_overrides(name: str) -> None:
    from lightning.pytorch.cli import LightningCLI

    assert callable(getattr(LightningCLI, name, None)), f"LightningCLI.{name} has moved: our override is never called"


def test_arguments_that_a_command_passes_on() -> None:
    from lightning.pytorch.cli import LightningCLI

    model = "lightning.pytorch.demos.boring_classes.BoringModel"
    cli = LightningCLI(args=["fit", f"--model={model}", "--trainer.fast_dev_run=1", "--trainer.accelerator=cpu"])
    assert "ckpt_path" in compat.command_arguments(cli, "fit")


def test_options_of_a_parser_and_the_parsers_of_its_commands() -> None:
    """Read in cli/messages.py, as help and messages come without torch, which compat.py imports."""
    outer, inner = ReadableParser(), ReadableParser()
    inner.add_argument("--size")
    assert outer._subcommands_action is None
    outer.add_subcommands().add_subcommand("make", inner)
    assert list(outer._subcommands_action.choices.values()) == [inner]
    assert "--size" in inner._option_string_actions and "--size" not in outer._option_string_actions


def test_a_copied_loader_has_its_own_attributes_and_iterator() -> None:
    loader = DataLoader(list(range(4)), batch_size=2, num_workers=1, persistent_workers=True)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3]]
    copied = compat.copied_loader(loader, dataset=[5, 6, 7, 8])
    assert copied._iterator is None
    assert loader._iterator is not None
    assert [batch.tolist() for batch in copied] == [[5, 6], [7, 8]]
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3]]


class Repeated:
    """Batches without an end, as of a loader that keeps its workers by never ending."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        while True:
            yield from self.batches


class KeepsOneIterator(DataLoader):
    """The way of several libraries: one iterator for all epochs, begun in the constructor."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        object.__setattr__(self, "batch_sampler", Repeated(self.batch_sampler))
        self.iterator = super().__iter__()

    def __len__(self) -> int:
        return len(self.batch_sampler.batches)

    def __iter__(self) -> Any:
        for _ in range(len(self)):
            yield next(self.iterator)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_copy_of_a_loader_that_keeps_one_iterator_has_its_own(workers: int) -> None:
    loader = KeepsOneIterator([1, 2, 3, 4], batch_size=2, num_workers=workers)
    assert next(iter(loader)).tolist() == [1, 2]
    copied = compat.copied_loader(compat.copied_loader(loader), dataset=[5, 6, 7, 8])
    for _ in range(2):
        assert [batch.tolist() for batch in copied] == [[5, 6], [7, 8]]
    assert [batch.tolist() for batch in loader] == [[3, 4], [1, 2]], "the user's goes on where it was"


def test_forward_hooks_of_one_kind_go() -> None:
    class Hook:
        def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            heard.append("ours")

    heard: list[str] = []
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net[0].register_forward_hook(Hook(), with_kwargs=True)
    net[1].register_forward_hook(lambda *args: heard.append("theirs"))
    net(torch.ones(1, 2))
    compat.remove_forward_hooks(net, Hook)
    net(torch.ones(1, 2))
    assert heard == ["ours", "theirs", "theirs"]
    assert not net[0]._forward_hooks_with_kwargs


def test_a_compiled_module_holds_the_plain_one() -> None:
    net = nn.Linear(2, 2)
    compiled = torch.compile(net)
    assert compat.uncompiled(compiled) is net
    assert compat.uncompiled(net) is net
    assert list(compiled.state_dict()) == [f"{compat.COMPILED}.weight", f"{compat.COMPILED}.bias"]


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch < 2.6")
def test_compiled_networks_run_as_written_inside_eager() -> None:
    graphs: list[Any] = []
    net = torch.compile(nn.Linear(2, 2), backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    with compat.eager():
        net(torch.ones(1, 2))
    assert not graphs
    net(torch.ones(1, 2))
    assert len(graphs) == 1


def test_what_is_compiled_is_told_wherever_it_is() -> None:
    inside, itself = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    assert not compat.is_compiled(inside)
    itself[0].compile()
    inside[0] = torch.compile(inside[0])
    assert compat.is_compiled(itself) and compat.is_compiled(inside)


def test_reentrant_checkpointing_has_a_node_of_this_name() -> None:
    output = checkpoint(nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True), use_reentrant=True)
    assert output.grad_fn.name() == compat.REENTRANT


def test_a_tensor_counts_what_is_written_to_it() -> None:
    tensor = torch.zeros(2)
    before = compat.tensor_version(tensor)
    tensor.add_(1)
    assert compat.tensor_version(tensor) > before
    with torch.inference_mode():
        assert compat.tensor_version(torch.zeros(2)) == -1


def test_tensors_move_together() -> None:
    tensors, ends = [torch.zeros(2), torch.ones(3)], [torch.ones(2), torch.zeros(3)]
    compat.lerp_together(tensors, ends, 0.25)
    assert [t.tolist() for t in tensors] == [[0.25] * 2, [0.75] * 3]


@both
def test_hyper_parameters_are_forgotten(tree: Any) -> None:
    class Net(tree.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, size: int = 1, targets: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters()

    net = Net(targets=object())
    compat.forget_hyper_parameters(net, ["targets", "rela"])
    assert dict(net.hparams) == dict(net.hparams_initial) == {"size": 1}
    compat.forget_hyper_parameters(tree.LightningModule(), ["targets"])


def test_versions_of_modules_are_read_from_a_state_dict_and_by_load() -> None:
    class Versioned(nn.Linear):
        _version = 7
        met: Any = None

        def _load_from_state_dict(self, state: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
            self.met = local_metadata.get("version")
            super()._load_from_state_dict(state, prefix, local_metadata, *args)

    net = Versioned(2, 2)
    versions = compat.module_versions(net.state_dict())
    assert versions[""]["version"] == 7
    plain = OrderedDict(net.state_dict().items())
    assert compat.module_versions(plain) == {}
    compat.keep_module_versions(plain, versions)
    net.load_state_dict(plain)
    assert net.met == 7


def test_what_is_gone_is_named() -> None:
    with pytest.raises(ReLAError, match=r"has changed[\s\S]*Linear._moved[\s\S]*release before"):
        compat.private(nn.Linear(1, 1), "_moved")


def _bound(tree: ast.AST) -> Iterator[str]:
    """Names of functions and classes, and of attributes and variables that are assigned or declared."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
            yield node.attr if isinstance(node, ast.Attribute) else node.id


def test_no_other_file_reads_private_names_of_others() -> None:
    """Attributes with an underscore are read of `self`, where we bind them, of classes of ours, and of nothing else."""
    root = Path(rela_lightning.__file__).parent
    allowed = {"_replace", "_asdict", "_fields"}  # NamedTuple's, public by its documentation
    found = []
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in root.rglob("*.py")}
    ours = {name for tree in trees.values() for name in _bound(tree)}
    for path, tree in trees.items():
        names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
                named = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
                if re.match("_[a-z]", named) and f"{path.parent.name}/{path.name}" not in (_HUGGING_FACE, _OURS):
                    found.append(f"{path.relative_to(root)}:{node.lineno} {ast.unparse(node)}")
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
                continue
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") and node.attr in ours
            if not own and node.attr not in allowed | names and path.name != "compat.py":
                found.append(f"{path.relative_to(root)}:{node.lineno} {ast.unparse(node)}")
    assert not found, "to be moved into compat.py, with a test: " + ", ".join(found)
