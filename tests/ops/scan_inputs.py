# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs of the scan of a sequence and of a map, and the comparison of two scans of them."""

from __future__ import annotations

import torch

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
SMALL_CHUNK = 5


def sequence(b=2, d=8, l=13, n=4, g=2, dtype=torch.float64, seed=0) -> dict[str, torch.Tensor]:  # noqa: E741
    """Inputs of ``selective_scan`` with decays between 0 and 1; the first four letters as in ops/reference.py."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    B_shape = (b, g, n, l) if g else (b, n, l)
    return {
        "u": normal(b, d, l),
        "delta": normal(b, d, l) - 1,
        "A": -4 * torch.rand(d, n, generator=draw, dtype=torch.float64).to(dtype),
        "B": normal(*B_shape),
        "C": normal(*B_shape),
        "D": normal(d),
        "delta_bias": normal(d),
    }


def image_map(b=2, h=3, w=5, d=4, n=3, dtype=torch.float64, seed=0) -> dict[str, torch.Tensor]:
    """Inputs of ``cross_scan_2d``."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    return {
        "x": normal(b, h, w, d),
        "delta": normal(b, h, w, 4, d) - 1,
        "A": -4 * torch.rand(4, d, n, generator=draw, dtype=torch.float64).to(dtype),
        "B": normal(b, h, w, 4, n),
        "C": normal(b, h, w, 4, n),
        "D": normal(4, d),
        "delta_bias": normal(4, d),
    }


def run(scan, inputs, **options) -> dict[str, torch.Tensor]:
    """The output, and the gradients of a fixed projection of it (exact in every dtype), under the inputs' names."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
    out = scan(**leaves, **options)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    (out.double() * direction.double()).sum().backward()
    return {"out": out.detach(), **{name: t.grad for name, t in leaves.items()}}


def assert_near(actual, expected, tolerance):
    """Every entry within ``tolerance`` of the largest expected value."""
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        assert actual[name].isfinite().all(), name
        error = (actual[name].double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: {error:.2e}"


def double(inputs):
    return {name: t.double() for name, t in inputs.items()}


def grouped(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """A sequence with one group in the layout of the operator: positions before channels."""
    u, delta, A, B, C, D, bias = (inputs[name] for name in NAMES)
    return [
        *(t.transpose(1, 2).unsqueeze(2) for t in (u, delta)),
        A.unsqueeze(0),
        *(t.permute(0, 3, 1, 2) for t in (B, C)),
        *(t.unsqueeze(0) for t in (D, bias)),
    ]
