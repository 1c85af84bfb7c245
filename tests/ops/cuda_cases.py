# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs of the CUDA kernels and the comparison with float64, for the emulator and for the GPU alike.

The truth is computed in float64 from the same numbers, after they were rounded to the dtype of the maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from swinumamba_monai.ops.reference import scan_orders

# Relative to the norm of the truth, of the output and of every gradient: the bounds for the scan.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


class Draw:
    """Random tensors.

    Args:
        seed: of the generator.
        dtype: of the maps.
        device: where they end up; they are drawn on the CPU, so they are the same everywhere.
    """

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.device = dtype, device

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device, dtype or self.dtype)

    def parameter(self, *shape: int) -> Tensor:
        return self.normal(*shape, dtype=torch.float32)

    def decay_rates(self, *shape: int) -> Tensor:
        return -4 * torch.rand(shape, generator=self.generator).to(self.device)


def map_inputs(b, h, w, d, n, *, dtype=torch.float32, seed=0, device="cpu") -> dict[str, Tensor]:
    """Inputs of ``cross_scan_2d``."""
    draw = Draw(seed, dtype, device)
    return {
        "x": draw.normal(b, h, w, d),
        "delta": draw.normal(b, h, w, 4, d) - 1,
        "A": draw.decay_rates(4, d, n),
        "B": draw.normal(b, h, w, 4, n),
        "C": draw.normal(b, h, w, 4, n),
        "D": draw.parameter(4, d),
        "delta_bias": draw.parameter(4, d),
    }


INSTANCE_NORMS = ("weight", "bias", "residual_weight", "residual_bias")


def instance_norm_inputs(sizes, dtype=torch.float32, device="cpu") -> dict[str, Tensor]:
    """Inputs of :func:`call_instance_norm` for maps of these sizes, their channels last in memory."""
    draw = Draw(sum(sizes), dtype, device)
    x, residual = (draw.normal(sizes[0], *sizes[2:], sizes[1]).movedim(-1, 1) for _ in range(2))
    return {"x": x + 2, "residual": residual, **{name: draw.parameter(sizes[1]) for name in INSTANCE_NORMS}}


def call_instance_norm(
    function, x, residual=None, weight=None, bias=None, residual_weight=None, residual_bias=None, slope=0.01, two=True
) -> Tensor:
    """``function`` is an instance norm; ``two``: the residual goes through one, too."""
    other = (residual_weight, residual_bias) if two else None
    return function(x, residual, weight, bias, 1e-5, slope, other)


def sequence_inputs(b, length, groups, d, n, *, dtype=torch.float32, seed=0, device="cpu") -> dict[str, Tensor]:
    """Inputs of ``selective_scan``; d channels in each group."""
    draw = Draw(seed, dtype, device)
    return {
        "u": draw.normal(b, groups * d, length),
        "delta": draw.normal(b, groups * d, length).abs() / 4,
        "A": draw.decay_rates(groups * d, n),
        "B": draw.normal(b, groups, n, length),
        "C": draw.normal(b, groups, n, length),
        "D": draw.parameter(groups * d),
        "delta_bias": draw.parameter(groups * d) / 100,
    }


def ss2d_inputs(
    b, h, w, m, n, rank, *, dtype=torch.float32, seed=0, device="cpu", gated=True, expand=2
) -> dict[str, Tensor]:
    """Inputs of ``ss2d``, weights that keep every map about as large as its input; without a gate as in VMamba's final
    version, which has no biases of the convolution either.
    """
    draw, d = Draw(seed, dtype, device), expand * m
    return {
        "x": draw.normal(b, h, w, m),
        "in_proj_weight": draw.parameter(2 * d if gated else d, m) / m**0.5,
        "conv_weight": draw.parameter(d, 1, 3, 3) / 3,
        **({"conv_bias": draw.parameter(d)} if gated else {}),
        "x_proj_weight": draw.parameter(4, rank + 2 * n, d) / d**0.5,
        "dt_weight": draw.parameter(4, d, rank) / rank**0.5,
        "dt_bias": draw.parameter(4, d) - 2,
        "A_logs": draw.parameter(4 * d, n) / 2,
        "Ds": draw.parameter(4 * d),
        "norm_weight": draw.parameter(d),
        "norm_bias": draw.parameter(d),
        "out_proj_weight": draw.parameter(m, d) / d**0.5,
    }


def loss_inputs(*shape, dtype=torch.float32, device="cpu", channels_last=False) -> tuple[Tensor, Tensor]:
    """Logits (b, classes, ...) and a target in which no class is like another, and the last has one pixel."""
    draw = Draw(sum(shape), dtype, device)
    logits = 3 * draw.normal(*shape)
    target = (draw.parameter(shape[0], 1, *shape[2:]).abs() * shape[1] / 3).floor().clamp(max=shape[1] - 2)
    target.view(-1)[-1] = shape[1] - 1
    return logits.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else logits, target


