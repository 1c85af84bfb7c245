# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The loops behind :mod:`.conv_silu`, compiled by Numba. Importing this module imports Numba.

A task is one row of one sample of a map (b, h, w, c), and the innermost loops run over the channels of a pixel. All
arrays are flat. The input comes with the distance of one pixel to the next, so that it may be half of the channels of a
larger map. Indices have no sign: Numba lets those that do count from the end, which keeps LLVM from making vectors.
"""

from __future__ import annotations

import numpy as np

from .math import apart, entry, inner, sigmoid

_PLACES = np.uintp(3)  # of the kernel, side by side in a row


@inner
def _begin(bias, out, o, c):
    apart()
    for j in range(c):
        out[o + j] = bias[j]


@inner
def _add(x, i, weights, w, out, o, c):
    """Add one place of the kernel."""
    apart()
    for j in range(c):
        out[o + j] += x[i + j] * weights[w + j]


@inner
def _add_three(x, i, distance, weights, w, out, o, c):
    """Add the three places of a row of the kernel."""
    apart()
    right, w1, w2 = i + distance + distance, w + c, w + c + c
    for j in range(c):
        pair = x[i + j] * weights[w + j] + x[i + distance + j] * weights[w1 + j]
        out[o + j] += pair + x[right + j] * weights[w2 + j]


@inner
def _activate(out, o, c):
    apart()
    for j in range(c):
        out[o + j] = out[o + j] * sigmoid(out[o + j])


@entry
def conv_silu(start, stop, x, distance, weights, bias, height, width, out):
    """SiLU of a depthwise convolution of 3×3 pixels, of rows ``start`` to ``stop``; beyond the map are zeros.

    Args:
        start: first row.
        stop: the row to stop before.
        x: maps, flat.
        distance: distance of two pixels of x.
        weights: kernels, (9 * c,), the channels of a place in the kernel side by side.
        bias: offsets, (c,).
        height: rows of a map.
        width: pixels of a row.
        out: written, (b * h * w * c,).
    """
    c, distance = np.uintp(len(bias)), np.uintp(distance)
    for task in range(start, stop):
        for column in range(width):
            pixel = task * width + column
            o = np.uintp(pixel) * c
            _begin(bias, out, o, c)
            for row in range(max(0, 1 - task % height), min(3, 1 + height - task % height)):
                w = np.uintp(row) * _PLACES * c
                left = pixel + (row - 1) * width - 1
                if 0 < column < width - 1:
                    _add_three(x, np.uintp(left) * distance, distance, weights, w, out, o, c)
                else:
                    for place in range(max(0, 1 - column), min(3, 1 + width - column)):
                        _add(x, np.uintp(left + place) * distance, weights, w + np.uintp(place) * c, out, o, c)
            _activate(out, o, c)
