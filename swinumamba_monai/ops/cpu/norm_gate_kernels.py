# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The loops behind :mod:`.norm_gate`, compiled by Numba. Importing this module imports Numba.

A task is one row of one sample of a map (b, h, w, c), and the innermost loops run over the channels of a pixel. A gate
comes as an array of one axis with the distance of one pixel to the next, so that it may be half of the channels of a
larger map; the other arrays are C-contiguous. What is summed over pixels is written for each row of the map, and the
caller adds it up.
"""

from __future__ import annotations

import numpy as np

from .math import entry, inner, inner_summing, sigmoid


@inner
def _pixel(flat, distance, channels, index):
    return flat[index * distance : index * distance + channels]


@inner
def _add(source, total):
    for j in range(len(total)):
        total[j] += source[j]


@inner
def _multiply_add(a, b, total):
    for j in range(len(total)):
        total[j] += a[j] * b[j]


@inner_summing
def _standardise(y, eps, out):
    """Write (y - mean) / sqrt(variance + eps), and return 1 / sqrt(variance + eps)."""
    total = square = y.dtype.type(0)
    for j in range(len(y)):
        total += y[j]
    mean = total / y.dtype.type(len(y))
    for j in range(len(y)):
        square += (y[j] - mean) * (y[j] - mean)
    scale = y.dtype.type(1) / np.sqrt(square / y.dtype.type(len(y)) + y.dtype.type(eps))
    for j in range(len(y)):
        out[j] = (y[j] - mean) * scale
    return scale


@inner
def _apply_gate(weight, bias, gate, out):
    for j in range(len(out)):
        out[j] = (out[j] * weight[j] + bias[j]) * (gate[j] * sigmoid(gate[j]))


@entry
def norm_gate(start, stop, y, gate, gate_distance, weight, bias, eps, out):
    """LayerNorm(y) * SiLU(gate) of rows ``start`` to ``stop``; y and out are (b, h, w, c), gate is flat.

    Args:
        start: first row.
        stop: the row to stop before.
        y: maps, (b, h, w, c).
        gate: gates, flat.
        gate_distance: distance of two pixels' gates.
        weight: scale of the norm, (c,).
        bias: offset of the norm, (c,).
        eps: added to the variance.
        out: written, (b, h, w, c).
    """
    _, height, width, c = out.shape
    for task in range(start, stop):
        for column in range(width):
            pixel = out[task // height, task % height, column]
            _standardise(y[task // height, task % height, column], eps, pixel)
            _apply_gate(weight, bias, _pixel(gate, gate_distance, c, task * width + column), pixel)


@inner
def _differentiate_gate(dout, normed, weight, bias, gate, dgate, dscaled):
    for j in range(len(dout)):
        s = sigmoid(gate[j])
        dscaled[j] = dout[j] * (gate[j] * s)
        dgate[j] = dout[j] * (normed[j] * weight[j] + bias[j]) * (s + gate[j] * s * (1 - s))


@inner_summing
def _differentiate_norm(dscaled, normed, weight, scale, dy):
    along = total = dy.dtype.type(0)
    for j in range(len(dy)):
        dnormed = dscaled[j] * weight[j]
        dy[j] = dnormed
        total += dnormed
        along += dnormed * normed[j]
    mean, slope = total / dy.dtype.type(len(dy)), along / dy.dtype.type(len(dy))
    for j in range(len(dy)):
        dy[j] = (dy[j] - mean - normed[j] * slope) * scale


@entry
def norm_gate_backward(start, stop, dout, y, gate, gate_distance, weight, bias, eps, dy, dgate, dweight, dbias):
    """Gradients of :func:`norm_gate`, whose further arguments are its own.

    Args:
        start, stop: first of the rows of all maps, b * h, and the one behind the last.
        dout: gradient of the output, (b, h, w, c).
        dy, dgate: gradients that are written, (b, h, w, c).
        dweight, dbias: the same for each row, (b * h, c).
    """
    _, height, width, c = dy.shape
    normed, dscaled = np.zeros(c, dy.dtype), np.zeros(c, dy.dtype)
    for task in range(start, stop):
        b, row = task // height, task % height
        dweight[task] = 0
        dbias[task] = 0
        for column in range(width):
            gate_pixel = _pixel(gate, gate_distance, c, task * width + column)
            scale = _standardise(y[b, row, column], eps, normed)
            _differentiate_gate(dout[b, row, column], normed, weight, bias, gate_pixel, dgate[b, row, column], dscaled)
            _differentiate_norm(dscaled, normed, weight, scale, dy[b, row, column])
            _multiply_add(dscaled, normed, dweight[task])
            _add(dscaled, dbias[task])