def leaves(inputs: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The same numbers and strides, as tensors that want a gradient."""
    return {name: t.detach().to(dtype or t.dtype).requires_grad_() for name, t in inputs.items()}


def output_and_gradients(function: Callable[..., Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The output, and under the names of the inputs the gradients of a fixed random projection of it."""
    out = function(**inputs)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()  # exact in every dtype
    wanted = {name: t for name, t in inputs.items() if t.requires_grad}
    direction = direction.to(out.device, out.dtype)
    # At a single position nothing depends on A: some ways to write that have no edge to it, others a gradient of zero.
    grads = torch.autograd.grad(out, tuple(wanted.values()), direction, allow_unused=True, materialize_grads=True)
    return {"out": out.detach(), **dict(zip(wanted, grads))}


def assert_near(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float, note="") -> None:
    """Every tensor is finite and as near as ``tolerance`` times the norm of what is expected."""
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        got = actual[name]
        assert got.shape == want.shape, f"{name}: {tuple(got.shape)}, not {tuple(want.shape)} {note}"
        assert got.isfinite().all(), f"{name} is not finite {note}"
        error, size = (got.double() - want.double()).norm().item(), want.double().norm().item()
        assert error <= tolerance * max(size, 1e-3), f"{name}: {error / max(size, 1e-3):.1e} {note}"


def assert_like_float64(
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Mapping[str, Tensor],
    tolerance: float,
    note="",
) -> dict[str, Tensor]:
    """Output and gradients of ``function`` are those of ``reference`` in float64; returns them."""
    actual = output_and_gradients(function, leaves(inputs))
    first = next(iter(inputs.values()))
    assert actual["out"].dtype == first.dtype
    assert all(actual[name].dtype == t.dtype for name, t in inputs.items())
    assert_near(actual, output_and_gradients(reference, leaves(inputs, torch.float64)), tolerance, note)
    return actual


def assert_loss_like_float64(
    loss: Callable[[Tensor, Tensor], Tensor],
    reference: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    target: Tensor,
    reference_target: Tensor | None = None,
) -> dict[str, Tensor]:
    """The sum over the pixels of a loss that is their mean, and its gradient, are those of ``reference`` in float64.

    Returns them. The sum, because the gradient of the mean over many pixels is less than float16 can hold.
    """

    def of(loss: Callable, target: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda logits: target.numel() * loss(logits, target)

    actual = output_and_gradients(of(loss, target), leaves({"logits": logits}))
    target = (target if reference_target is None else reference_target).double()
    exact = output_and_gradients(of(reference, target), leaves({"logits": logits}, torch.float64))
    assert actual["out"].dtype == torch.float32 and actual["logits"].dtype == logits.dtype
    assert actual["logits"].stride() == logits.stride()
    assert_near({"out": actual["out"]}, {"out": exact["out"]}, TOLERANCES[torch.float32])
    assert_near({"": actual["logits"]}, {"": exact["logits"]}, TOLERANCES[logits.dtype])
    return actual


def assert_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        assert actual[name].equal(want), name


def doubling_cross_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """``cross_scan_2d`` for maps that are too long for one position after another.

    After i rounds every state holds the last 2^i positions' share of it. Takes about log2(h w) times the memory of all
    states, and shares nothing with the backends but the order of the directions.
    """
    height, width = x.shape[1:3]
    orders = scan_orders(height, width, x.device)

    def along_directions(t: Tensor) -> Tensor:  # (b, h, w, 4, ...) -> (4, b, l, ...)
        return torch.stack([t.flatten(1, 2)[:, order, k] for k, order in enumerate(orders)])

    u, delta, B, C = map(along_directions, (x[..., None, :].expand_as(delta), delta, B, C))
    delta = F.softplus(delta + delta_bias[:, None, None])
    decay = torch.exp(delta[..., None] * A[:, None, None])
    states = (delta * u)[..., None] * B[..., None, :]
    reach = 1
    while reach < height * width:
        earlier, later = slice(None, -reach), slice(reach, None)
        carried = decay[:, :, later] * states[:, :, earlier]
        longer = decay[:, :, later] * decay[:, :, earlier]
        states = torch.cat([states[:, :, :reach], states[:, :, later] + carried], dim=2)
        decay = torch.cat([decay[:, :, :reach], longer], dim=2)
        reach *= 2
    y = (states * C[..., None, :]).sum(-1) + D[:, None, None] * u
    merged = sum(torch.zeros_like(y[k]).index_add(1, order, y[k]) for k, order in enumerate(orders))
    return merged.unflatten(1, (height, width))
