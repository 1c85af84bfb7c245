# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The loops behind :mod:`.jit_cpu_fused`, compiled by Numba. Importing this module imports Numba.

A task is one row of one sample of a map (b, h, w, c), and the innermost loops run over the channels of a pixel. Inputs
come as arrays of one axis with the distance of one pixel to the next, so that they may be half of the channels of a
larger map; outputs are C-contiguous. What is summed over pixels is written for each row, and the caller adds it up.
"""

from __future__ import annotations

import numpy as np

from .jit_cpu_math import entry, inner, inner_summing, sigmoid

__all__ = ["conv", "conv_silu", "conv_silu_backward", "norm_gate", "norm_gate_backward"]


@inner
def _pixel(flat, distance, channels, index):
    return flat[index * distance : index * distance + channels]


@inner
def _add_taps(left, middle, right, weight, total):
    """A row of a 3×3 kernel; ``weight`` has its three taps, one after another."""
    c = len(total)
    for j in range(c):
        total[j] += left[j] * weight[j] + middle[j] * weight[c + j] + right[j] * weight[2 * c + j]


@inner
def _convolve(flat, distance, task, height, width, column, weight, outside, total):
    """Add to ``total`` the 3×3 convolution at a pixel; ``weight`` is (3, 3c), ``outside`` zeros."""
    c = len(total)
    y = task % height
    for i in range(3):
        if 0 <= y + i - 1 < height:
            index = (task + i - 1) * width + column
            left = _pixel(flat, distance, c, index - 1) if column > 0 else outside
            right = _pixel(flat, distance, c, index + 1) if column < width - 1 else outside
            _add_taps(left, _pixel(flat, distance, c, index), right, weight[i], total)


@entry
def conv(start, stop, x, distance, weight, out):
    """Depthwise 3×3 convolution: rows ``start`` to ``stop`` of all samples, of x (flat) with weight (3, 3c)."""
    _, height, width, c = out.shape
    outside = np.zeros(c, out.dtype)
    for task in range(start, stop):
        for column in range(width):
            total = out[task // height, task % height, column]
            total[:] = 0
            _convolve(x, distance, task, height, width, column, weight, outside, total)


@inner
def _silu(z, out):
    for j in range(len(z)):
        out[j] = z[j] * sigmoid(z[j])


@entry
def conv_silu(start, stop, x, distance, weight, bias, out):
    """:func:`conv` with a bias, followed by SiLU."""
    _, height, width, c = out.shape
    outside = np.zeros(c, out.dtype)
    for task in range(start, stop):
        for column in range(width):
            total = out[task // height, task % height, column]
            total[:] = bias
            _convolve(x, distance, task, height, width, column, weight, outside, total)
            _silu(total, total)


@inner
def _differentiate_silu(z, dout, dz):
    for j in range(len(z)):
        s = sigmoid(z[j])
        dz[j] = dout[j] * (s + z[j] * s * (1 - s))


@inner
def _multiply_add(a, b, total):
    for j in range(len(total)):
        total[j] += a[j] * b[j]


@entry
def conv_silu_backward(start, stop, dout, x, distance, weight, bias, dz, dweight, dbias):
    """Gradient before the activation, from which :func:`conv` with the kernel turned round makes that of x.

    Args:
        start: first row.
        stop: the row to stop before.
        dout: gradient of the output, (b, h, w, c); followed by the inputs of :func:`conv_silu`.
        dz: written, (b, h, w, c).
        dweight: written for each row, (b * h, 9, c).
        dbias: written for each row, (b * h, c).
    """
    _, height, width, c = dz.shape
    outside, z = np.zeros(c, dz.dtype), np.zeros(c, dz.dtype)
    for task in range(start, stop):
        b, y = task // height, task % height
        dweight[task] = 0
        dbias[task] = 0
        for column in range(width):
            dz_pixel = dz[b, y, column]
            z[:] = bias
            _convolve(x, distance, task, height, width, column, weight, outside, z)
            _differentiate_silu(z, dout[b, y, column], dz_pixel)
            dbias[task] += dz_pixel
            for i in range(max(0, 1 - y), min(3, height + 1 - y)):
                for k in range(max(0, 1 - column), min(3, width + 1 - column)):
                    neighbour = _pixel(x, distance, c, (task + i - 1) * width + column + k - 1)
                    _multiply_add(dz_pixel, neighbour, dweight[task, 3 * i + k])


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
    """LayerNorm(y) * SiLU(gate) of rows ``start`` to ``stop``; y and out are (b, h, w, c), gate is flat."""
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
    """Gradients of :func:`norm_gate`: dy and dgate, (b, h, w, c); dweight and dbias for each row, (b * h, c)."""
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
            dbias[task] += dscaled
