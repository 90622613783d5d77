"""Masked image models and their relatives on vision transformers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightly.data import IJEPAMaskCollator
from lightly.loss import CAPILoss, DINOLoss, IBOTPatchLoss, IBOTPlusPlusPatchLoss, KoLeoLoss
from lightly.models import utils
from lightly.models.modules import (
    AIMPredictionHead,
    CAPIPredictorTIMM,
    CAPIProjectionHead,
    DINOProjectionHead,
    DINOv2ProjectionHead,
    IJEPAPredictorTIMM,
    MaskedCausalVisionTransformer,
    MaskedVisionTransformerDecoderTIMM,
)
from lightly.models.modules.ijepa import IJEPABackbone
from lightly.transforms import AIMTransform, MAETransform
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from tests.zoo.case import zoo
from tests.zoo.data import SIZE, Views, multi_crop, one_view
from tests.zoo.networks import PATCH, VIT_DIM, masked_timm_vit, masked_torchvision_vit

GROUP = "Masked image modelling and token methods"
PIXELS = 3 * PATCH**2
ENCODE: dict[str, Any] = {
    "batch": "[[v0], label]",
    "views": one_view,
    "called": "backbone.encode",
    "needs": {"mix": [{"backbone": "backbone.encode"}]},
    "note": "`backbone.encode(...)` is called, not `backbone(...)`",
}


class Reconstruction:
    """Encode the visible tokens, decode all of them, predict the pixels of the masked ones."""

    registers = 0

    def __init__(self) -> None:
        super().__init__()
        self.backbone = masked_timm_vit(reg_tokens=self.registers)
        self.prefix = 1 + self.registers
        self.embed = nn.Linear(VIT_DIM, 16)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=16, embed_dim=16, depth=1, num_heads=2, num_prefix_tokens=self.prefix
        )
        self.predict = nn.Linear(16, PIXELS)
        self.criterion = nn.MSELoss()

    def mask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (len(images), self.backbone.sequence_length)
        return utils.random_token_mask(size=size, mask_ratio=0.5, device=images.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = batch[0][0]
        keep, masked = self.mask(images)
        encoded = self.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), self.backbone.sequence_length))
        tokens = self.decoder.decode(utils.set_at_index(tokens, keep, encoded.type_as(tokens)))
        predicted = self.predict(utils.get_at_index(tokens, masked))
        target = utils.get_at_index(utils.patchify(images, PATCH), masked - self.prefix)
        return self.criterion(predicted, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1.5e-3)


@zoo("MAE", GROUP, **{**ENCODE, "views": lambda: MAETransform(input_size=SIZE)})
class MAE(Reconstruction):
    pass


@zoo("PIXIO (registers, grid masks)", GROUP, **ENCODE)
class PIXIO(Reconstruction):
    registers = 3

    def mask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (len(images), self.backbone.sequence_length)
        return utils.random_grid_token_mask(
            size=size, mask_ratio=0.5, grid_size=2, num_prefix_tokens=self.prefix, device=images.device
        )


@zoo("SimMIM (torchvision ViT)", GROUP, **ENCODE)
class SimMIM:
    """Masked tokens go through the encoder; a linear layer predicts pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = masked_torchvision_vit()
        self.decoder = nn.Linear(VIT_DIM, PIXELS)
        self.criterion = nn.L1Loss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = batch[0][0]
        _, masked = utils.random_token_mask(size=(len(images), self.backbone.sequence_length), mask_ratio=0.5)
        encoded = self.backbone.encode(images=images, idx_mask=masked)
        predicted = self.decoder(utils.get_at_index(encoded, masked))
        return self.criterion(predicted, utils.get_at_index(utils.patchify(images, PATCH), masked - 1))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1.5e-3)


@zoo(
    "AIM (causal ViT)",
    GROUP,
    batch="[[v0], label]",
    views=lambda: AIMTransform(input_size=SIZE),
    called="backbone.forward_features",
    needs={name: [{"backbone": "backbone.forward_features"}] for name in ("switch", "mix")},
    note="`backbone.forward_features(...)` is called, not `backbone(...)`",
)
class AIM:
    def __init__(self) -> None:
        super().__init__()
        self.backbone = MaskedCausalVisionTransformer(
            img_size=SIZE, patch_size=PATCH, embed_dim=VIT_DIM, depth=2, num_heads=2, num_classes=0,
            qk_norm=False, class_token=False, no_embed_class=True, global_pool="avg",
        )  # fmt: skip
        utils.initialize_2d_sine_cosine_positional_embedding(self.backbone.pos_embed, has_class_token=False)
        self.projection_head = AIMPredictionHead(VIT_DIM, PIXELS, hidden_dim=16, num_blocks=1)
        self.criterion = nn.MSELoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = batch[0][0]
        prefix = utils.random_prefix_mask(size=(len(images), 16), max_prefix_length=15, device=images.device)
        features = self.backbone._pos_embed(self.backbone.forward_features(images, mask=prefix))
        patches = utils.normalize_mean_var(utils.patchify(images, PATCH), dim=-1)
        return self.criterion(self.projection_head(features), patches)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1.5e-3)


