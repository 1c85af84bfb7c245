# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What pixels must be, wherever they come from: finite numbers that float32 tells apart, in channels that are there."""

from __future__ import annotations

import numpy as np

from swinumamba_monai.errors import InputError

MAX_VALUE = 1e30  # larger pixels have no sum in float32; 3.4e38 marks missing ones in some programs
MIN_STEPS = 16  # steps of float32 between the least and the largest pixel: with fewer there is no image left to see
ROUNDING = 1e-12  # difference of float64 pixels that should be equal, as a share of them


def check_pixels(image: np.ndarray, source: object) -> np.ndarray:
    """The image, with 0 and 255 for booleans, if it has pixels and all are finite numbers, wherever it comes from.

    Args:
        image: array of any shape.
        source: origin of the pixels, as the sentence names it.

    Raises:
        InputError: there is no pixel, or pixels are no finite numbers or beyond ``MAX_VALUE``.
    """
    if image.size == 0:
        raise InputError(f"{source} has {image.shape} pixels, which is none; it is damaged.")
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    if image.dtype.kind not in "uif":
        raise InputError(f"{source} has pixels of type {image.dtype}; convert it to integers or floats.")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise InputError(f"{source} has pixels that are NaN or infinite; replace them by numbers.")
    if image.dtype.kind == "f" and max(abs(float(image.min())), abs(float(image.max()))) > MAX_VALUE:
        raise InputError(
            f"{source} has pixels beyond {MAX_VALUE:g}, which float32 cannot sum; divide them by a number, or replace "
            "them where they mark what is missing."
        )
    return image


def check_steps(image: np.ndarray, source: object) -> np.ndarray:
    """The image, if its pixels are as good as told apart in float32, in which the network computes.

    Args:
        image: all pixels of an image, as :func:`check_pixels` gives them.
        source: origin of the pixels, as the sentence names it.

    Raises:
        InputError: they differ, but by less than float32 has numbers for.
    """
    if image.dtype.itemsize < 4 or image.dtype == np.float32:
        return image
    least, most = float(image.min()), float(image.max())
    largest = max(abs(least), abs(most))
    if ROUNDING * largest < most - least < MIN_STEPS * float(np.spacing(np.float32(largest))):
        raise InputError(
            f"{source} has pixels from {least} to {most}, which float32 cannot tell apart; subtract the least from "
            "them, or multiply them by a number."
        )
    return image


def check_channel(source: object, channels: int, channel: int | None) -> None:
    """Refuse, by an InputError, to look at a channel, from 0 on, that an image does not have; None is all of them."""
    if channel is not None and channel >= channels:
        raise InputError(f"{source} has {channels} channel(s), so there is no channel {channel}; the first is 0.")


def check_opaque(mask: np.ndarray, source: object) -> np.ndarray:
    """The mask, unless its shapes may be those of its alpha, which no mask is read by.

    Args:
        mask: pixels as :func:`read_image` gives them.
        source: file of the mask, as the sentence names it.

    Raises:
        InputError: transparent pixels have numbers, or a colour.
    """
    if mask.shape[2:] == (4,) and mask[mask[..., 3] == 0][:, :3].any():
        raise InputError(
            f"{source} has transparent pixels that are not black, so that it does not say which number they have; save "
            "it without transparency, black where it is transparent."
        )
    return mask
