# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""SS2D as one operator, its CUDA kernels emulated, against its lines in torch in float64; and in the networks."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cuda_cases import (
    TOLERANCES,
    Draw,
    assert_equal,
    assert_like_float64,
    assert_near,
    leaves,
    output_and_gradients,
    ss2d_inputs,
)
from monai.data import MetaTensor

from swinumamba_monai.networks import SwinUMambaD
from swinumamba_monai.networks.vss import SS2D, VSSBlock
from swinumamba_monai.networks.vss_later import VSSMLPBlock
from swinumamba_monai.ops.backends import find_backend
from swinumamba_monai.ops.cuda import ss2d as ss2d_module
from swinumamba_monai.ops.ss2d import ss2d, ss2d_ref

reference = partial(ss2d_ref, backend="reference")

# batch, height, width, channels (twice as many are scanned), states, rank of Δ
SIZES = [(1, 1, 1, 3, 1, 1), (2, 3, 5, 5, 3, 1), (3, 2, 9, 10, 8, 3), (1, 5, 7, 16, 16, 9)]
# The output is held to the bounds of a scan. Its gradients pass a dozen maps that are rounded one after another, and
# weights that are; torch's own lines under autocast are up to 2e-2 (bfloat16) from float64 here.
HALF_TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_float32(emulator, sizes):
    inputs = ss2d_inputs(*sizes, seed=sum(sizes))
    assert_like_float64(ss2d, reference, inputs, TOLERANCES[torch.float32])
    assert emulator.grids("scan_backward")


# Of VMamba's final version: batch, height, width, channels, states, rank of Δ; ratio of scanned channels; dtype.
UNGATED = [
    ((1, 1, 1, 3, 1, 1), 1, torch.float32),
    ((2, 3, 5, 20, 1, 2), 1, torch.float32),
    ((1, 3, 4, 5, 4, 3), 1, torch.float32),
    ((1, 5, 7, 16, 1, 1), 2, torch.bfloat16),
    ((1, 3, 11, 32, 1, 6), 1, torch.float16),
]


def ungated(function, **inputs):
    return function(**{"conv_bias": None, **inputs}, gated=False)


@pytest.mark.parametrize("sizes, expand, dtype", UNGATED, ids=str)
def test_without_a_gate(emulator, sizes, expand, dtype):
    inputs = ss2d_inputs(*sizes, seed=sum(sizes), dtype=dtype, gated=False, expand=expand)
    tolerance = HALF_TOLERANCES.get(dtype, TOLERANCES[torch.float32])
    assert_like_float64(partial(ungated, ss2d), partial(ungated, reference), inputs, tolerance)
    assert len(emulator.grids("layer_norm")) == len(emulator.grids("layer_norm_backward")) == 1


