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

__all__ = ["BRIGHTFIELD", "Draws", "FLUORESCENCE", "RandomLooks", "STAINED", "blurred"]

FLUORESCENCE, STAINED, BRIGHTFIELD = range(3)  # modalities

# How often each change is made, as a share of the images that it fits.
SYNTHETIC_STAIN = 0.22  # of fluorescence
SWAPPED_COLOURS, STAIN_AS_GRAY = 0.15, 0.15  # of stains, synthetic ones included
BLURRED = 0.35
OTHER_GAMMA = 0.6
UNEVEN_LIGHT = 0.3
GLOW, SECOND_STRUCTURE = 0.25, 0.1  # of fluorescence
NOISE, SHOT_NOISE = 0.4, 0.5  # the second: of the noise
FEW_LEVELS = 0.15
HOT_PIXELS, SPECK = 0.15, 0.08
INVERTED, INVERTED_STAIN = 0.12, 0.06
OWN_PERCENTILES = 0.4  # the crop's instead of the image's; of synthetic stains all

# How strong the changes are.
COLOUR_DRIFT = 0.06  # standard deviation of each number of the matrix that mixes the channels
BLUR_SIGMA, BLUR_REACH = 2.5, 6  # pixels; the first at most
GAMMA_SPREAD = 0.35  # standard deviation of its logarithm
LIGHT_SPREAD = 0.3
GLOW_HEIGHT, SECOND_HEIGHT = 0.35, 0.25  # at most
NOISE_SIGMA = 0.12  # at most; small ones are more frequent
LEVEL_BITS = (3, 7)
HOT_SHARE, HOT_VALUE = 2e-4, 2.0  # of the pixels; twice the bright end
SPECK_SIDE = (2, 12)  # pixels
LOW, HIGH = 0.005, 0.998  # quantiles that become the dark and the bright end
LEAST_RANGE = 0.25  # of the widest channel's range: a channel that holds less is not stretched to the whole
FLAT = 0.03  # a range below it is taken for this
GAIN_SPREAD, OFFSET_SPREAD, CLIP = 0.12, 0.04, 3.0  # the percentiles are a little wrong, and the ends are cut as always

HEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.10, 0.95, 0.20)  # absorption of red, green and blue
DYE_SPREAD = 0.10


class Draws:
    """Random numbers on a device.

    Args:
        device: device of the numbers.
        seed: the same one gives the same numbers on the same kind of device; or a generator there, to go on with.
    """

    def __init__(self, device: torch.device, seed: int | torch.Generator) -> None:
        self.device = device
        self.generator = seed if isinstance(seed, torch.Generator) else torch.Generator(device).manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers between ``low`` and ``high``."""
        return torch.rand(*shape, generator=self.generator, device=self.device) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """Numbers of mean 0 and standard deviation 1."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def coin(self, chance: float, *shape: int) -> Tensor:
        """True as often as ``chance`` says."""
        return torch.rand(*shape, generator=self.generator, device=self.device) < chance

    def clouds(self, batch: int, side: int, grids: tuple[int, ...]) -> Tensor:
        """Smooth noise (batch, 1, side, side) of standard deviation 1: a sum of random grids of so many places a side,
        each with a random weight.
        """
        total = torch.zeros(batch, 1, side, side, device=self.device)
        for places in grids:
            grid = F.interpolate(self.normal(batch, 1, places, places), (side, side), mode="bicubic")
            total = total + grid * self.uniform(batch, 1, 1, 1)
        return total / total.std((2, 3), keepdim=True).clamp_min(1e-3)


