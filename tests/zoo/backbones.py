"""Backbones of every kind: wrapped, compiled, checkpointed, with a classifier, with unusual calls."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import timm
import torch
from lightly.loss import DINOLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import DINOProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn
from torchvision.models import resnet18

from tests.zoo.case import zoo
from tests.zoo.data import SIZE, Views, multi_crop, one_view, two_views
from tests.zoo.networks import DIM, VIT_DIM, cnn, feature_maps, timm_vit
from tests.zoo.shapes import Contrast

GROUP = "Backbones"
TWO: dict[str, Any] = {"batch": "[[v0, v1], label]", "views": two_views}


def small_resnet(fc: nn.Module) -> nn.Module:
    """torchvision's ResNet-18 without its two widest stages."""
    resnet = resnet18()
    resnet.layer3 = resnet.layer4 = nn.Identity()
    resnet.fc = fc
    return resnet


@zoo(
    "torchvision ResNet with its classifier",
    GROUP,
    **TWO,
    advised={"feature_layer": "backbone.avgpool"},
    note="without `feature_layer` the 1000 logits are what is read",
)
class WithClassifier(Contrast):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = small_resnet(nn.Linear(128, 1000))
        self.head = SimCLRProjectionHead(1000, DIM, 8)


@zoo("feature maps", GROUP, **TWO)
class Maps(Contrast):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = feature_maps()

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return [self.head(self.backbone(view).mean(dim=(2, 3))) for view in views]


@zoo("timm ViT that returns tokens", GROUP, **TWO)
class Tokens(Contrast):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm_vit(global_pool="")
        self.head = SimCLRProjectionHead(VIT_DIM, DIM, 8)

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return [self.head(self.backbone(view)[:, 1:].mean(dim=1)) for view in views]


@zoo(
    "timm ViT called by forward_features",
    GROUP,
    **TWO,
    called="backbone.forward_features",
    needs={"mix": [{"backbone": "backbone.forward_features"}]},
)
class ForwardFeatures(Tokens):
    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return [self.head(self.backbone.forward_features(view)[:, 0]) for view in views]


class PixelValues(nn.Module):
    """Called like a Hugging Face vision model: keyword in, mapping out."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm_vit(global_pool="")

    def forward(self, pixel_values: Tensor, return_dict: bool = True) -> Any:
        tokens = self.vit(pixel_values)
        return OrderedDict(last_hidden_state=tokens, pooler_output=tokens[:, 0])


@zoo("keyword in, mapping out (Hugging Face style)", GROUP, **TWO, called="model")
class MappingOutput(Contrast):
    def __init__(self) -> None:
        super().__init__()
        del self.backbone
        self.model = PixelValues()
        self.head = SimCLRProjectionHead(VIT_DIM, DIM, 8)

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return [self.head(self.model(pixel_values=view)["last_hidden_state"].mean(dim=1)) for view in views]


@zoo("a backbone of any name", GROUP, **TWO, called="zebra", own_steps=1)
class AnyName(Contrast):
    def __init__(self) -> None:
        super().__init__()
        self.zebra = self.backbone
        del self.backbone

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return [self.head(self.zebra(view)) for view in views]


@zoo("a backbone of any name, keyword call", GROUP, **TWO, called="zebra", own_steps=1)
class AnyNameKeyword(AnyName):
    def __init__(self) -> None:
        super().__init__()
        self.zebra = PixelValues()
        self.head = SimCLRProjectionHead(VIT_DIM, DIM, 8)

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return [self.head(self.zebra(pixel_values=view)["pooler_output"]) for view in views]


@zoo(
    "backbone and projector in one network",
    GROUP,
    **TWO,
    called="model.backbone",
)
class OneNetwork(Contrast):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(OrderedDict(backbone=self.backbone, head=self.head))
        del self.backbone, self.head

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return list(self.model(torch.cat(views)).chunk(2))


class MultiCropWrapper(nn.Module):
    """DINO's original wrapper: crops of one size in one call, then the head on all of them."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, crops: list[Tensor]) -> Tensor:
        sizes: dict[int, list[Tensor]] = {}
        for crop in crops:
            sizes.setdefault(crop.shape[-1], []).append(crop)
        return self.head(torch.cat([self.backbone(torch.cat(group)) for group in sizes.values()]))


@zoo(
    "network called on a list of crops (DINO's wrapper)",
    GROUP,
    batch="[2 global + 2 local crops, label]",
    views=multi_crop,
    called="student.backbone",
    teachers=("teacher",),
)
class WrappedDINO:
    def __init__(self) -> None:
        super().__init__()
        self.student = MultiCropWrapper(cnn(), DINOProjectionHead(DIM, DIM, 8, 32))
        self.teacher = MultiCropWrapper(cnn(), DINOProjectionHead(DIM, DIM, 8, 32))
        self.teacher.load_state_dict(self.student.state_dict())
        deactivate_requires_grad(self.teacher)
        self.criterion = DINOLoss(output_dim=32)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        update_momentum(self.student, self.teacher, m=0.99)
        views = batch[0]
        with torch.no_grad():
            targets = self.teacher(views[:2])
        return self.criterion(targets.chunk(2), self.student(views).chunk(len(views)), epoch=self.current_epoch)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@zoo(
    "backbone.forward(...) called directly",
    GROUP,
    **TWO,
    called="backbone.forward",
    settles={"mix": "backbone.body"},
)
class ForwardDirectly(Contrast):
    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return [self.head(self.backbone.forward(view)) for view in views]