@zoo(
    "CAPI",
    GROUP,
    batch="[[v0], label]",
    views=one_view,
    called="student_backbone.encode",
    teachers=("teacher_backbone",),
    needs={"mix": [{"backbone": "student_backbone.encode"}]},
    note="`student_backbone.encode(...)` is called, not `student_backbone(...)`",
)
class CAPI:
    """A frozen teacher under a trained clustering head."""

    def __init__(self) -> None:
        super().__init__()
        self.student_backbone = masked_timm_vit(reg_tokens=1)
        self.student_head = CAPIProjectionHead(VIT_DIM, num_clusters=8, weight_norm=True)
        self.predictor = CAPIPredictorTIMM(embed_dim=VIT_DIM, grid_size=4, depth=1, num_heads=2)
        self.teacher_backbone = copy.deepcopy(self.student_backbone)
        self.teacher_head = CAPIProjectionHead(VIT_DIM, num_clusters=8, bias=True)
        utils.deactivate_requires_grad(self.teacher_backbone)
        self.criterion = CAPILoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        utils.update_momentum(self.student_backbone, self.teacher_backbone, m=0.99)
        images, prefix = batch[0][0], 2
        keep, masked = utils.random_inverse_block_mask(
            size=(len(images), self.student_backbone.sequence_length), mask_ratio=0.65, num_prefix_tokens=prefix
        )
        visible = self.student_backbone.encode(images=images, idx_keep=keep)[:, prefix:]
        predicted = self.student_head(self.predictor(visible, keep[:, prefix:] - prefix, masked - prefix))
        with torch.no_grad():
            tokens = self.teacher_backbone.encode(images=images)
        clusters = self.teacher_head(tokens)[:, prefix:]
        student_loss = self.criterion(clusters, predicted, masked - prefix)
        return student_loss + self.criterion(clusters, clusters)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1.5e-3)


TOKENS: dict[str, Any] = {
    "called": "student_backbone.encode",
    "teachers": ("teacher_backbone", "teacher_head"),
    "needs": {"mix": [{"backbone": "student_backbone.encode"}]},
    "note": "`student_backbone.encode(...)` is called, not `student_backbone(...)`",
}


class PatchDistillation:
    """Student on masked views, teacher on whole ones; class token and masked patches both follow it."""

    patch_criterion: Any = IBOTPatchLoss
    head_class: Any = DINOProjectionHead

    def __init__(self) -> None:
        super().__init__()
        self.teacher_backbone = masked_timm_vit(dynamic_img_size=True, init_values=1e-2)
        self.student_backbone = copy.deepcopy(self.teacher_backbone)
        self.teacher_head = self.head_class(VIT_DIM, 16, 8, 32)
        self.student_head = self.head_class(VIT_DIM, 16, 8, 32)
        utils.deactivate_requires_grad(self.teacher_backbone)
        utils.deactivate_requires_grad(self.teacher_head)
        self.class_loss = DINOLoss(output_dim=32)
        self.patch_loss = self.patch_criterion(output_dim=32)
        self.spread_loss = KoLeoLoss()

    def follow(self) -> None:
        utils.update_momentum(self.student_backbone, self.teacher_backbone, m=0.99)
        utils.update_momentum(self.student_head, self.teacher_head, m=0.99)

    def losses(self, views: list[Tensor]) -> Tensor:
        large, small = torch.cat(views[:2]), torch.cat(views[2:])
        blocks = utils.random_block_mask(size=(len(large), 4, 4), min_num_masks_per_block=1)
        mask = F.pad(blocks.flatten(start_dim=1), (1, 0))
        with torch.no_grad():
            tokens = self.teacher_backbone.encode(large)
            teacher_class, teacher_patches = self.teacher_head(tokens[:, 0]), self.teacher_head(tokens[mask])
        tokens = self.student_backbone.encode(large, mask=mask)
        small_class = self.student_head(self.student_backbone.encode(small)[:, 0])
        student_class = torch.cat([self.student_head(tokens[:, 0]), small_class])
        loss = self.class_loss(teacher_class.chunk(2), student_class.chunk(len(views)), teacher_temp=0.05)
        loss = loss + self.patches(teacher_patches, tokens, mask, blocks)
        return loss + 0.1 * sum(self.spread_loss(part) for part in tokens[:, 0].chunk(2))

    def patches(self, teacher: Tensor, tokens: Tensor, mask: Tensor, blocks: Tensor) -> Tensor:
        return self.patch_loss(teacher, self.student_head(tokens[mask]), blocks, teacher_temp=0.05)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@zoo("iBOT (multi-crop)", GROUP, batch="[2 global + 2 local crops, label]", views=multi_crop, **TOKENS)