@pytest.mark.parametrize("dtype", HALF_TOLERANCES, ids=str)
def test_half_precision(emulator, dtype):
    inputs = ss2d_inputs(1, 5, 7, 10, 16, 3, dtype=dtype)
    actual = assert_like_float64(ss2d, reference, inputs, HALF_TOLERANCES[dtype])
    expected = reference(**{name: t.double() for name, t in inputs.items()})
    assert_near({"out": actual["out"]}, {"out": expected}, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", HALF_TOLERANCES, ids=str)
def test_autocast(emulator, dtype):
    """The same as maps of that dtype, with the gradient of the map in its own."""
    inputs = ss2d_inputs(1, 5, 7, 10, 16, 3)
    inputs["x"] = inputs["x"].to(dtype).float()

    def under_autocast(**tensors):
        with torch.autocast("cpu", dtype):
            return ss2d(**tensors)

    actual = output_and_gradients(under_autocast, leaves(inputs))
    expected = output_and_gradients(ss2d, leaves({**inputs, "x": inputs["x"].to(dtype)}))
    assert actual["out"].dtype == dtype and actual["x"].dtype == torch.float32
    assert_equal({**actual, "x": actual["x"].to(dtype)}, expected)


def test_numbers_never_seen_before(emulator):
    """Other numbers in each run; the seed that failed is in the message."""
    seed = torch.seed() % 2**32
    inputs = ss2d_inputs(2, 3, 11, 8, 4, 2, seed=seed)
    assert_like_float64(ss2d, reference, inputs, TOLERANCES[torch.float32], note=f"(seed {seed})")


def test_some_samples_at_a_time(emulator, monkeypatch):
    inputs = ss2d_inputs(3, 5, 7, 8, 4, 2)
    together = output_and_gradients(ss2d, leaves(inputs))
    assert {grid[1] for grid in emulator.grids("scan_forward")} == {4 * 3}
    emulator.launched.clear()
    sample_bytes = ss2d_module.SCAN_MAPS * 5 * 7 * 16 * 4
    monkeypatch.setattr(ss2d_module, "SCAN_BYTES", 2 * sample_bytes)
    in_parts = assert_like_float64(ss2d, reference, inputs, TOLERANCES[torch.float32])
    assert [grid[1] for grid in emulator.grids("scan_forward")] == [8, 4]
    assert [grid[1] for grid in emulator.grids("scan_backward")] == [8, 4]
    assert in_parts["out"].equal(together["out"])


def test_no_fewer_samples_at_a_time_than_fill_the_gpu(emulator, monkeypatch):
    """Slices of 13 samples would leave multiprocessors of an H100 idle, halves of 32 do not."""
    emulator.set_multiprocessors(132)
    for size, samples in (((13, 96, 160, 192), [13]), ((32, 80, 80, 192), [16, 16]), ((16, 80, 80, 192), [16])):
        slices = ss2d_module._slices(torch.empty(1, dtype=torch.bfloat16).expand(size), 16)
        assert [len(range(size[0])[part]) for part in slices] == samples


def test_layouts(emulator):
    inputs = ss2d_inputs(2, 3, 5, 8, 4, 2)
    expected = output_and_gradients(ss2d, leaves(inputs))
    columns_first = {name: t.mT.contiguous().mT if t.ndim > 1 else t for name, t in inputs.items()}
    actual = output_and_gradients(ss2d, leaves(columns_first))
    assert_near(actual, expected, 1e-6)


def test_repeated_runs_agree_bit_for_bit(emulator):
    emulator.set_multiprocessors(3)
    inputs = leaves(ss2d_inputs(2, 5, 7, 8, 4, 2))
    assert_equal(output_and_gradients(ss2d, inputs), output_and_gradients(ss2d, inputs))


@pytest.mark.parametrize("wanted", [("x",), ("A_logs", "conv_bias"), ("out_proj_weight",)], ids=str)
def test_gradients_of_some_inputs(emulator, wanted):
    inputs = ss2d_inputs(1, 3, 5, 8, 4, 2)
    everything = output_and_gradients(ss2d, leaves(inputs))
    some = {name: t.requires_grad_(name in wanted) for name, t in leaves(inputs).items()}
    assert_equal(output_and_gradients(ss2d, some), {name: everything[name] for name in ("out", *wanted)})


@pytest.mark.parametrize("keep, gated", [(False, True), (True, True), (True, False)])
def test_operators_are_registered_correctly(emulator, keep, gated):
    tensors = leaves(ss2d_inputs(2, 3, 5, 8, 4 if gated else 1, 2, gated=gated))
    inputs = [t.requires_grad_(keep) for t in tensors.values()]
    if not gated:
        inputs.insert(3, None)  # the convolution's biases
    torch.library.opcheck(torch.ops.swinumamba.ss2d.default, (*inputs, 1e-5, keep))
    if keep:
        out, *kept = (t.detach() for t in torch.ops.swinumamba.ss2d(*inputs, 1e-5, True))
        detached = [t if t is None else t.detach() for t in inputs]
        torch.library.opcheck(torch.ops.swinumamba.ss2d_backward.default, (out, *kept, *detached))


def test_compiles_into_one_graph(emulator):
    inputs = leaves(ss2d_inputs(2, 3, 5, 8, 4, 2))
    compiled = torch.compile(ss2d, backend="aot_eager", fullgraph=True)
    assert_equal(output_and_gradients(compiled, inputs), output_and_gradients(ss2d, inputs))


def test_an_rms_norm_takes_the_scan_alone(emulator):
    inputs = ss2d_inputs(1, 3, 5, 8, 4, 2)
    del inputs["norm_bias"]
    assert_like_float64(
        partial(ss2d, norm_bias=None), partial(reference, norm_bias=None), inputs, TOLERANCES[torch.float32]
    )
    launched = {name for name, _ in emulator.launched}
    assert "scan_backward" in launched and "conv_silu" not in launched


def norm_inside(x, pre_weight, pre_bias, **inputs):
    return ss2d(x, **{"conv_bias": None, **inputs}, gated="conv_bias" in inputs, pre_norm=(pre_weight, pre_bias, 1e-3))


def norm_before(x, pre_weight, pre_bias, **inputs):
    x = find_backend(inputs.get("backend", "auto"), x).norm(x, pre_weight, pre_bias, 1e-3)
    return ss2d(x, **{"conv_bias": None, **inputs}, gated="conv_bias" in inputs)


def inputs_with_a_norm(*sizes, gated=True, dtype=torch.float32):
    draw = Draw(1)
    inputs = ss2d_inputs(*sizes, gated=gated, dtype=dtype)
    x = 3 * inputs.pop("x") + 2
    return {"x": x, "pre_weight": draw.parameter(sizes[3]), "pre_bias": draw.parameter(sizes[3]), **inputs}


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_a_norm_inside(emulator, gated, dtype):
    inputs = leaves(inputs_with_a_norm(2, 3, 5, 12, 4, 2, gated=gated, dtype=dtype))
    expected = output_and_gradients(norm_before, inputs)
    emulator.launched.clear()
    assert_equal(output_and_gradients(norm_inside, inputs), expected)
    ungated = 0 if gated else 1
    assert len(emulator.grids("layer_norm")) == 2 + ungated, "again in the backward"
    assert len(emulator.grids("layer_norm_backward")) == 1 + ungated


def test_a_norm_inside_under_autocast(emulator):
    inputs = leaves(inputs_with_a_norm(1, 5, 7, 10, 16, 3))
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = (output_and_gradients(function, inputs) for function in (norm_inside, norm_before))
    assert actual["out"].dtype == torch.bfloat16 and actual["x"].dtype == torch.float32
    assert_equal(actual, expected)


@pytest.mark.parametrize("wanted", [(), ("x",), ("pre_weight",), ("pre_bias", "Ds")], ids=str)
def test_gradients_of_some_inputs_around_a_norm_inside(emulator, wanted):
    given = inputs_with_a_norm(1, 3, 5, 8, 4, 2)
    some = {name: t.requires_grad_(name in wanted) for name, t in leaves(given).items()}
    if not wanted:
        assert not norm_inside(**some).requires_grad and norm_inside(**some).equal(norm_before(**some))
        return
    assert_equal(output_and_gradients(norm_inside, some), output_and_gradients(norm_before, some))


def test_a_norm_inside_compiles_into_one_graph(emulator):
    inputs = leaves(inputs_with_a_norm(2, 3, 5, 8, 4, 2))
    compiled = torch.compile(norm_inside, backend="aot_eager", fullgraph=True)
    assert_equal(output_and_gradients(compiled, inputs), output_and_gradients(norm_inside, inputs))


@pytest.mark.parametrize("backend", ["portable", "numba", "reference"])
def test_backends_without_the_operator_have_the_norm_before(backend):
    inputs = leaves(inputs_with_a_norm(1, 3, 5, 8, 4, 2))
    functions = (partial(function, backend=backend) for function in (norm_inside, norm_before))
    assert_equal(*(output_and_gradients(function, inputs) for function in functions))


def test_more_states_than_the_kernels_hold(emulator):
    inputs = ss2d_inputs(1, 2, 3, 2, 17, 1)
    assert_like_float64(ss2d, reference, inputs, TOLERANCES[torch.float32])
    assert not emulator.launched
    with pytest.raises(RuntimeError, match=r"'cuda' cannot be used: the kernels hold at most 16 states .*, not 17;"):
        ss2d(**inputs, backend="cuda")


def module_gradients(module, x):
    x = x.detach().requires_grad_()
    heads = module(x)
    heads = heads if isinstance(heads, list) else [heads]
    sum(head.as_subclass(torch.Tensor).double().square().mean() for head in heads).backward()
    results = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad()
    return {**{f"head {i}": head.detach() for i, head in enumerate(heads)}, "x": x.grad, **results}


def test_every_parameter_of_the_module(emulator):
    torch.manual_seed(0)
    module = SS2D(8, d_state=4)
    x = torch.randn(2, 5, 3, 8)
    actual = module_gradients(module, x)
    assert emulator.grids("scan_backward")
    exact = SS2D(8, d_state=4, scan_backend="reference").double()
    exact.load_state_dict(module.state_dict())
    assert_near(actual, module_gradients(exact, x.double()), TOLERANCES[torch.float32])


BLOCKS = pytest.mark.parametrize(
    "make", [partial(VSSBlock, d_state=4), partial(VSSMLPBlock, d_state=1, expand=1)], ids=["first", "later"]
)


def norm_and_mixer(block):
    return (block.ln_1, block.self_attention) if isinstance(block, VSSBlock) else (block.norm, block.op)


@BLOCKS
@pytest.mark.parametrize("autocast", [False, True])
def test_a_block_keeps_one_map_less(emulator, make, autocast):
    """Bit for bit the same as where the norm is called, as for a hook of it or of what follows it."""
    torch.manual_seed(0)
    block, x = make(8), torch.randn(2, 5, 3, 8)
    with torch.no_grad():
        for parameter in norm_and_mixer(block)[0].parameters():
            parameter.normal_()
    seen, kept, results = [], [], []
    for hooked in (None, *norm_and_mixer(block)):
        handle = hooked and hooked.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
        sizes = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t),  # noqa: B023
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            results.append(module_gradients(block, x))
        kept.append(sum(sizes))
        if handle:
            handle.remove()
    assert [len(inputs) for inputs in seen] == [1, 1] and seen[0][0].equal(x) and not seen[1][0].equal(x)
    assert_equal(results[0], results[1])
    assert_equal(results[0], results[2])
    statistics = 2 * 4
    assert kept[1] - kept[0] == kept[2] - kept[0] == 2 * 5 * 3 * (8 * (2 if autocast else 4) + statistics)


