# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""One look for every microscope's pictures: what the network is given is the same for a gray image, for the same in 16
bits, dim, in blue alone, or with a speck of dust in it.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from enum import Enum

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_tensor
from torch import Tensor

from swinumamba_monai.errors import InputError

LOWER, UPPER = 0.5, 99.8  # percentiles that become -1 and 1
CLIP = 3.0  # the largest value, and the least one with a minus: a few bright nuclei stand out, a speck does no harm
BRIGHT = 0.5  # share of the bright end: a colour image whose median lies higher is a stain on a bright ground
BLACK, LIT = 0.05, 10  # share of the bright end: what is darker may be a margin; a percentile of what is not
LEAST_RANGE = 0.25  # share of the widest channel's range: a channel that holds less is not stretched to the whole
EMPTY = 0.02  # share of the widest channel's range: a channel that holds less shows nothing
# Share of the variance of all channels along one direction: a gray image in false colours, even as a JPEG.
ONE_HUE = 0.975
MANY = 2**20  # pixels that percentiles are taken from, at most


class Look(Enum):
    """The three kinds of images that are told apart.

    GRAY: one channel, several that are equal, or one beside empty ones. DARK: colours on a dark ground, as fluorescence
    is shown; the brightest channel of each pixel counts. BRIGHT: colours on a bright ground, as stained tissue; they
    stay; a black margin around it, as scanners and turned images have, may be larger than the tissue.
    """

    GRAY = "gray"
    DARK = "dark"
    BRIGHT = "bright"


def look_of(image: NdarrayOrTensor) -> Look:
    """The kind of an image (C, H, W) of 1 to 3 channels.

    In all 478 training images of DSB-2018 the median of the brightest channel lies below 0.27 of its upper percentile
    in fluorescence, and above 0.88 in stained tissue. Of the pixels above 0.05 of it, the 10th percentile is above 0.62
    in all 107 images of stained tissue, and below 0.1 in 150 pairs of images of fluorescence, each pair as two colours.
    """
    image = torch.as_tensor(image)
    if image.shape[0] == 1 or bool((image == image[:1]).all()):
        return Look.GRAY
    low, high = _ends(image, LOWER, UPPER)
    if torch.count_nonzero(_shows(high - low)) <= 1:
        return Look.GRAY
    light = _sample(image.amax(0, keepdim=True))
    low, middle, high = _percentiles(light, 0, 50, UPPER)[:, 0].tolist()
    zero = min(low, 0.0)  # signed data may begin below
    ground, margin = (zero + share * (high - zero) for share in (BRIGHT, BLACK))
    lit = light[:, light[0] > margin]
    is_bright = middle >= ground or (lit.numel() > 0 and float(_percentiles(lit, LIT)) >= ground)
    return Look.BRIGHT if is_bright else Look.DARK


def ground_of(image: NdarrayOrTensor) -> float:
    """Where the median of an image (C, H, W), its brightest channel, lies: 0 at its dark end, 1 at its bright one."""
    brightest = torch.as_tensor(image).amax(0, keepdim=True)
    low, middle, high = _percentiles(_sample(brightest), LOWER, 50, UPPER)[:, 0].tolist()
    return (middle - low) / (high - low) if high > low else 0.0


def is_red(colours: NdarrayOrTensor, image: NdarrayOrTensor) -> np.ndarray:
    """Which colours in an image on a bright ground are red or brown: they let less of the blue light through than red.

    Nuclei in hematoxylin or Giemsa are blue or violet. Of the nuclei in the 78 training and 8 validation images of
    stained tissue of DSB-2018 at most 6 % of an image are red; of a blood smear 52 to 92 % of what is found.

    Args:
        colours: red, green and blue of n objects, (n, 3).
        image: the image (3, H, W), whose brightest pixels are white.

    Returns:
        a boolean for each, shape (n,).
    """
    white = _ends(torch.as_tensor(image), LOWER, UPPER)[1].numpy()
    through = np.asarray(colours) / np.where(white > 0, white, 1)
    return through[:, 2] < through[:, 0]


def has_one_hue(image: NdarrayOrTensor) -> bool:
    """Whether the channels of an image (C, H, W) rise and fall together, as those of a gray one in false colours do.

    Of cyan, orange and two blues the direction with most of the variance has at least 0.98, down to a JPEG quality of
    60; of two channels that show different cells, of which one is four times as bright, it has 0.94.
    """
    values = np.asarray(_sample(torch.as_tensor(image)), np.float64)
    variances = np.linalg.eigvalsh(np.atleast_2d(np.cov(values)))
    return bool(variances[-1] >= ONE_HUE * variances.sum())


