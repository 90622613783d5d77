"""Find the backbone of a foreign module and read its features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from rela_lightning.errors import ConfigError, InjectionError
from rela_lightning.injection.patch import Patches
from rela_lightning.pooling import Pooling, feature_maps, first_tensor, has_cls_token, pool

BACKBONE_NAMES = (
    "backbone", "encoder", "student_backbone", "online_backbone", "encoder_q", "student", "online_encoder",
    "online_network", "anchor_backbone", "model", "net", "network", "trunk", "feature_extractor",
)  # fmt: skip
_HOLDERS = ("student", "online_network", "model", "net", "network")  # may hold backbone and projector


class Call(NamedTuple):
    """One call of the backbone: what went in `[R, C, H, W]`, what came out."""

    inputs: Tensor
    output: Any


def submodule_names(module: nn.Module) -> list[str]:
    """Names of the submodules that hold parameters, at most 40, outermost first."""
    names = [n for n, m in module.named_modules() if n and any(True for _ in m.parameters())]
    return sorted(names, key=lambda name: name.count("."))[:40]


def _trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _student_of(module: nn.Module, teacher: nn.Module) -> str | None:
    shapes = [(k, v.shape) for k, v in teacher.state_dict().items()]
    for name, sub in module.named_modules():
        if sub is not teacher and _trainable(sub) and [(k, v.shape) for k, v in sub.state_dict().items()] == shapes:
            return str(name)
    return None


def guess_backbone(module: nn.Module) -> str | None:
    """The backbone by its usual name; the student, where that name holds a teacher; None if unnamed."""
    for name in BACKBONE_NAMES:
        candidate = getattr(module, name, None)
        if not isinstance(candidate, nn.Module) or not any(True for _ in candidate.parameters()):
            continue
        student = name if _trainable(candidate) else _student_of(module, candidate)
        if student is not None:
            holder = module.get_submodule(student) if name in _HOLDERS else None
            return f"{student}.backbone" if isinstance(getattr(holder, "backbone", None), nn.Module) else student
    return None


class Discovery:
    """Which submodules the user's step calls with grad on image rows, and what they returned."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._calls: dict[str, list[Call]] = {}
        self._sizes: dict[str, int] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to every submodule that holds parameters."""
        handles = []
        for name, sub in self._module.named_modules():
            self._sizes[name] = sum(p.numel() for p in sub.parameters())
            if name and self._sizes[name]:
                handles.append(sub.register_forward_hook(self._hook(name), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            images = _images(args, kwargs)
            if images is not None and images.shape[1] in (1, 3) and torch.is_grad_enabled() and _is_feature(output):
                self._calls.setdefault(name, []).append(Call(images, output))

        return hook

    def largest(self) -> tuple[str, list[Call]]:
        """Name and calls of the largest submodule called.

        Raises:
            InjectionError: If there is none, listing the submodules.
        """
        if not self._calls:
            raise never_called(self._module, "auto")
        name = max(self._calls, key=lambda called: (self._sizes[called], -called.count(".")))
        return name, self._calls[name]


def _images(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    return next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim == 4), None)


def _is_feature(output: Any) -> bool:
    """Whether a call returned something to train by: not a loss, not an object of another kind."""
    try:
        tensor = first_tensor(output)
    except ConfigError:
        return False
    return tensor.ndim >= 2 and tensor.requires_grad


def never_called(module: nn.Module, name: str) -> InjectionError:
    """The error for a backbone that the step did not call with grad."""
    return InjectionError(
        f"The backbone ({name}) was never called with gradients on images inside the training step.",
        expected="a submodule called as `self.backbone(images)`",
        found="no such call: `self.backbone.encode(images)` bypasses it, reentrant checkpointing hides it",
        exists=submodule_names(module),
        do='name what is called: backbone="encoder", or a method: backbone="backbone.encode"',
    )


class _Hook:
    """A forward hook that copies of the module do not inherit: theirs stays silent."""

    def __init__(self, listener: Callable[..., Any] | None = None) -> None:
        self._listener = listener

    def __call__(self, *args: Any) -> Any:
        return None if self._listener is None else self._listener(*args)

    def __deepcopy__(self, memo: Any) -> _Hook:
        return _Hook()

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


class Backbone:
    """The student backbone of a module: called by us, listened to inside the user's step.

    Args:
        module: The user's module.
        name: Dotted path of what is called: a submodule, or a method of one (`"backbone.encode"`).
        feature_layer: Dotted path of the layer whose output is read; None reads what the call returns.
        pooling: See `rela_lightning.pooling.pool`.

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
        network = self._call if isinstance(self._call, nn.Module) else self._owner
        if not any(True for _ in network.parameters()):
            raise InjectionError(
                f"backbone={name!r} is a layer without parameters, not a backbone.",
                expected="the network that is called on images",
                found=type(network).__name__,
                do=f'name the network with `backbone` and the layer to read with feature_layer="{name}"',
            )
        self._has_cls_token = has_cls_token(network)
        self._calls: list[Call] | None = None
        self._detach = False
        self._tried = False
        self._said = False
        self._layer_output: Any = None
        self._patches = Patches()
        if feature_layer is not None:
            layer = _find(module, feature_layer, feature_layer)
            layer.register_forward_hook(_Hook(self._on_layer))
        self._reads_layer = feature_layer is not None
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
        """Note the call, if we are listening; returns what the caller gets."""
        if self._calls is None or not torch.is_grad_enabled():
            return output
        inputs = _images(args, kwargs)
        read = self._layer_output if self._reads_layer else output
        if inputs is not None and read is not None and first_tensor(read).requires_grad:
            self._calls.append(Call(inputs, read))
        self._layer_output = None
        return _detached(output) if self._detach else output

    def parameters(self) -> Iterator[nn.Parameter]:
        """Trainable parameters of the network that is called."""
        network = self._call if isinstance(self._call, nn.Module) else self._owner
        return (parameter for parameter in network.parameters() if parameter.requires_grad)

    @contextmanager
    def listening(self, *, detach: bool = False) -> Iterator[list[Call]]:
        """Collect the calls made with grad inside the block.

        Args:
            detach: Hand the caller features without gradient, so that its loss trains the heads alone.
        """
        calls: list[Call] = []
        self._calls, self._detach = calls, detach
        try:
            yield calls
        finally:
            self._calls, self._detach = None, False

    def features(self, call: Call) -> Tensor:
        """Pooled features `[R, F]` of a call; the first time one line says what they are read from."""
        found = pool(call.output, self._pooling, has_cls_token=self._has_cls_token)
        if not self._said:
            self._said = True
            maps = feature_maps(call.output)
            which = f", the deepest of {len(maps)} maps" if maps else ""
            shape = list(first_tensor(call.output).shape)
            rank_zero_info(f"ReLA reads {self.name}: {shape}{which}, {found.shape[1]} features an image.")
        return found

    def __call__(self, images: Tensor) -> Tensor:
        """Features `[R, F]` of images `[R, C, H, W]`, by our own call of the backbone.

        Until a call has worked, an error is taken to say that the network cannot be called so; after that, errors are
        the network's own.
        """
        with self.listening() as calls:
            try:
                self._call(images)
            except (RuntimeError, ValueError, TypeError, AssertionError) as error:
                if self._tried or out_of_memory(error):
                    raise
                raise InjectionError(
                    f"The backbone ({self.name}) cannot be called on the views alone.",
                    expected="a network that takes images [B, C, H, W]",
                    found=f"{type(error).__name__}: {error}",
                    do='name what the step calls on images: backbone="model.backbone", or a method: '
                    'backbone="backbone.encode"; if it needs more arguments, use step="swap_loss"; if this is a layer '
                    "inside the backbone, name the network with `backbone` and the layer with `feature_layer`",
                ) from error
        self._tried = True
        if not calls:
            raise InjectionError(
                f"The backbone ({self.name}) returned no feature that requires grad.",
                expected="a trainable network; whole-backbone checkpointing must be non-reentrant",
                found="a frozen network, or one run without grad",
                do="unfreeze it, name the student with `backbone`, or pass use_reentrant=False",
            )
        return self.features(calls[-1])

    def remove(self) -> None:
        """Take all hooks and wrappers off the module."""
        for sub in self._module.modules():  # copies made during training included
            for key in [key for key, hook in sub._forward_hooks.items() if isinstance(hook, _Hook)]:
                del sub._forward_hooks[key]
                sub._forward_hooks_with_kwargs.pop(key, None)
        self._patches.undo()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that memory ran out, on a device or on the host."""
    while True:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return True
        if error.__cause__ is None:
            return False
        error = error.__cause__


def _detached(output: Any) -> Any:
    return apply_to_collection(output, Tensor, torch.Tensor.detach)


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


def _find(module: nn.Module, path: str, name: str) -> nn.Module:
    node: Any = module
    for part in path.split("."):
        node = _attribute(module, node, part, name)
    if not isinstance(node, nn.Module):
        raise InjectionError(f"{path!r} is not a submodule.", found=type(node).__name__, exists=submodule_names(module))
    return node