@BLOCKS
def test_another_norm_or_mixer_is_called(emulator, make):
    class Other(SS2D):
        def forward(self, x):
            return super().forward(x)

    torch.manual_seed(0)
    block, x = make(8), torch.randn(1, 5, 3, 8)
    expected = module_gradients(block, x)
    norm, mixer = norm_and_mixer(block)
    mixer.__class__ = Other
    assert_equal(module_gradients(block, x), expected)
    mixer.__class__, norm.__class__ = SS2D, torch.nn.LayerNorm
    emulator.launched.clear()
    assert_near(module_gradients(block, x), expected, 1e-5)
    others = {VSSBlock: 0, VSSMLPBlock: 2}[type(block)]  # the norms of the ungated scan and of the MLP
    assert len(emulator.grids("layer_norm")) == others


@pytest.fixture(scope="module")
def small_network():
    torch.manual_seed(0)
    return SwinUMambaD(
        1, 3, depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1), feature_size=8, d_state=4, drop_path_rate=0.0
    )


@pytest.fixture(scope="module")
def picture():
    return torch.randn(1, 1, 37, 32, generator=torch.Generator().manual_seed(0))


def test_network(emulator, small_network, picture, monkeypatch):
    actual = module_gradients(small_network, picture)
    assert len(emulator.grids("scan_backward")) == 7  # blocks
    monkeypatch.setenv("SWINUMAMBA_BACKEND", "portable")
    # Thirty layers, and convolutions whose sums have other orders.
    assert_near(actual, module_gradients(small_network, picture), 1e-4)