class RandomLooks:
    """Gives each image of a batch a look of its own; every pixel stays where it is.

    Args:
        draws: random numbers on the images' device.
    """

    def __init__(self, draws: Draws) -> None:
        self.draws = draws

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
        stained = synthetic | (modality == STAINED)
        image = self._change_colours(image, stained)
        image = self._blur(image)
        image = self._change_light(image, ~stained & (modality == FLUORESCENCE))
        image = self._photograph(image, stained)
        image = self._add_specks(image)
        image = self._invert(image, stained)
        return self._normalize(image, synthetic)

    def _coin(self, image: Tensor, chance: float) -> Tensor:
        return self.draws.coin(chance, len(image), 1, 1, 1)

    def _each(self, image: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """A number for each image, (b, 1, 1, 1)."""
        return self.draws.uniform(len(image), 1, 1, 1, low=low, high=high)

    def _clouds(self, image: Tensor, *grids: int) -> Tensor:
        return self.draws.clouds(len(image), image.shape[-1], grids)

    def _stain_some(self, image: Tensor, instances: Tensor, chosen: Tensor) -> Tensor:
        rows = chosen.flatten().nonzero()[:, 0]
        return image.index_copy(0, rows, self._stain(image[rows, :1], instances[rows])) if len(rows) else image

    def _stain(self, gray: Tensor, instances: Tensor) -> Tensor:
        """Tissue with hematoxylin in the nuclei of a fluorescence image and eosin around them, by Beer and Lambert.

        Args:
            gray: fluorescence (b, 1, s, s), 0 to 1.
            instances: the nuclei's ids (b, s, s).

        Returns:
            (b, 3, s, s), 1 where no dye is.
        """
        draws = self.draws
        dyes = draws.uniform(len(gray), 4096)
        own = torch.gather(dyes, 1, (instances % dyes.shape[1]).flatten(1).long()).view(gray.shape)  # of each nucleus
        mask = (instances > 0)[:, None].float()
        soft = _mean(mask, 1)
        texture = (gray / F.max_pool2d(gray, 9, 1, 4).clamp_min(0.05)).clamp(0, 1.2) - 0.8  # chromatin as it was imaged
        fine = self._clouds(gray, 64, 128)
        chromatin = 1 + self._each(gray, high=0.8) * texture + self._each(gray, high=0.2) * fine
        rim = mask - _mean(mask, 2)
        nuclei = soft * self._each(gray, 0.35, 1.4) * (0.6 + 0.7 * own)
        nuclei = nuclei * (chromatin + self._each(gray, high=0.6) * rim).clamp_min(0.15)
        tissue = (0.5 + 0.25 * self._clouds(gray, 3, 8, 24, 64)).clamp_min(0.05)
        fibres = self._clouds(gray, 16, 40).abs().clamp_max(2)
        empty = torch.sigmoid(12 * (self._clouds(gray, 4, 8, 16) - self._each(gray, 0.3, 2.5)))
        ground = 1 - empty * (1 - mask)  # where there is tissue
        blood = torch.sigmoid(6 * (self._clouds(gray, 12, 24) - 1.2)) * self._each(gray, high=0.8)
        eosin = self._each(gray, 0.1, 0.9) * tissue + self._each(gray, high=0.25) * fibres + blood
        eosin = eosin * ground * (1 - 0.5 * soft)
        haze = self._each(gray, high=0.3) * tissue * ground  # hematoxylin outside of the nuclei
        absorption = [
            F.normalize((gray.new_tensor(dye) + draws.normal(len(gray), 3) * DYE_SPREAD).clamp_min(0.02), dim=1)
            for dye in (HEMATOXYLIN, EOSIN)
        ]
        blue, pink = (colour[:, :, None, None] for colour in absorption)
        return torch.exp(-((nuclei + haze) * blue * 1.2 + eosin * pink))

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

    def _change_light(self, image: Tensor, dark: Tensor) -> Tensor:
        """Gamma and uneven light; on a dark ground also a glow, and another structure that shines through."""
        gamma = torch.exp(self.draws.normal(len(image), 1, 1, 1) * GAMMA_SPREAD)
        image = torch.where(self._coin(image, OTHER_GAMMA), image.clamp_min(0) ** gamma, image)
        ramp = (1 + LIGHT_SPREAD * self._clouds(image, 2, 3)).clamp(0.2, 2)
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

    def _normalize(self, image: Tensor, synthetic: Tensor) -> Tensor:
        """Dark and bright end by the crop's percentiles, or as they are; both a little wrong."""
        ends = torch.tensor([LOW, HIGH], device=image.device)
        low, high = torch.quantile(image[:, :, ::2, ::2].flatten(2), ends, dim=2)[..., None, None]
        spread = high - low
        spread = torch.maximum(spread, LEAST_RANGE * spread.amax(1, keepdim=True)).clamp_min(FLAT)
        own = synthetic | self._coin(image, OWN_PERCENTILES)
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


def _mean(image: Tensor, reach: int) -> Tensor:
    """Mean of the square around each pixel, so many pixels to each side."""
    return F.avg_pool2d(F.pad(image, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)
