# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Masked image modelling, the pretraining on a task's images without their labels (paper, section III-F).

The paper follows SimMIM (Xie et al., CVPR 2022, https://arxiv.org/abs/2111.09886) where it is silent, and so does this
module: masked patches of 32 pixels at 192×192, a learned token in the place of masked patches, a head of one layer,
raw pixels as the target. "Raw" are the z-scored intensities that the segmentation network will see.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import find_encoder


def random_patch_mask(
    batch_size: int,
    spatial_size: tuple[int, int],
    mask_ratio: float,
    mask_patch_size: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """As many square patches in every image of a batch: (batch_size, 1, height, width) bool, True where masked.

    Args:
        batch_size: number of images.
        spatial_size: height and width of the images in pixels.
        mask_ratio: share of the patches that are masked, rounded to whole patches: 22 of 36 for 0.6 at 192×192.
        mask_patch_size: side of a patch in pixels.
        generator: source of the choice, on the CPU; torch's own by default.

    Raises:
        InputError: the patches do not tile the image, or none or all of them would be masked.

    >>> mask = random_patch_mask(4, (192, 192), mask_ratio=0.6, mask_patch_size=32)
    >>> mask.shape, mask.sum((1, 2, 3)).unique() / 32**2
    (torch.Size([4, 1, 192, 192]), tensor([22.]))
    """
    height, width = spatial_size
    if height % mask_patch_size or width % mask_patch_size:
        raise InputError(
            f"an image of {height} x {width} pixels is not made of whole patches of {mask_patch_size}; "
            "choose a spatial_size that mask_patch_size divides."
        )
    rows, columns = height // mask_patch_size, width // mask_patch_size
    count = round(mask_ratio * rows * columns)
    if not 0 < count < rows * columns:
        raise InputError(
            f"mask_ratio {mask_ratio} masks {count} of the {rows * columns} patches of {mask_patch_size} pixels, "
            "but some must be masked and some seen; change mask_ratio, mask_patch_size or spatial_size."
        )
    order = torch.rand(batch_size, rows * columns, generator=generator).argsort(dim=1)
    chosen = torch.zeros(batch_size, rows * columns, dtype=torch.bool).scatter_(1, order[:, :count], True)
    patches = chosen.view(batch_size, 1, rows, columns)
    return patches.repeat_interleave(mask_patch_size, 2).repeat_interleave(mask_patch_size, 3)


class MaskedBatch:
    """``prepare_batch`` of MONAI's engines: mask the images of a batch, and make what is masked the target.

    Args:
        mask_ratio: share of the patches that are masked.
        mask_patch_size: side of a patch in pixels.
        seed: seed of the masks, which are then the same for every batch, so that a validation is comparable with the
            next; by default they come from torch's random state.

    >>> image, target, (mask,), _ = MaskedBatch()({"image": torch.rand(2, 1, 192, 192)})
    >>> mask.sum((1, 2, 3)) / 32**2, torch.equal(target[mask], image[mask]), target[~mask].isnan().all()
    (tensor([22., 22.]), True, tensor(True))
    """

    def __init__(self, mask_ratio: float = 0.6, mask_patch_size: int = 32, seed: int | None = None) -> None:
        self.mask_ratio = mask_ratio
        self.mask_patch_size = mask_patch_size
        self.seed = seed

    def __call__(
        self, batch: Mapping[str, Tensor], device: torch.device | None = None, non_blocking: bool = False, **kwargs
    ) -> tuple[Tensor, Tensor, tuple[Tensor], dict]:
        """What the engines want of a batch with "image", (b, c, h, w), on a device.

        Returns:
            the image; the target, which is the image where it is masked and NaN elsewhere; the mask (b, 1, h, w) as
                further argument of the network; no keyword arguments.
        """
        image = batch["image"].to(device=device, non_blocking=non_blocking, **kwargs)
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        mask = random_patch_mask(
            len(image), tuple(image.shape[2:]), self.mask_ratio, self.mask_patch_size, generator
        ).to(image.device, non_blocking=non_blocking)
        return image, image.masked_fill(~mask, torch.nan), (mask,), {}


class MaskedImageModel(nn.Module):
    """A segmentation network's encoder and a head of one layer that paints what is masked.

    A patch that a masked pixel belongs to is replaced after the patch embedding and its norm by a learned token, as
    SimMIM does in Swin (section 3.2 there); the scans then run over the whole map. The token stands behind the norm,
    so it is of the size of the patches that are seen. With 4×4 patches that do not overlap nothing masked comes
    through. Swin-UMamba has a convolution before its encoder, whose kernels reach 3 pixels into masked patches: masked
    pixels are set to 0, the mean, before it. Stem and encoder are both pretrained, because the encoder's first layer
    is of no use without the stem that it was trained on; decoder and skip blocks are not part of it.

    ``state_dict`` has the encoder's (and stem's) own names: ``load_pretrained`` takes it for the network it came from.

    Args:
        network: network with a VMamba encoder, and maybe a ``stem`` before it.

    Attributes:
        stride: number of pixels of the image to one of the encoder's last map, in each direction.

    Raises:
        InputError: the network has no such encoder.

    >>> from swinumamba_monai.networks import SwinUMamba
    >>> model = MaskedImageModel(SwinUMamba(1, 2, depths=(1, 1, 1, 1), feature_size=8))
    >>> model(torch.zeros(1, 1, 64, 32), mask=torch.ones(1, 1, 64, 32, dtype=torch.bool)).shape
    torch.Size([1, 1, 64, 32])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        encoder = find_encoder(network)
        if encoder is None:
            raise InputError(f"{type(network).__name__} has no VMamba encoder; choose SwinUMambaD or SwinUMamba.")
        self.further_options = getattr(network, "further_options", {})
        self.stride = network.step[0]
        self.vssm_encoder = encoder
        if hasattr(network, "stem"):
            self.stem = network.stem
        channels = self.vssm_encoder.channels
        self.mask_token = nn.Parameter(torch.empty(channels[0]))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        pixels = self.stride**2 * network.in_channels
        self.head = nn.Sequential(nn.Conv2d(channels[-1], pixels, kernel_size=1), nn.PixelShuffle(self.stride))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """The image (b, c, h, w) that is predicted, whose pixels that were seen carry no meaning.

        Args:
            image: images (b, c, h, w) of mean 0, whose sides are multiples of ``stride``; else an InputError.
            mask: mask (b, 1, h, w) bool, True where nothing is to be seen.
        """
        height, width = image.shape[2:]
        if height % self.stride or width % self.stride:
            raise InputError(
                f"images of {height} x {width} pixels cannot be pretrained on; choose a spatial_size of multiples of "
                f"{self.stride}."
            )
        seen = image.masked_fill(mask, 0)
        if hasattr(self, "stem"):
            seen = self.stem(seen)
        patches = self.vssm_encoder.patch_embed(seen)
        masked = F.max_pool2d(mask.float(), height // patches.shape[1]).bool().permute(0, 2, 3, 1)
        coarsest = self.vssm_encoder.forward_stages(torch.where(masked, self.mask_token.to(patches.dtype), patches))[-1]
        return self.head(coarsest.permute(0, 3, 1, 2))


class MaskedL1Loss(nn.Module):
    """Mean absolute difference over the masked pixels and the channels (paper, eq. (11)).

    >>> target = torch.tensor([2.0, torch.nan]).view(1, 1, 1, 2)  # the second pixel does not count
    >>> MaskedL1Loss()(torch.zeros(1, 1, 1, 2), target)
    tensor(2.)
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of images (b, c, h, w), in float32 at least; the target is NaN where a pixel does not count."""
        counts = ~target.isnan()
        difference = torch.where(counts, prediction.to(target.dtype) - target, 0)  # autocast's dtype is too coarse here
        return difference.abs().sum() / counts.sum()
