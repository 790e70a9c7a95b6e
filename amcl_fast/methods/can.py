"""CAN and AMCL-CAN: contrast, masked autoencoding and noise prediction (arXiv 2210.16870)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..losses import SimCLRLoss
from ..models.backbones import BackboneConfig
from ..models.decoder import DecoderConfig, PatchDecoder
from ..models.masked import (
    Masks,
    encode_visible,
    images_of,
    masked_count,
    patches_of,
    random_masks,
    taken,
    transformer_of,
)
from ..rows import at_least_float32, widened
from ..setting_types import check_fields, check_value
from .base import share_of_mean
from .simclr import SimCLR
from .views import by_size, targets_of


@dataclass(frozen=True)
class LossWeights:
    """Weights of CAN's three losses, none negative and not all 0."""

    contrast: float = 0.03
    reconstruction: float = 0.67
    noise: float = 0.3

    def __post_init__(self) -> None:
        check_fields(self, "weights")


class Drawn(NamedTuple):
    """What is drawn for images (n, 3, H, W): masks, noise (n, 3, H, W), and its standard deviations, (n,)."""

    masks: Masks
    noise: Tensor
    level: Tensor


class CAN(SimCLR):
    """SimCLR of noisy views of which the encoder sees a part; a decoder predicts what is masked, and the noise.

    Every view of every image has a mask of its own, and Gaussian noise whose level is uniform from 0 to `noise_std`,
    both from torch's generator of the device. The encoder is a Vision Transformer of timm; its blocks see the visible
    patches alone, and what it pools of them goes to the heads. The losses are the criterion's (of more than two views
    as in SimCLR), the mean squared error of the masked patches, and that of the noise on the visible ones, both over
    all images of all views; each is logged.

    Args:
        criterion: `SimCLRLoss` with a constant temperature (CAN) or an adaptive one (AMCL-CAN).
        backbone: a VisionTransformer of timm. Its `global_pool` makes the features, here and in evaluation.
        mask_ratio: share of an image's patches that are masked, the same number in all.
        noise_std: largest standard deviation of the noise, in units of normalised pixels.
        weights: of the three losses.
        decoder: size of the decoder.
        normalise_pixels: predict masked patches with their own mean and standard deviation taken out.
        kwargs: see `Method`.

    Raises:
        TypeError: a setting of another type.
        ValueError: a setting out of range, or another backbone.
    """

    def __init__(
        self,
        criterion: SimCLRLoss,
        *,
        backbone: BackboneConfig,
        mask_ratio: float = 0.5,
        noise_std: float = 0.05,
        weights: LossWeights = LossWeights(),
        decoder: DecoderConfig = DecoderConfig(),  # noqa: B008
        normalise_pixels: bool = True,
        **kwargs: Any,
    ) -> None:
        check_value("mask_ratio", mask_ratio, float)
        check_value("noise_std", noise_std, float)
        of_losses = {f"weights.{name}": weight for name, weight in asdict(weights).items()}
        for name, value in {"noise_std": noise_std, **of_losses}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if not any(of_losses.values()):
            raise ValueError(f"weights must not all be 0, got {', '.join(of_losses)} of 0")
        super().__init__(criterion, backbone=backbone, **kwargs)
        model = transformer_of(self.backbone, backbone.name)
        masked_count(model.patch_embed.num_patches, mask_ratio)
        self.mask_ratio = mask_ratio
        self.noise_std = noise_std
        self.weights = weights
        self.normalise_pixels = normalise_pixels
        self.patch = model.patch_embed.patch_size
        self.decoder = PatchDecoder(model.embed_dim, 3 * math.prod(self.patch), decoder)
        # Of what was drawn: eager and compiled training draw alike.
        self._look = self.compiled(self.look)  # type: ignore[arg-type]

    def check_sizes(self, sizes: Iterable[int]) -> None:
        sides = sorted({*sizes})
        super().check_sizes(sides)
        for side in sides:
            try:
                masked_count((side // self.patch[0]) * (side // self.patch[1]), self.mask_ratio)
            except ValueError as error:
                raise ValueError(f"{error}, for views of {side} × {side} px (data.views)") from None

    def draw(self, images: Tensor) -> Drawn:
        """Masks and noise for images (n, 3, H, W)."""
        patches = math.prod(self._grid(images))
        masks = random_masks(len(images), patches, self.mask_ratio, images.device)
        of_noise: Any = {"device": images.device, "dtype": widened(images.dtype)}
        level = self.noise_std * torch.rand(len(images), **of_noise)
        return Drawn(masks, level.view(-1, 1, 1, 1) * torch.randn(images.shape, **of_noise), level)

    def look(self, images: Sequence[Tensor], drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor, Tensor]:
        """Projections (n, C, d), and the mean squared errors (n,) of masked patches and of the noise.

        Args:
            images: (n, 3, H, W), one tensor for each size; the results are of all of them.
            drawn: for each.
        """
        features, masked, noise = [], [], []
        for of_one_size, (masks, added, level) in zip(images, drawn, strict=True):
            tokens, predicted = self._decoded(of_one_size, masks, added, level)
            features.append(self.backbone.model.forward_head(tokens))  # type: ignore[operator, union-attr]
            target = taken(self._patches(of_one_size), masks.masked)
            if self.normalise_pixels:
                target = _normalised(target)
            masked.append((taken(predicted, masks.masked) - target).square().mean((1, 2)))
            target = taken(self._patches(added), masks.visible)
            noise.append((taken(predicted, masks.visible) - target).square().mean((1, 2)))
        return self.projector(torch.cat(features)), torch.cat(masked), torch.cat(noise)

    def embed(self, *images: Tensor) -> Tensor:
        """As `Method.embed`, of images that are masked and noisy as in training."""
        return self.look(images, [self.draw(of_one_size) for of_one_size in images])[0]

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        errors: list[Tensor] = []

        def embed(*images: Tensor) -> Tensor:
            projections, *found = self._look(images, [self.draw(of_one_size) for of_one_size in images])
            errors.extend(found)
            return projections

        contrast = self.criterion.of_views(self.projections(by_size(views), embed), targets_of(views))
        masked, noise = (error.mean() for error in errors)
        parts = {"loss_contrast": contrast, "loss_reconstruction": masked, "loss_noise": noise}
        self.parts = {name: part.detach() for name, part in parts.items()}
        of_pixels = self.weights.reconstruction * masked + self.weights.noise * noise
        return self.weights.contrast * contrast + share_of_mean(len(errors[0]), masked) * of_pixels

    def pictures(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
        images = views[0]
        masks, added, level = self.draw(images)
        predicted = self._decoded(images, masks, added, level)[1]
        patches, noise = self._patches(images), self._patches(added)
        filled = predicted
        if self.normalise_pixels:
            filled = predicted * _deviation(patches) + patches.mean(-1, keepdim=True)
        seen = torch.zeros_like(patches[..., :1]).scatter(1, masks.visible.unsqueeze(-1), 1)

        def shown(rows: Tensor) -> Tensor:
            return images_of(rows, self.patch, (images.shape[2], images.shape[3]))

        scale = 1 / self.noise_std if self.noise_std else 0.0
        return {
            "view": images,
            "what is seen": shown((patches + noise) * seen),
            "reconstruction": shown(torch.where(seen > 0, patches + noise, filled)),
            "noise": shown(noise * seen * scale),
            "predicted noise": shown(predicted * seen * scale),
        }

    def _decoded(self, images: Tensor, masks: Masks, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's tokens (n, prefix + v, D), and predictions (n, L, 3·h·w), float32 or better."""
        noisy = images + noise.to(images.dtype)
        tokens = encode_visible(self.backbone.model, noisy, masks.visible)
        return tokens, at_least_float32(self.decoder(tokens, masks.visible, self._grid(images), level))

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.patch[0], images.shape[3] // self.patch[1]

    def _patches(self, images: Tensor) -> Tensor:
        return patches_of(at_least_float32(images), self.patch)


def _deviation(patches: Tensor) -> Tensor:
    return (patches.var(-1, keepdim=True) + 1e-6).sqrt()  # the unbiased variance and the 1e-6 of MAE's code


def _normalised(patches: Tensor) -> Tensor:
    return (patches - patches.mean(-1, keepdim=True)) / _deviation(patches)
