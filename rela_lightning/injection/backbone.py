"""The backbone of a foreign module: its features, from a call of ours or from a hook on the calls of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from rela_lightning.compat import remove_forward_hooks
from rela_lightning.errors import InjectionError
from rela_lightning.injection.discovery import Call, images_in
from rela_lightning.injection.patch import Patches
from rela_lightning.networks.names import submodule_names
from rela_lightning.networks.pooling import Pooling, first_tensor, has_cls_token, pool, select

REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What networks raise for inputs they were not made for."""


class _Hook:
    """A forward hook that copies of the module do not inherit: theirs stays silent."""

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return None if self._call is None else self._call(*args)

    def __deepcopy__(self, memo: Any) -> _Hook:
        return _Hook()

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


class Backbone:
    """The student backbone of a module: called by us, or hooked inside the user's step.

    Args:
        module: The user's module.
        name: Dotted path of what is called: a submodule, or a method of one (`"backbone.encode"`).
        feature_layer: Dotted path of the layer whose output is read; None reads what the call returns.
        pooling: See `rela_lightning.networks.pooling.pool`.

    Raises:
        InjectionError: If a path does not exist or cannot be a backbone.
    """

    def __init__(self, module: nn.Module, name: str, *, feature_layer: str | None = None, pooling: Pooling = "auto"):
        self.name, self._pooling = name, pooling
        self._module, self._owner, attribute = module, module, name
        if "." in name:
            path, attribute = name.rsplit(".", 1)
            self._owner = _find(module, path, name)
        self._call = _attribute(module, self._owner, attribute, name)
        self.network: nn.Module = self._call if isinstance(self._call, nn.Module) else self._owner
        """The network that is called."""
        if not any(True for _ in self.network.parameters()):
            raise InjectionError(
                f"backbone={name!r} is a layer without parameters, not a backbone.",
                expected="the network that is called on images",
                found=type(self.network).__name__,
                do=f'name the network with `backbone` and the layer to read with feature_layer="{name}"',
            )
        self.reads = ""
        """What is read and how wide it is, in words; empty until something was."""
        self._has_cls_token = has_cls_token(self.network)
        self._calls: list[Call] | None = None
        self._detach = False
        self._cuts: list[Tensor] = []  # what the caller got in place of the network's outputs
        self._layer, self._layer_output = feature_layer, None
        self._taken: set[tuple[int, ...]] = set()  # shapes of images that a call of ours has taken
        self._takes_list = False
        self._patches = Patches()
        self._reads_from = self.network if feature_layer is None else find_layer(module, feature_layer)
        if feature_layer is not None:
            self._reads_from.register_forward_hook(_Hook(self._on_layer))
        if isinstance(self._call, nn.Module):
            self._call.register_forward_hook(_Hook(self._on_forward), with_kwargs=True)
        else:
            self._patches.wrap(self._owner, attribute, self._on_method)
            self._call = getattr(self._owner, attribute)

    def _on_layer(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self._calls is not None:
            self._layer_output = output

    def _on_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return self._record(args, kwargs, output)

    def _on_method(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._record(args, kwargs, original(*args, **kwargs))

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Keep the call, while calls are recorded; returns what the caller gets."""
        if self._calls is None or not torch.is_grad_enabled():
            return output
        inputs = images_in(args, kwargs)
        read = output if self._layer is None else self._layer_output
        if inputs is not None and read is not None and first_tensor(read).requires_grad:
            self._calls.append(Call(inputs, read))
        self._layer_output = None
        return apply_to_collection(output, Tensor, self._cut) if self._detach else output

    def parameters(self) -> Iterator[nn.Parameter]:
        """Trainable parameters of the network that is called."""
        return (parameter for parameter in self.network.parameters() if parameter.requires_grad)

    def reaches(self, reached: set[int]) -> bool:
        """Whether a loss comes from a call that is recorded: one whose graph holds leaf tensors with these ids."""
        return any(id(leaf) in reached for leaf in (self._cuts if self._detach else self.parameters()))

    def _cut(self, output: Tensor) -> Tensor:
        """The same values without the network's graph; that a loss comes from them can be told all the same."""
        if not output.requires_grad:
            return output
        leaf = output.detach().requires_grad_()
        self._cuts.append(leaf)
        return leaf.clone()  # a head may change it in place

    @contextmanager
    def recording(self, *, detach: bool = False) -> Iterator[list[Call]]:
        """Collect the calls made with grad inside the block.

        Args:
            detach: Hand the caller features without gradient, so that its loss trains the heads alone.
        """
        calls: list[Call] = []
        self._calls, self._detach, self._cuts = calls, detach, []
        try:
            yield calls
        finally:
            self._calls, self._detach, self._cuts = None, False, []

    def features(self, call: Call) -> Tensor:
        """Pooled features `[R, F]` of a call; of one on a list, of its images one after the other."""
        outputs = self._of_each(call)
        pooled = [
            pool(
                output,
                self._pooling,
                has_cls_token=self._has_cls_token,
                image_size=images.shape[-2:],
                made_by=self._reads_from,
            )
            for output, images in zip(outputs, call.inputs, strict=False)  # of one output, the first of several sizes
        ]
        if not self.reads:
            self.reads = self._describe(outputs[0], pooled[0].shape[1])
        return torch.cat(pooled) if len(pooled) > 1 else pooled[0]

    def _of_each(self, call: Call) -> Sequence[Any]:
        """What was made of each list of images, where a list was made of a list; else the output as it is."""
        output = call.output
        if len(call.inputs) > 1 and isinstance(output, (list, tuple)) and len(output) == len(call.inputs):
            rows = [
                first_tensor(part).shape[0] == len(images) for part, images in zip(output, call.inputs, strict=True)
            ]
            if all(rows):
                return output
        return [output]

    def _describe(self, output: Any, width: int) -> str:
        features, which = select(output)
        sequence = f"of a sequence {list(features.shape)}" if features.ndim == 3 else ""
        last = None if self._layer else _last_linear(self.network, width)
        made = ", ".join(part for part in (which, sequence, f"made by its last layer, {last}" if last else "") if part)
        return f"{self._layer or self.name}: {width} features an image" + (f" ({made})" if made else "")

    def __call__(self, images: Tensor) -> Tensor:
        """Features `[R, F]` of images `[R, C, H, W]`, by our own call of the backbone.

        Raises:
            InjectionError: If it cannot be called on such images. A failure of another kind, of memory for instance, is
                let through: it does not befall two images as well, or befalls images of a size that was taken before.
        """
        try:
            calls = self._call_recorded(images)
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as error:
            if tuple(images.shape[1:]) in self._taken or self.takes(images):
                raise
            raise _not_callable(self.name, error) from error
        self._taken.add(tuple(images.shape[1:]))
        if not calls:
            raise InjectionError(
                f"The backbone ({self.name}) returned no feature that requires grad.",
                expected="a trainable network; whole-backbone checkpointing must be non-reentrant",
                found="a frozen network, or one run without grad",
                do="unfreeze it, name the student with `backbone`, or pass use_reentrant=False",
            )
        return self.features(calls[-1])

    def takes(self, images: Tensor) -> bool:
        """Whether the backbone can be called on images like these: two of them are tried."""
        try:
            self._call_recorded(images[:2])
        except REFUSALS:
            return False
        return True

    def _call_recorded(self, images: Tensor) -> list[Call]:
        """Our own call: on a tensor, or on a list where the network takes nothing else, as wrappers for multi-crop."""
        with self.recording() as calls:
            if self._takes_list:
                self._call([images])
                return calls
            try:
                self._call(images)
            except REFUSALS as error:
                if self._taken or isinstance(error, torch.OutOfMemoryError):
                    raise
                try:
                    self._call([images])
                except REFUSALS:
                    raise error from None
                self._takes_list = True
        return calls

    def remove(self) -> None:
        """Take all hooks and wrappers off the module."""
        remove_forward_hooks(self._module, _Hook)
        self._patches.undo()


def _not_callable(name: str, error: Exception) -> InjectionError:
    return InjectionError(
        f"The backbone ({name}) cannot be called on the views alone.",
        expected="a network that takes images [B, C, H, W], or a list of such",
        found=f"{type(error).__name__}: {error}",
        do='name what the step calls on images: backbone="model.backbone", or a method: '
        'backbone="backbone.encode"; if it needs more arguments, use step="swap_loss"; if this is a layer '
        "inside the backbone, name the network with `backbone` and the layer with `feature_layer`",
    )


def _last_linear(network: nn.Module, width: int) -> str:
    """The linear layer of this width that a network ends with, such as a classifier or a projection; else nothing."""
    layers = [(n, m) for n, m in network.named_modules() if n and any(True for _ in m.parameters(recurse=False))]
    while layers and isinstance(layers[-1][1], nn.BatchNorm1d):
        layers.pop()
    name, last = layers[-1] if layers else ("", network)
    ends = isinstance(last, nn.Linear) and last.out_features == width
    return f"{name}, Linear({last.in_features}, {width})" if ends else ""


def _attribute(module: nn.Module, owner: Any, attribute: str, name: str) -> Any:
    target = getattr(owner, attribute, None)
    if target is None or not (isinstance(target, nn.Module) or callable(target)):
        raise InjectionError(
            f"The module has nothing called {name!r}.",
            expected="the name of a submodule, or of a method of one",
            found=name,
            exists=submodule_names(module),
            do="pass one of the names listed",
        )
    return target


def find_layer(module: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path.

    Raises:
        InjectionError: If there is none.
    """
    return _find(module, path, path)


def _find(module: nn.Module, path: str, name: str) -> nn.Module:
    node: Any = module
    for part in path.split("."):
        node = _attribute(module, node, part, name)
    if not isinstance(node, nn.Module):
        raise InjectionError(f"{path!r} is not a submodule.", found=type(node).__name__, exists=submodule_names(module))
    return node
