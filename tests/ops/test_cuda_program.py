# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A program of ``torch.export`` that holds the CUDA kernels takes every size, emulated on the CPU."""

from __future__ import annotations

import pytest
import torch
from small_weights import without_early_blocks

from swinumamba_monai.export import make_program
from swinumamba_monai.networks import SwinUMamba, SwinUMambaD
from swinumamba_monai.ops.backends import ENVIRONMENT_VARIABLE

TOLERANCE = {"rtol": 0, "atol": 1e-4}  # as in tests/export


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="needs torch 2.7 or later")
@pytest.mark.parametrize("network", [SwinUMambaD, SwinUMamba])
def test_other_sizes_than_the_one_it_was_made_with(emulator, network, monkeypatch, uncached_shapes):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "cuda")  # as auto means on a GPU; on a CPU it is another scan for export
    torch.manual_seed(0)
    decoder = {"decoder_depths": (1, 1, 1)} if network is SwinUMambaD else {}
    net = without_early_blocks(network(1, 3, depths=(1, 1, 1, 1), feature_size=8, d_state=3, **decoder)).eval()
    program = make_program(net)
    assert "swinumamba.ss2d" in str(program.graph) and "swinumamba.layer_norm" in str(program.graph)
    run = program.module()
    with torch.no_grad():
        for size in ((64, 96), (160, 40), (33, 65)):
            x = torch.randn(1, 1, *size)
            torch.testing.assert_close(run(x), net(x), **TOLERANCE)
