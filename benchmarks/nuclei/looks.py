# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""How images may look: of a crop of one microscope's image, random variants as other microscopes would show them.

Inputs and results are batches on one device. Inside of this module 0 is the dark end of an image and 1 its bright end;
a network is given -1 and 1 there, as :class:`~swinumamba_monai.data.sampling.intensity.NormalizeLook` makes them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .draws import Draws
from .stains import Stains

__all__ = ["BRIGHTFIELD", "FLUORESCENCE", "RandomLooks", "STAINED", "blurred"]

FLUORESCENCE, STAINED, BRIGHTFIELD = range(3)  # modalities

# How often each change is made, as a share of the images that it fits.
SYNTHETIC_STAIN = 0.22  # share of fluorescence images
OTHER_DYES = 0.5  # share of real stains
SWAPPED_COLOURS, STAIN_AS_GRAY = 0.15, 0.15  # shares of stains, synthetic ones included
BLURRED = 0.35
OTHER_GAMMA = 0.6
UNEVEN_LIGHT = 0.3
GLOW, SECOND_STRUCTURE = 0.25, 0.1  # shares of fluorescence images
NOISE, SHOT_NOISE = 0.4, 0.5  # the second: of the noise
FEW_LEVELS = 0.15
HOT_PIXELS, SPECK = 0.15, 0.08
INVERTED, INVERTED_STAIN = 0.12, 0.06
OWN_PERCENTILES = 0.4  # the crop's instead of the image's; of synthetic stains and those with other dyes all

# How strong the changes are.
COLOUR_DRIFT = 0.06  # standard deviation of each number of the matrix that mixes the channels
BLUR_SIGMA, BLUR_REACH = 2.5, 6  # pixels; the first at most
GAMMA_SPREAD = 0.35  # standard deviation of its logarithm
LIGHT_SPREAD, SLIDE_LIGHT_SPREAD = 0.3, 0.12
GLOW_HEIGHT, SECOND_HEIGHT = 0.35, 0.25  # at most
NOISE_SIGMA = 0.12  # at most; small ones are more frequent
LEVEL_BITS = (3, 7)
HOT_SHARE, HOT_VALUE = 2e-4, 2.0  # share of the pixels, and their value: twice the bright end
SPECK_SIDE = (2, 12)  # pixels
LOW, HIGH = 0.005, 0.998  # quantiles that become the dark and the bright end
LEAST_RANGE = 0.25  # share of the widest channel's range: a channel that holds less is not stretched to the whole
FLAT = 0.03  # a range below it is taken for this
GAIN_SPREAD, OFFSET_SPREAD, CLIP = 0.12, 0.04, 3.0  # the percentiles are a little wrong, and the ends are cut as always