class NormalizeLook(Transform):
    """Give an image three channels around -1 to 1, by percentiles that a few hot pixels or a speck cannot move.

    The percentiles 0.5 and 99.8 become -1 and 1, and what lies beyond -3 and 3 is clipped. Per channel, so that a
    stained image's white is white whatever the lamp; but a channel whose range is less than a quarter of the widest is
    stretched by a quarter of that alone, so that its noise stays small. See :class:`Look` for what becomes of colours.

    Args:
        lower: the percentile of an image's values that becomes -1.
        upper: the percentile that becomes 1.

    Raises:
        InputError: percentiles that are not 0 <= lower < upper <= 100.

    >>> ramp = torch.linspace(0, 200, 1001).view(1, 7, 143)
    >>> look = NormalizeLook(lower=0, upper=100)(ramp)
    >>> look.shape, look.min().item(), look.max().item()
    (torch.Size([3, 7, 143]), -1.0, 1.0)
    """

    backend = (TransformBackends.TORCH,)

    def __init__(self, lower: float = LOWER, upper: float = UPPER) -> None:
        if not 0 <= lower < upper <= 100:
            raise InputError(f"Percentiles must be 0 <= lower < upper <= 100, not {lower} and {upper}.")
        self.lower = lower
        self.upper = upper
        self._fitted: tuple[Look, Tensor, Tensor] | None = None

    def fitted(self, img: NdarrayOrTensor) -> NormalizeLook:
        """The same for parts of one image: all get the look that it, or its every n-th pixel, has as a whole."""
        like = copy.copy(self)
        like._fitted = self._measure(self._checked(img))
        return like

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        """The look of an image (C, H, W), 1 to 3 channels of any numeric type: (3, H, W), float32, with its metadata.

        Values that are not finite count as the least of the others; an image of one value becomes -1.

        Raises:
            InputError: another number of dimensions or channels.
        """
        image = self._checked(img)
        look, low, high = self._fitted or self._measure(image)
        if look is Look.BRIGHT and image.shape[0] == 2:
            image = torch.cat([image, torch.zeros_like(image[:1])])
        spread = high - low
        shows = _shows(spread)
        least_spread = float(spread.max()) * LEAST_RANGE or 1.0
        spread = spread.clamp_min(least_spread).to(image)[:, None, None]
        scaled = ((image - low.to(image)[:, None, None]) / spread * 2 - 1).clamp(-CLIP, CLIP)
        if look is not Look.BRIGHT:
            scaled = scaled[shows if shows.any() else slice(1)].amax(0, keepdim=True)
        return scaled if scaled.shape[0] == 3 else torch.cat([scaled] * 3)

    def _measure(self, image: Tensor) -> tuple[Look, Tensor, Tensor]:
        """The look, and the values of each channel (C,) that become -1 and 1; a stain has three channels."""
        look = look_of(image)
        if look is Look.BRIGHT and image.shape[0] == 2:
            image = torch.cat([image, torch.zeros_like(image[:1])])
        return look, *_ends(image, self.lower, self.upper)

    @staticmethod
    def _checked(img: NdarrayOrTensor) -> Tensor:
        image = convert_to_tensor(img, dtype=torch.float32, track_meta=get_track_meta())
        if image.ndim != 3:
            raise InputError(f"An image has the shape (C, H, W), but this one has {tuple(image.shape)}.")
        if image.shape[0] not in (1, 2, 3):
            raise InputError(f"The image has {image.shape[0]} channels, but 1 to 3 are needed; name one by --channel.")
        finite = image.isfinite()
        if not finite.all():
            least = image[finite].min() if finite.any() else 0.0
            image = torch.where(finite, image, least)
        return image


def _ends(image: Tensor, lower: float, upper: float) -> tuple[Tensor, Tensor]:
    """The dark and the bright end of each channel (C,), on the CPU."""
    low, high = _percentiles(_sample(image), lower, upper)
    if (low == high).all():  # nearly all is one value: whatever differs from it is all there is to see
        low, high = _percentiles(_sample(image), 0, 100)
    return low, high


def _shows(spread: Tensor) -> Tensor:
    """Which channels (C,) show anything."""
    return spread > EMPTY * spread.max()


def _sample(image: Tensor) -> Tensor:
    """At most about ``MANY`` pixels of each channel, (C, n), evenly spaced: for percentiles."""
    step = sampling_step(image[0].numel())
    return image[:, ::step, ::step].flatten(1)


def sampling_step(pixels: int) -> int:
    """Every how many rows and columns of an image of so many pixels its percentiles are taken from."""
    return max(1, int(np.ceil(np.sqrt(pixels / MANY))))


def _percentiles(values: Tensor, *percentiles: float) -> Tensor:
    """Percentiles of each channel (C, n), shape (number of percentiles, C), float32 on the CPU."""
    if isinstance(values, torch.Tensor) and values.is_cuda:
        wanted = torch.tensor(percentiles, device=values.device) / 100
        return torch.quantile(values.float(), wanted, dim=1).cpu()
    return torch.from_numpy(np.percentile(np.asarray(values), percentiles, axis=1).astype(np.float32))


class NormalizeLookd(MapTransform):
    """Dictionary version of :class:`NormalizeLook`.

    Args:
        keys: the images.
        lower, upper: see :class:`NormalizeLook`.
        allow_missing_keys: skip keys that are not there.
    """

    backend = NormalizeLook.backend

    def __init__(
        self, keys: KeysCollection, lower: float = LOWER, upper: float = UPPER, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.normalize = NormalizeLook(lower, upper)

    def fitted(self, data: Mapping[Hashable, NdarrayOrTensor]) -> NormalizeLookd:
        """See :meth:`NormalizeLook.fitted`; ``data`` has one image."""
        like = copy.copy(self)
        like.normalize = self.normalize.fitted(data[self.keys[0]])
        return like

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        items = dict(data)
        for key in self.key_iterator(items):
            items[key] = self.normalize(items[key])
        return items


class InvertLightd(MapTransform):
    """Make dark what is bright and the reverse: an image's largest value, less the image.

    Args:
        keys: the images.
        allow_missing_keys: skip keys that are not there.
    """

    backend = (TransformBackends.TORCH,)
    _largest: NdarrayOrTensor | None = None

    def fitted(self, data: Mapping[Hashable, NdarrayOrTensor]) -> InvertLightd:
        """See :meth:`NormalizeLook.fitted`; ``data`` has one image."""
        like = copy.copy(self)
        like._largest = data[self.keys[0]].max()
        return like

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        items = dict(data)
        for key in self.key_iterator(items):
            items[key] = (items[key].max() if self._largest is None else self._largest) - items[key]
        return items
