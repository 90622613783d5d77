"""Take the classifier off a network."""

from __future__ import annotations

from torch import nn

from rela_lightning.errors import NetworkError

HEADS = ("fc", "classifier", "heads", "head", "linear")
"""What libraries call it."""


def remove_classifier(network: nn.Module) -> nn.Module:
    """Replace the last linear layer of the classifier by an identity, in place, so that features come out.

    The state dict is then the plain architecture's without that layer. A classifier without a linear layer (that of
    SqueezeNet is a convolution) is replaced by the mean over the map.

    Raises:
        NetworkError: If there is no classifier under a usual name.
    """
    for attribute in HEADS:
        head = getattr(network, attribute, None)
        if not isinstance(head, nn.Module):
            continue
        linears = [path for path, layer in head.named_modules() if isinstance(layer, nn.Linear)]
        parent, _, name = f"{attribute}.{linears[-1]}".rstrip(".").rpartition(".") if linears else ("", "", attribute)
        setattr(network.get_submodule(parent), name, nn.Identity() if linears else nn.AdaptiveAvgPool2d(1))
        return network
    raise NetworkError(
        "This network has no classifier to take off.",
        expected=f"a layer called {', '.join(HEADS)}",
        found=type(network).__name__,
        exists=[name for name, _ in network.named_children()],
        do="wrap it in an nn.Module that returns its features and hand that over",
    )
