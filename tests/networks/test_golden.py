# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Equality with the released code: outputs and gradients that it gave, recorded with generated weights.

What the files hold, and where each tolerance comes from, says ``golden/README.md`` beside them.
"""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch

from swinumamba_monai.networks import SwinUMamba, SwinUMambaD, UMambaBot, build_vmamba
from swinumamba_monai.networks.vss import SS2D
from swinumamba_monai.ops import cross_scan_2d
from swinumamba_monai.pretrained import load_pretrained

OUTPUT_TOLERANCE = {torch.float32: 4e-5, torch.float64: 1e-9}  # absolute; the largest logits are near 5
UMAMBA_TOLERANCE = {torch.float32: 3e-4, torch.float64: 1e-9}
GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the largest entry
# The released code takes exp(A_logs) in float32 even where all else is float64, and the last bit of that depends on the
# processor, because MKL does: 1e-14 on an AMD EPYC and with MKL_CBWR=COMPATIBLE, 8e-9 on an Intel Xeon.
VMAMBA_TOLERANCE = {torch.float32: 6e-5, torch.float64: 5e-8}
VMAMBA_GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # of the largest entry
BLOCK_TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture(scope="module")
def det_weights(reference_dir):
    """The module that generates weights and images."""
    spec = importlib.util.spec_from_file_location("det_weights", reference_dir / "det_weights.py")
    det_weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(det_weights)
    return det_weights


@pytest.fixture(scope="module")
def weights_of(reference_dir, det_weights):
    """The generated weights for a manifest, by name."""

    def generate(manifest: str) -> dict[str, torch.Tensor]:
        entries = json.loads((reference_dir / "manifests" / f"{manifest}.json").read_text())
        return {name: torch.from_numpy(w) for name, w in det_weights.det_state_dict(entries).items()}

    return generate


@pytest.fixture(scope="module")
def golden(reference_dir):
    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(reference_dir / "golden" / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}

    return load


def assert_within(actual, expected, tolerance, name=""):
    assert actual.shape == expected.shape, name
    error = (actual.detach().double() - expected).abs().max().item()
    assert error <= tolerance, f"{name}: {error:.2e} > {tolerance:.0e}"


def assert_heads_within(outs, exact, tolerance):
    assert len(outs) == 4
    for i, out in enumerate(outs):
        assert_within(out, exact[f"out64_{i}"], tolerance, f"head {i}")


def assert_gradients_within(net, exact, number, tolerance):
    """Of so many parameters, each within the tolerance times its largest expected gradient."""
    parameters = dict(net.named_parameters())
    gradients = {key.removeprefix("grad64/"): value for key, value in exact.items() if key.startswith("grad64/")}
    assert len(gradients) == number
    for name, expected in gradients.items():
        assert_within(parameters[name].grad, expected, tolerance * expected.abs().max(), name)


def build(cls, in_channels, out_channels, weights, **options):
    with torch.device("meta"):  # every value is loaded, none needs to be drawn
        net = cls(in_channels, out_channels, scan_backend="portable", **options)
    net.to_empty(device="cpu")
    report = load_pretrained(net, {"network_weights": weights})
    assert set(report.loaded) == set(weights) and not report.skipped and not report.missing
    return net.train()


@pytest.fixture(scope="module")
def net_d(weights_of):
    return build(SwinUMambaD, 1, 14, weights_of("SwinUMambaD_AbdomenMRI"), drop_path_rate=0.0)


@pytest.fixture(scope="module")
def net(weights_of):
    return build(SwinUMamba, 3, 8, weights_of("SwinUMamba_Endoscopy"), drop_path_rate=0.0)


@DTYPES
def test_swin_umamba_d(dtype, net_d, golden):
    image, exact = golden("SwinUMambaD_1x1x64x96")["input"], golden("SwinUMambaD_1x1x64x96_f64")
    net_d.to(dtype).zero_grad()
    outs = net_d(image.to(dtype))
    assert_heads_within(outs, exact, OUTPUT_TOLERANCE[dtype])
    loss = outs[0].square().sum() / outs[0].numel()
    assert_within(loss, exact["loss64"], OUTPUT_TOLERANCE[dtype], "loss")
    loss.backward()
    assert_gradients_within(net_d, exact, 5, GRADIENT_TOLERANCE[dtype])


@DTYPES
def test_swin_umamba(dtype, net, golden):
    """No gradients were recorded for this network."""
    image, exact = golden("SwinUMamba_1x3x128x64")["input"], golden("SwinUMamba_1x3x128x64_f64")
    net.to(dtype)
    with torch.no_grad():
        outs = net(image.to(dtype))
    assert_heads_within(outs, exact, OUTPUT_TOLERANCE[dtype])
    assert_within(outs[0].double().square().mean(), exact["loss64"], OUTPUT_TOLERANCE[dtype], "loss")


@pytest.fixture(scope="module")
def net_bot(weights_of):
    return build(UMambaBot, 1, 14, weights_of("UMambaBot_v1_AbdomenMRI"))


@DTYPES
def test_umamba_bot(dtype, net_bot, golden, det_weights):
    """The two finest heads were recorded at every fourth pixel. No gradients were, nor anything of U-Mamba_Enc."""
    image, exact = torch.from_numpy(det_weights.det_input((1, 1, 192, 256))), golden("UMambaBot_v1_1x1x192x256_f64")
    net_bot.to(dtype)
    with torch.no_grad():
        outs = net_bot(image.to(dtype))
    assert len(outs) == 6
    for i, out in enumerate(outs):
        step = 4 if i < 2 else 1
        assert_within(out[..., ::step, ::step], exact[f"out64_{i}"], UMAMBA_TOLERANCE[dtype], f"head {i}")
    for i, out in enumerate(outs[:2]):  # in full in float32 only
        recorded = golden("UMambaBot_v1_1x1x192x256")[f"out{i}"]
        assert_within(out, recorded, UMAMBA_TOLERANCE[torch.float32], f"head {i}")


@pytest.mark.parametrize("backend", ["portable", "auto"])
@DTYPES
def test_vmamba_of_the_final_version(dtype, backend, weights_of, golden):
    """The classifier that ImageNet trained: all stages, and the gradients of the first and the last."""
    exact = golden("VMambaT_s1l8_1x3x64x96")
    net = build_vmamba("vmamba_tiny_s1l8", num_classes=1000, scan_backend=backend)
    net.load_state_dict(weights_of("vmamba_tiny_s1l8"), strict=True)
    assert len(net.state_dict()) == 276 and sum(p.numel() for p in net.parameters()) == 30_249_064
    net.to(dtype).eval()
    image, tolerance = exact["input"].to(dtype), VMAMBA_TOLERANCE[dtype]
    assert_within(net.patch_embed(image).permute(0, 3, 1, 2), exact["embed64"], tolerance, "patch embedding")
    stages = net.features(image)
    assert len(stages) == 4
    for i, stage in enumerate(stages):
        assert_within(stage.permute(0, 3, 1, 2), exact[f"stage{i}_64"], tolerance, f"stage {i}")
    assert_within(net(image), exact["logits64"], tolerance, "logits")
    loss = stages[3].square().mean() + stages[0].square().mean()
    assert_within(loss, exact["loss64"], tolerance, "loss")
    loss.backward()
    assert_gradients_within(net, exact, 6, VMAMBA_GRADIENT_TOLERANCE[dtype])


class TestSS2D:
    """One SS2D module on an odd map: its output, all gradients, and each of the four directions on its own."""

    @pytest.fixture(scope="class")
    def arrays(self, golden):
        return golden("SS2D_d32_2x7x9x32")

    def block(self, weights_of, dtype):
        block = SS2D(32, scan_backend="portable")
        block.load_state_dict(weights_of("SS2D_d32"))
        return block.to(dtype)

    @DTYPES
    def test_output_and_gradients(self, dtype, weights_of, arrays):
        block = self.block(weights_of, dtype)
        x = arrays["input"].to(dtype, copy=True).requires_grad_()
        out = block(x)
        tolerance = BLOCK_TOLERANCE[dtype]
        assert_within(out, arrays["out64"], tolerance, "output")
        loss = out.square().sum() / out.numel()
        assert_within(loss, arrays["loss64"], tolerance, "loss")
        loss.backward()
        gradients = {"input": x.grad, **{name: p.grad for name, p in block.named_parameters()}}
        assert {f"grad64/{name}" for name in gradients} == {key for key in arrays if key.startswith("grad64/")}
        for name, gradient in gradients.items():
            assert_within(gradient, arrays[f"grad64/{name}"], tolerance, name)

    @DTYPES
    def test_four_directions(self, dtype, weights_of, arrays):
        """Our scan adds the directions up; with C zero in three of them it gives the fourth."""
        block = self.block(weights_of, dtype)
        x = arrays["core_in64"].to(dtype).permute(0, 2, 3, 1)
        names = ("rowmajor", "colmajor", "rowmajor_rev", "colmajor_rev")
        projected = torch.einsum("bhwd,kcd->bhwkc", x, block.x_proj_weight)
        low_rank, B, C = projected.split([block.dt_rank, block.d_state, block.d_state], dim=-1)
        delta = torch.einsum("bhwkr,kdr->bhwkd", low_rank, block.dt_projs_weight)
        A, D = -block.A_logs.exp().view(4, 64, 16), block.Ds.view(4, 64)
        outs = []
        for k, name in enumerate(names):
            only = torch.eye(4, dtype=dtype)[k, :, None]
            out = cross_scan_2d(x, delta, A, B, C * only, D * only, block.dt_projs_bias, backend="portable")
            expected = arrays[f"core_out64_{name}"]
            assert_within(out.permute(0, 3, 1, 2).flatten(2), expected, BLOCK_TOLERANCE[dtype], name)
            outs.append(out)
        out = cross_scan_2d(x, delta, A, B, C, D, block.dt_projs_bias, backend="portable")
        assert_within(out, sum(outs), BLOCK_TOLERANCE[dtype], "sum")