class IBOT(PatchDistillation):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.follow()
        return self.losses(batch[0])


@zoo(
    "DINOv2 (teacher in on_train_batch_end)",
    GROUP,
    batch="[2 global + 2 local crops, label]",
    views=multi_crop,
    **TOKENS,
)
class DINOv2(PatchDistillation):
    """The teacher follows in a hook, also in the transport phase; weight decay is scheduled."""

    head_class = DINOv2ProjectionHead

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(batch[0])

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.04 + 0.36 * self.trainer.global_step / self.trainer.estimated_stepping_batches

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.follow()


@zoo("iBOT++", GROUP, batch="[2 global + 2 local crops, label]", views=multi_crop, **TOKENS)
class IBOTPlusPlus(IBOT):
    """The patch loss is on visible patches too."""

    patch_criterion = IBOTPlusPlusPatchLoss

    def losses(self, views: list[Tensor]) -> Tensor:
        large = torch.cat(views[:2])
        blocks = utils.random_block_mask(size=(len(large), 4, 4), min_num_masks_per_block=1)
        with torch.no_grad():
            teacher = self.teacher_head(self.teacher_backbone.encode(large)[:, 1:].flatten(end_dim=1))
        tokens = self.student_backbone.encode(large, mask=F.pad(blocks.flatten(start_dim=1), (1, 0)))
        student = self.student_head(tokens[:, 1:].flatten(end_dim=1))
        shape = (len(large), 16, -1)
        return self.patch_loss(teacher.reshape(shape), student.reshape(shape), blocks, teacher_temp=0.05)


@zoo(
    "I-JEPA",
    GROUP,
    batch="[[images, label], context masks, target masks]",
    views=lambda: Views(SIZE),
    collate=IJEPAMaskCollator(input_size=SIZE, patch_size=4, min_keep=2),
    called="encoder",
    teachers=("target_encoder",),
    advised={"pooling": "avg"},
    note="the context has no class token to read",
)
class IJEPA:
    """The encoder sees a context; the predictor guesses the target encoder's tokens elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        vit = VisionTransformer(
            image_size=SIZE, patch_size=4, num_layers=2, num_heads=2, hidden_dim=VIT_DIM, mlp_dim=2 * VIT_DIM
        )
        self.encoder = IJEPABackbone.from_vit(vit)
        self.target_encoder = copy.deepcopy(self.encoder)
        utils.deactivate_requires_grad(self.target_encoder)
        self.predictor = IJEPAPredictorTIMM(
            num_patches=64, depth=1, mlp_dim=VIT_DIM, predictor_embed_dim=16, num_heads=2
        )
        self.criterion = nn.SmoothL1Loss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (images, _), context, target = batch
        utils.update_momentum(self.encoder, self.target_encoder, m=0.99)
        with torch.no_grad():
            tokens = F.layer_norm(self.target_encoder(images), (VIT_DIM,))
            wanted = utils.repeat_interleave_batch(utils.apply_masks(tokens, target), len(images), repeat=len(context))
        return self.criterion(self.predictor(self.encoder(images, context), context, target), wanted)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1.5e-3)


@zoo(
    "I-JEPA with two contexts an image",
    GROUP,
    batch="[[images, label], context masks, target masks]",
    views=lambda: Views(SIZE),
    collate=IJEPAMaskCollator(input_size=SIZE, patch_size=4, min_keep=2, nenc=2),
    called="encoder",
    teachers=("target_encoder",),
    advised={"pooling": "avg"},
    needs={"mix": [{"row_layout": "cat"}]},
    note="B images in, 2B rows out",
)
class IJEPATwoContexts(IJEPA):
    """One call of the encoder returns a row for each context."""
