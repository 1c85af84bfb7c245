# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Mamba's mixer of a sequence against its equations, and its names against mamba_ssm's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_umamba import image

from swinumamba_monai.networks import Mamba
from swinumamba_monai.ops import selective_scan


class TestMamba:
    def mixer(self, **options):
        torch.manual_seed(0)
        return Mamba(24, d_state=4, scan_backend="portable", **options)

    def test_names_and_shapes_of_mamba_ssm(self):
        shapes = {name: tuple(p.shape) for name, p in Mamba(24).named_parameters()}
        assert shapes == {
            "in_proj.weight": (96, 24),
            "conv1d.weight": (48, 1, 4),
            "conv1d.bias": (48,),
            "x_proj.weight": (34, 48),  # ceil(24 / 16) + 2 * 16
            "dt_proj.weight": (48, 2),
            "dt_proj.bias": (48,),
            "A_log": (48, 16),
            "D": (48,),
            "out_proj.weight": (24, 48),
        }

    def test_is_what_its_equations_say(self):
        mixer, x = self.mixer().double(), image(2, 11, 24, dtype=torch.float64)
        u, gate = mixer.in_proj(x).chunk(2, dim=-1)
        u = F.silu(mixer.conv1d(u.mT)[..., :11])
        low_rank, B, C = mixer.x_proj(u.mT).split([2, 4, 4], dim=-1)
        delta = F.softplus(mixer.dt_proj(low_rank)).mT
        y = selective_scan(u, delta, -mixer.A_log.exp(), B.mT, C.mT, mixer.D, backend="reference")
        torch.testing.assert_close(mixer(x), mixer.out_proj(y.mT * F.silu(gate)), rtol=0, atol=1e-12)

    def test_is_causal(self):
        mixer, x = self.mixer(), image(1, 9, 24)
        changed = x.clone()
        changed[:, 5] += 1
        difference = (mixer(changed) - mixer(x)).abs().amax(dim=(0, 2))
        assert difference[:5].max() == 0 and difference[5:].min() > 0

    @pytest.mark.parametrize("length", [1, 2, 7])
    def test_short_sequences(self, length):
        assert self.mixer()(image(2, length, 24)).shape == (2, length, 24)

    def test_initial_scan(self):
        mixer = Mamba(512)
        assert torch.equal(mixer.A_log, torch.arange(1, 17.0).log().expand(1024, 16))
        assert torch.equal(mixer.D, torch.ones(1024))
        assert mixer.dt_proj.weight.abs().max().item() == pytest.approx(32**-0.5, rel=0.01)
        steps = F.softplus(mixer.dt_proj.bias)
        assert 0.999e-3 <= steps.min() and steps.max() <= 0.1001
        assert steps.median().item() == pytest.approx(1e-2, rel=0.2)  # log-uniform

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)], ids=str)
    def test_autocast(self, dtype, tolerance):
        """bfloat16 keeps 8 bits and float16 11; five products round once each."""
        mixer, x = self.mixer(), image(2, 200, 24)
        expected = mixer(x)
        with torch.autocast("cpu", dtype):
            actual = mixer(x)
        assert actual.dtype == dtype
        assert (actual - expected).norm() <= tolerance * expected.norm()
        actual.float().square().sum().backward()  # a mean's gradients would be zero in float16
        assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in mixer.parameters())

    def test_unknown_backend(self):
        with pytest.raises(ValueError, match=r"^scan_backend must be one of"):
            Mamba(8, scan_backend="gpu")