class RandomLooks:
    """Gives each image of a batch a look of its own; every pixel stays where it is.

    Args:
        draws: random numbers on the images' device.
    """

    def __init__(self, draws: Draws) -> None:
        self.draws = draws
        self.stains = Stains(draws)

    def __call__(self, image: Tensor, instances: Tensor, modality: Tensor) -> Tensor:
        """
        Args:
            image: crops (b, 3, s, s), from 0 at the dark end to 1 at the bright end of the image that each is of.
            instances: the cells' ids (b, s, s), integers, 0 background.
            modality: :data:`FLUORESCENCE`, :data:`STAINED` or :data:`BRIGHTFIELD`, shape (b,).

        Returns:
            what a network is given, (b, 3, s, s), from -1 to 1 and a little beyond.
        """
        modality = modality[:, None, None, None]
        synthetic = (modality == FLUORESCENCE) & self._coin(image, SYNTHETIC_STAIN)
        image = self._stain_some(image, instances, synthetic)
        redyed = (modality == STAINED) & self._coin(image, OTHER_DYES)
        image = torch.where(redyed, self.stains.redye(image, instances), image)
        stained = synthetic | (modality == STAINED)
        image = self._change_colours(image, stained)
        image = self._blur(image)
        image = self._change_light(image, ~stained & (modality == FLUORESCENCE), stained)
        image = self._photograph(image, stained)
        image = self._add_specks(image)
        image = self._invert(image, stained)
        return self._normalize(image, synthetic | redyed)

    def _coin(self, image: Tensor, chance: float) -> Tensor:
        return self.draws.coin(chance, len(image), 1, 1, 1)

    def _each(self, image: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """A number for each image, (b, 1, 1, 1)."""
        return self.draws.uniform(len(image), 1, 1, 1, low=low, high=high)

    def _clouds(self, image: Tensor, *grids: int) -> Tensor:
        return self.draws.clouds(len(image), image.shape[-1], grids)

    def _stain_some(self, image: Tensor, instances: Tensor, chosen: Tensor) -> Tensor:
        rows = chosen.flatten().nonzero()[:, 0]
        return image.index_copy(0, rows, self.stains.paint(image[rows, :1], instances[rows])) if len(rows) else image

    def _change_colours(self, image: Tensor, stained: Tensor) -> Tensor:
        """Stains: the colours drift, the channels of some change places, and some become gray."""
        count, identity = len(image), torch.eye(3, device=image.device)
        mix = identity + self.draws.normal(count, 3, 3) * COLOUR_DRIFT
        order = self.draws.uniform(count, 3).argsort(1)
        mix = torch.where(self.draws.coin(SWAPPED_COLOURS, count, 1, 1), identity[order] @ mix, mix)
        image = torch.where(stained, torch.einsum("bij,bjhw->bihw", mix, image), image)
        weights = self.draws.uniform(count, 3, 1, 1) ** 2 + 0.02
        gray = (image * weights / weights.sum(1, keepdim=True)).sum(1, keepdim=True)
        return torch.where(stained & self._coin(image, STAIN_AS_GRAY), gray, image)

    def _blur(self, image: Tensor) -> Tensor:
        """Out of focus: a Gaussian."""
        count = len(image)
        chosen = self.draws.coin(BLURRED, count)
        return blurred(image, torch.where(chosen, self.draws.uniform(count, high=BLUR_SIGMA), 0.0) + 0.05)

    def _change_light(self, image: Tensor, dark: Tensor, stained: Tensor) -> Tensor:
        """Gamma and uneven light, less uneven of stained slides; on a dark ground also a glow, and another structure
        that shines through.
        """
        gamma = torch.exp(self.draws.normal(len(image), 1, 1, 1) * GAMMA_SPREAD)
        image = torch.where(self._coin(image, OTHER_GAMMA), image.clamp_min(0) ** gamma, image)
        spread = torch.where(stained, SLIDE_LIGHT_SPREAD, LIGHT_SPREAD)
        ramp = (1 + spread * self._clouds(image, 2, 3)).clamp(0.2, 2)
        image = torch.where(self._coin(image, UNEVEN_LIGHT), image * ramp, image)
        glow = self._each(image, high=GLOW_HEIGHT) * self._clouds(image, 2, 4, 8).clamp_min(0)
        image = torch.where(dark & self._coin(image, GLOW), image + glow, image)
        other = self._clouds(image, 8, 16, 48).clamp(0, 2) * self._each(image, high=SECOND_HEIGHT)
        return torch.where(dark & self._coin(image, SECOND_STRUCTURE), torch.maximum(image, other), image)

    def _photograph(self, image: Tensor, stained: Tensor) -> Tensor:
        """The camera's noise, of all channels as one or half of each channel's own, and few levels of gray."""
        count, _, *side = image.shape
        sigma = self._each(image) ** 2 * NOISE_SIGMA
        noise = self.draws.normal(count, 1, *side).expand_as(image)
        noise = torch.where(stained, noise * 0.5 + self.draws.normal(*image.shape) * 0.5, noise)
        chosen = self._coin(image, NOISE)
        growth = torch.where(self._coin(image, 1 - SHOT_NOISE), 1.0, image.clamp(0, 1).sqrt())
        image = torch.where(chosen, image + noise * sigma * growth, image)
        levels = 2 ** self._each(image, *LEVEL_BITS)
        return torch.where(self._coin(image, FEW_LEVELS), (image * levels).round() / levels, image)

    def _add_specks(self, image: Tensor) -> Tensor:
        """Hot pixels all over, or a bright square of dust."""
        count, side = len(image), image.shape[-1]
        hot = self.draws.coin(HOT_SHARE, count, 1, side, side) & self._coin(image, HOT_PIXELS)
        image = torch.where(hot, HOT_VALUE, image)
        first = self.draws.uniform(count, 2, high=side).long()
        least, most = SPECK_SIDE
        last = first + self.draws.uniform(count, 1, high=most - least).long() + least
        at = torch.arange(side, device=image.device)
        rows, columns = ((at >= first[..., None]) & (at < last[..., None])).unbind(1)
        speck = (rows[:, :, None] & columns[:, None])[:, None]
        return torch.where(speck & self._coin(image, SPECK), HOT_VALUE, image)

    def _invert(self, image: Tensor, stained: Tensor) -> Tensor:
        """Bright for dark; of an inverted stain, colours on a dark ground, the brightest channel is what counts."""
        image = torch.where(self._coin(image, INVERTED) & ~stained, 1 - image, image)
        inverted = (1 - image).amax(1, keepdim=True)
        return torch.where(self._coin(image, INVERTED_STAIN) & stained, inverted, image)

    def _normalize(self, image: Tensor, other_range: Tensor) -> Tensor:
        """Dark and bright end by the crop's percentiles, always where the image's are no longer true, or as they are;
        both a little wrong.
        """
        ends = torch.tensor([LOW, HIGH], device=image.device)
        low, high = torch.quantile(image[:, :, ::2, ::2].flatten(2), ends, dim=2)[..., None, None]
        spread = high - low
        spread = torch.maximum(spread, LEAST_RANGE * spread.amax(1, keepdim=True)).clamp_min(FLAT)
        own = other_range | self._coin(image, OWN_PERCENTILES)
        image = torch.where(own, (image - low) / spread, image)
        gain, offset = (self.draws.normal(len(image), 1, 1, 1) for _ in range(2))
        image = image * (1 + gain * GAIN_SPREAD) + offset * OFFSET_SPREAD
        return (image * 2 - 1).clamp(-CLIP, CLIP)


def blurred(image: Tensor, sigma: Tensor) -> Tensor:
    """Images under a Gaussian.

    Args:
        image: (b, c, h, w).
        sigma: standard deviation of each, in pixels, (b,), 0.05 to :data:`BLUR_SIGMA`.
    """
    steps = torch.arange(-BLUR_REACH, BLUR_REACH + 1, device=image.device)
    kernel = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(image.shape[1], 0)[:, None]
    result = image.flatten(0, 1)[None]  # every channel of every image has its own kernel
    ends = [BLUR_REACH] * 2
    result = F.pad(result, (0, 0, *ends), mode="replicate")
    result = F.conv2d(result, kernel[..., None], groups=len(kernel))
    result = F.pad(result, (*ends, 0, 0), mode="replicate")
    return F.conv2d(result, kernel[:, :, None], groups=len(kernel)).reshape(image.shape)
