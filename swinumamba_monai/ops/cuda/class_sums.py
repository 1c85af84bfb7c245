# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The sums over pixels that soft Dice and cross entropy are made of, on an NVIDIA GPU: kernels/class_sums.cu.

In torch's operators a loss reads and writes maps of the size of the logits some thirty times. The operator
``swinumamba::class_sums`` reads them once in the forward, and in the backward reads them again and writes their
gradient; nothing of their size is kept. Sums are float32 and have a fixed order, so repeated runs agree bit for bit.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from swinumamba_monai.ops.autograd import register_backward

from .device import ELEMENTS, count_multiprocessors
from .nvrtc import load_kernels, on_its_device, params_type
from .row_sums import sum_rows

MAX_CLASSES = 32  # number of classes whose sums a thread has in registers
LOGITS = 32  # number of logits that a thread has in registers besides the sums
THREADS = 256
BLOCKS = 8  # number of blocks that fit a multiprocessor if their threads have few registers

_Params = params_type("ClassSumsParams", "logits target sums dsums dlogits", "pixels", ("ignored", ctypes.c_double))


def class_sums_cuda(logits: Tensor, target: Tensor, ignored: float = math.nan) -> Tensor:
    """What soft Dice and cross entropy need of each image.

    Args:
        logits: (b, c, ...), at most :data:`MAX_CLASSES` classes; float32, bfloat16 or float16.
        target: class of each pixel, (b, 1, ...), any dtype.
        ignored: target of pixels that count for nothing; NaN for none. Any other number that is no class makes sums
            and gradients NaN.

    Returns:
        (b, 3 * c + 1), float32: of each class the sum of the softmax over its own pixels, then over all pixels, then
        the number of its pixels; and the cross entropy of all pixels. Differentiable by the logits.
    """
    logits = logits.flatten(2)  # of channels-last maps a view too
    if not logits.transpose(1, 2).is_contiguous():
        logits = logits.contiguous()
    return _forward_op(logits, target.reshape(len(target), -1).float().contiguous(), ignored)


def _launch(name: str, logits: Tensor, target: Tensor, ignored: float, blocks: int, shared: int, **tensors) -> None:
    batch, classes, pixels = logits.shape
    channels_last = not logits.is_contiguous()
    count = classes if channels_last else pixels
    most = 4 if channels_last else LOGITS // classes
    maps = [t for t in (logits, target, tensors.get("dlogits")) if t is not None]
    vector = next(v for v in (4, 2, 1) if v <= most and count % v == 0 and _are_aligned(maps, v))
    defines = {
        "ELEMENT": ELEMENTS[logits.dtype], "VECTOR": vector, "CLASSES": classes, "CHANNELS_LAST": int(channels_last)
    }  # fmt: skip
    params = _Params(pixels=pixels, ignored=ignored, logits=logits.data_ptr(), target=target.data_ptr())
    for field, t in tensors.items():
        setattr(params, field, t.data_ptr())
    load_kernels("class_sums.cu", defines).launch(name, (blocks, batch, 1), THREADS, shared, params)


def _are_aligned(maps: list[Tensor], vector: int) -> bool:
    return all(t.data_ptr() % (vector * t.element_size()) == 0 for t in maps)


def _count_blocks(logits: Tensor) -> int:
    """Blocks of an image: about as many in all as fit the GPU, and none without a pixel for each of its threads."""
    batch, classes, pixels = logits.shape
    fit = min(BLOCKS, LOGITS // classes) * count_multiprocessors(logits.device)
    return max(1, min(-(-pixels // THREADS), fit // batch))


@on_its_device
def _forward(logits: Tensor, target: Tensor, ignored: float) -> Tensor:
    batch, classes, _ = logits.shape
    width, blocks = 3 * classes + 1, _count_blocks(logits)
    sums = target.new_empty(blocks, batch, width)
    _launch("class_sums", logits, target, ignored, blocks, 4 * THREADS // 32 * width, sums=sums)
    return sum_rows(sums)


@on_its_device
def _backward(dsums: Tensor, logits: Tensor, target: Tensor, ignored: float) -> Tensor:
    dlogits = torch.empty_like(logits)
    blocks = 4 * _count_blocks(logits)
    _launch("class_sums_backward", logits, target, ignored, blocks, 0, dsums=dsums.contiguous(), dlogits=dlogits)
    return dlogits


_forward_op = torch.library.custom_op(
    "swinumamba::class_sums",
    _forward,
    mutates_args=(),
    schema="(Tensor logits, Tensor target, float ignored) -> Tensor",
)
_backward_op = torch.library.custom_op(
    "swinumamba::class_sums_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor dsums, Tensor logits, Tensor target, float ignored) -> Tensor",
)


@_forward_op.register_fake
def _(logits, target, ignored):
    return target.new_empty(logits.shape[0], 3 * logits.shape[1] + 1)


@_backward_op.register_fake
def _(dsums, logits, target, ignored):
    return torch.empty_like(logits)


def _gradients(*arguments) -> tuple[Tensor, None]:
    return _backward_op(*arguments), None


register_backward(_forward_op, _gradients, num_options=1)