@zoo(
    "encoder_q with an MLP in place of fc (MoCo's own layout)",
    GROUP,
    **TWO,
    called="encoder_q",
    teachers=("encoder_k",),
    advised={"feature_layer": "encoder_q.avgpool"},
    note="without `feature_layer` the projection is what is read",
)
class EncoderQ:
    def __init__(self) -> None:
        super().__init__()
        self.encoder_q = small_resnet(nn.Sequential(nn.Linear(128, DIM), nn.ReLU(), nn.Linear(DIM, 8)))
        self.encoder_k = copy.deepcopy(self.encoder_q)
        deactivate_requires_grad(self.encoder_k)
        self.criterion = NTXentLoss(temperature=0.1, memory_bank_size=(64, 8))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        query, key = batch[0]
        update_momentum(self.encoder_q, self.encoder_k, m=0.99)
        with torch.no_grad():
            k = self.encoder_k(key)
        return self.criterion(self.encoder_q(query), k)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.03)


class Learner(nn.Module):
    """A whole method in one submodule: images in, loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = cnn()
        self.predictor = nn.Linear(DIM, DIM)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, images: Tensor) -> Tensor:
        z0, z1 = self.net(torch.cat([images, images.flip(3).roll(1, dims=3)])).chunk(2)
        return self.criterion(self.predictor(z0), z1.detach())


@zoo(
    "a whole method in one submodule that returns its loss",
    GROUP,
    batch="[image, label]",
    views=lambda: Views(SIZE),
    called="learner.net",
    own_steps=1,
    needs={"switch": [{"row_layout": "cat"}], "mix": [{"row_layout": "cat"}]},
)
class WholeMethod:
    """As in byol-pytorch: views are made inside, from one image."""

    def __init__(self) -> None:
        super().__init__()
        self.learner = Learner()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.learner(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class Reader(nn.Module):
    """A network with an `encode` method and no use for its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = cnn()

    def encode(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError("call encode")


ENCODE = {"backbone": "backbone.encode"}


@zoo(
    "a backbone that can only encode()",
    GROUP,
    **TWO,
    called="backbone.encode",
    settles={"mix": "backbone.body"},
    needs={"switch": [ENCODE]},
)
class EncodeOnly(Contrast):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Reader()

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return [self.head(self.backbone.encode(view)) for view in views]


class Conditioned(nn.Module):
    """A network that needs a second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.body = cnn()
        self.scale = nn.Linear(1, DIM)

    def forward(self, images: Tensor, scale: Tensor) -> Tensor:
        return self.body(images) + self.scale(scale)


@zoo(
    "a backbone that needs a second argument",
    GROUP,
    **TWO,
    needs={"switch": [{"step": "swap_loss"}]},
    swaps=True,
    note="the module's step runs in the transport phase too",
)
class SecondArgument(Contrast):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Conditioned()

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        scale = torch.ones(len(views[0]), 1)
        return [self.head(self.backbone(view, scale)) for view in views]


@zoo(
    "views rotated in the step (RotNet)",
    GROUP,
    batch="[[v0], label]",
    views=one_view,
    needs={"mix": [{"row_layout": "cat"}]},
)
class RotNet:
    """One view turned four ways, all in one call; the loss is a classification."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = cnn()
        self.head = nn.Linear(DIM, 4)
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        view = batch[0][0]
        turned = [torch.rot90(view, k, dims=(2, 3)).clone() for k in range(4)]
        for images in turned:
            images[..., 0, 0] = view[..., 0, 0]
        labels = torch.arange(4).repeat_interleave(len(view))
        return self.criterion(self.head(self.backbone(torch.cat(turned))), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@zoo("several maps (timm's features_only)", GROUP, **TWO)
class Pyramid(Contrast):
    """The deepest map is read."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("resnet18", features_only=True, pretrained=False)
        self.head = SimCLRProjectionHead(512, DIM, 8)

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return [self.head(self.backbone(view)[-1].mean(dim=(2, 3))) for view in views]


class ListNetwork(nn.Module):
    """A network that takes nothing but lists of crops, as SwAV's and DINO's do for multi-crop."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.projector = cnn(), nn.Linear(DIM, 8)

    def forward(self, crops: list[Tensor]) -> Tensor:
        if not isinstance(crops, list):
            raise TypeError("a list of crops, please")
        return self.projector(torch.cat([self.trunk(crop) for crop in crops]))


@zoo("a network that takes only lists of crops", GROUP, batch="[2 global + 2 local crops, label]", views=multi_crop)
class OnLists(Contrast):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = ListNetwork()
        self.head = nn.Linear(8, 8)

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        return list(self.head(self.backbone(views)).chunk(len(views)))[:2]