def test_network_with_a_later_encoder(emulator, picture, monkeypatch):
    torch.manual_seed(0)
    options = {"depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1), "feature_size": 8, "drop_path_rate": 0.0}
    network = SwinUMambaD(1, 3, encoder="vmamba_tiny_s1l8", **options)
    actual = module_gradients(network, picture)
    assert len(emulator.grids("scan_backward")) == 7  # blocks
    monkeypatch.setenv("SWINUMAMBA_BACKEND", "portable")
    assert_near(actual, module_gradients(network, picture), 1e-4)


def test_network_with_checkpoints_and_metadata(emulator, small_network, picture):
    expected = module_gradients(small_network, picture)
    stages = [*small_network.vssm_encoder.layers, *small_network.decoder.stages]
    for stage in stages:
        stage.use_checkpoint = True
    try:
        actual = module_gradients(small_network, MetaTensor(picture))
    finally:
        for stage in stages:
            stage.use_checkpoint = False
    assert_equal({name: t.as_subclass(torch.Tensor) for name, t in actual.items()}, expected)


def test_encoder_alone_with_metadata(emulator, small_network, picture):
    """As masked image modelling calls it."""
    encoder = small_network.vssm_encoder
    picture = picture[..., :32, :32]
    features = encoder(MetaTensor(picture))
    assert all(type(feature) is torch.Tensor for feature in features)
    assert all(a.equal(b) for a, b in zip(features, encoder(picture)))
