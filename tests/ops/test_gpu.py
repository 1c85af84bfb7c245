# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on a real GPU, at real sizes: ``python -m pytest tests/ops/test_gpu.py``, about a minute."""

from __future__ import annotations

import copy
import logging
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from cuda_cases import (
    TOLERANCES,
    Draw,
    assert_equal,
    assert_like_float64,
    assert_loss_like_float64,
    assert_near,
    call_instance_norm,
    doubling_cross_scan,
    instance_norm_inputs,
    leaves,
    loss_inputs,
    map_inputs,
    output_and_gradients,
    sequence_inputs,
    ss2d_inputs,
)
from monai.losses import DiceCELoss

from swinumamba_monai.networks import SwinUMamba, SwinUMambaD
from swinumamba_monai.networks.vss import SS2D
from swinumamba_monai.ops import backends, cross_scan_2d, selective_scan, selective_scan_ref
from swinumamba_monai.ops.backends import find_backend
from swinumamba_monai.ops.cuda import scan as cuda_scan
from swinumamba_monai.ops.cuda.convolution import conv2d_cuda
from swinumamba_monai.ops.cuda.scan_layout import CHUNK, Segments
from swinumamba_monai.ops.instance_norm import instance_norm
from swinumamba_monai.ops.ss2d import ss2d, ss2d_ref
from swinumamba_monai.training import FusedDiceCELoss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)

scan = partial(cross_scan_2d, backend="cuda")


def layer_norm(x, weight, bias):
    return find_backend("auto", x).norm(x, weight, bias, 1e-5)


ss2d_portable = partial(ss2d_ref, backend="portable")

# batch, height, width, channels, states
MAPS = [
    (1, 1, 1, 36, 16),
    (2, 13, 17, 36, 16),
    (3, 31, 33, 17, 8),
    (1, 1, 4099, 5, 1),
    (64, 7, 5, 36, 16),
    (1, 257, 131, 20, 16),
    (16, 40, 40, 96, 1),
    (1, 131, 257, 36, 1),
    (2, 33, 31, 17, 1),
]


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    """No TF32 in convolutions (products have none unless asked for), and no backend from the environment."""
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch.cuda.empty_cache()


@DTYPES
@pytest.mark.parametrize("sizes", MAPS, ids=str)
def test_map(sizes, dtype):
    inputs = map_inputs(*sizes, dtype=dtype, seed=sum(sizes), device="cuda")
    assert_like_float64(scan, doubling_cross_scan, inputs, TOLERANCES[dtype])


def test_largest_map():
    """A million positions; the truth takes 11 GB."""
    if torch.cuda.get_device_properties(0).total_memory < 20 << 30:
        pytest.skip("the float64 truth needs a GPU with more than 20 GB")
    inputs = map_inputs(1, 1024, 1024, 4, 2, device="cuda")
    assert_like_float64(scan, doubling_cross_scan, inputs, TOLERANCES[torch.float32])


def test_numbers_never_seen_before():
    """Other numbers in each run; the seed that failed is in the message."""
    seed = torch.seed() % 2**32
    inputs = map_inputs(2, 40, 41, 36, 16, seed=seed, device="cuda")
    assert_like_float64(scan, doubling_cross_scan, inputs, TOLERANCES[torch.float32], note=f"(seed {seed})")


@pytest.mark.parametrize("direction", range(4))
def test_each_direction_alone(direction):
    inputs = map_inputs(1, 37, 41, 20, 16, seed=direction, device="cuda")
    others = torch.arange(4) != direction
    inputs["C"][..., others, :] = 0
    inputs["D"][others] = 0
    assert_like_float64(scan, doubling_cross_scan, inputs, TOLERANCES[torch.float32])


@pytest.mark.parametrize("softplus", [False, True])
def test_sequence(softplus):
    inputs = sequence_inputs(2, 257, 3, 20, 16, device="cuda")
    function = partial(selective_scan, delta_softplus=softplus, backend="cuda")
    reference = partial(selective_scan_ref, delta_softplus=softplus)
    assert_like_float64(function, reference, inputs, TOLERANCES[torch.float32])


@DTYPES
@pytest.mark.parametrize("step", [-50.0, 50.0])
def test_steps_of_any_size(step, dtype):
    inputs = map_inputs(1, 29, 31, 36, 16, dtype=dtype, device="cuda")
    inputs["delta"].fill_(step)
    inputs["delta_bias"].zero_()
    assert_like_float64(scan, doubling_cross_scan, inputs, TOLERANCES[dtype])


def test_layouts():
    """Gaps between all numbers, and a memory that repeats itself."""
    inputs = map_inputs(2, 13, 17, 36, 16, device="cuda")
    expected = output_and_gradients(doubling_cross_scan, leaves(inputs, torch.float64))
    gaps = {name: torch.stack([t, torch.full_like(t, torch.nan)], dim=-1)[..., 0] for name, t in inputs.items()}
    assert_near(output_and_gradients(scan, leaves(gaps)), expected, TOLERANCES[torch.float32])
    maps = ("x", "delta", "B", "C")

    def repeated(function, **tensors):
        return function(**{n: t[:1].expand(3, *t.shape[1:]) if n in maps else t for n, t in tensors.items()})

    assert_like_float64(
        partial(repeated, scan), partial(repeated, doubling_cross_scan), inputs, TOLERANCES[torch.float32]
    )


def test_an_odd_address():
    inputs = map_inputs(2, 13, 17, 36, 16, device="cuda")
    memory = torch.empty(inputs["x"].numel() + 1, device="cuda")
    moved = memory[1:].view(inputs["x"].shape).copy_(inputs["x"])
    assert_near({"": scan(**{**inputs, "x": moved})}, {"": scan(**inputs)}, 1e-6)


@DTYPES
@pytest.mark.parametrize("segments", [Segments(CHUNK), Segments(4 * CHUNK, lead=8 * CHUNK)], ids=str)
def test_segments(segments, dtype, monkeypatch):
    """Sequences of 570 positions in 18 segments, and in two of which the first is longer."""
    monkeypatch.setattr(cuda_scan, "choose_segments", lambda *sizes: segments)
    inputs = map_inputs(3, 19, 30, 36, 16, dtype=dtype, device="cuda")
    assert_like_float64(scan, doubling_cross_scan, inputs, TOLERANCES[dtype])


@pytest.mark.parametrize("function", [scan, partial(ss2d, backend="cuda")], ids=["scan", "ss2d"])
def test_repeated_runs_agree_bit_for_bit(function):
    sizes = (2, 40, 40, 36, 16)
    inputs = map_inputs(*sizes, device="cuda") if function is scan else ss2d_inputs(*sizes, 3, device="cuda")
    first = output_and_gradients(function, leaves(inputs))
    assert_equal(output_and_gradients(function, leaves(inputs)), first)


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str
)
@pytest.mark.parametrize("sizes", [(2, 40, 40, 96, 16, 6), (3, 7, 11, 10, 8, 3), (16, 10, 10, 128, 16, 8)], ids=str)
def test_ss2d(sizes, dtype, tolerance):
    """Tolerances are those of test_ss2d.py."""
    inputs = ss2d_inputs(*sizes, dtype=dtype, device="cuda")
    actual = assert_like_float64(partial(ss2d, backend="cuda"), ss2d_portable, inputs, tolerance)
    expected = ss2d_portable(**{name: t.double() for name, t in inputs.items()})
    assert_near({"out": actual["out"]}, {"out": expected}, TOLERANCES[dtype])


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str
)
@pytest.mark.parametrize("sizes, expand", [((2, 40, 40, 96, 1, 6), 1), ((16, 10, 10, 64, 1, 4), 2)], ids=str)
def test_ss2d_without_a_gate(sizes, expand, dtype, tolerance):
    inputs = ss2d_inputs(*sizes, dtype=dtype, device="cuda", gated=False, expand=expand)
    functions = (partial(f, conv_bias=None, gated=False) for f in (partial(ss2d, backend="cuda"), ss2d_portable))
    assert_like_float64(*functions, inputs, tolerance)


@DTYPES
@pytest.mark.parametrize("gated", [True, False])
def test_ss2d_with_a_norm_inside(gated, dtype):
    """Bit for bit what the norm before it gives."""
    inputs = ss2d_inputs(2, 40, 40, 96, 16, 6, dtype=dtype, device="cuda", gated=gated)
    draw = Draw(1, device="cuda")
    inputs = leaves({**inputs, "pre_weight": draw.parameter(96), "pre_bias": draw.parameter(96)})

    def inside(pre_weight, pre_bias, **inputs):
        return ss2d(**{"conv_bias": None, **inputs}, gated=gated, pre_norm=(pre_weight, pre_bias, 1e-5))

    def before(x, pre_weight, pre_bias, **inputs):
        return ss2d(layer_norm(x, pre_weight, pre_bias), **{"conv_bias": None, **inputs}, gated=gated)

    assert_equal(*(output_and_gradients(function, inputs) for function in (inside, before)))


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1), (1601, 96), (2, 7, 5, 3072)], ids=str)
def test_layer_norm(shape, dtype):
    """3072 channels need more shared memory than a block has without asking."""
    draw = Draw(0, dtype, "cuda")
    inputs = {"x": draw.normal(*shape) + 2, "weight": draw.parameter(shape[-1]), "bias": draw.parameter(shape[-1])}
    assert_like_float64(
        layer_norm, lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias), inputs, TOLERANCES[dtype]
    )


@DTYPES
@pytest.mark.parametrize("sizes", [(2, 48, 160, 161), (3, 768, 10, 10), (1, 17, 5, 7, 9)], ids=str)
@pytest.mark.parametrize("two", [False, True], ids=["one norm", "two norms"])
def test_instance_norm(sizes, dtype, two):
    inputs = instance_norm_inputs(sizes, dtype, "cuda")
    if not two:
        inputs = {name: t for name, t in inputs.items() if not name.startswith("residual_")}
    functions = (find_backend("cuda", inputs["x"]).instance_norm, instance_norm)
    calls = (partial(call_instance_norm, function, two=two) for function in functions)
    assert_like_float64(*calls, inputs, TOLERANCES[dtype])


@DTYPES
@pytest.mark.parametrize("sizes", [(3, 48, 3), (48, 48, 3), (96, 48, 3), (3, 48, 1), (48, 14, 1)], ids=str)
def test_convolution(sizes, dtype):
    """Few channels in and out: padded, and the weights' gradient by pairs of pixels."""
    inputs, outputs, side = sizes
    draw = Draw(side, dtype, "cuda")
    given = {"x": draw.normal(2, inputs, 40, 64), "weight": draw.normal(outputs, inputs, side, side)}
    options = {"bias": None, "stride": (1, 1), "padding": (side // 2, side // 2)}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert_like_float64(partial(conv2d_cuda, **options), partial(F.conv2d, **options), given, TOLERANCES[dtype])


@DTYPES
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 2, 1, 1), (3, 5, 33, 31), (16, 14, 320, 320), (4, 3, 512, 512), (2, 32, 17, 12, 16)], ids=str
)
def test_loss(shape, channels_last, dtype):
    """Twice, bit for bit the same."""
    options = {"include_background": False, "to_onehot_y": True, "softmax": True, "batch": True}
    logits, target = loss_inputs(*shape, dtype=dtype, device="cuda", channels_last=channels_last)
    losses = FusedDiceCELoss(**options), DiceCELoss(**options)
    assert_equal(*(assert_loss_like_float64(*losses, logits, target) for _ in range(2)))


def test_loss_takes_no_memory_of_its_own():
    """Only the gradient of the logits, as large as they are."""
    logits, target = loss_inputs(8, 14, 256, 256, dtype=torch.bfloat16, device="cuda", channels_last=True)
    logits.requires_grad_()
    loss = FusedDiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    torch.autograd.grad(loss(logits, target), logits)  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(loss(logits, target), logits)
    assert torch.cuda.max_memory_allocated() - before < 1.1 * logits.nbytes


def test_cuda_graph():
    """Kernels go to the stream that is captured, and a replay reads what is in the inputs then."""
    inputs = ss2d_inputs(2, 20, 20, 96, 16, 6, dtype=torch.bfloat16, device="cuda")
    with torch.no_grad():
        ss2d(**inputs)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = ss2d(**inputs)
        inputs["x"].mul_(0.5)
        graph.replay()
        assert captured.equal(ss2d(**inputs))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one():
    inputs = map_inputs(2, 13, 17, 36, 16)
    here, there = ({n: t.to(device) for n, t in inputs.items()} for device in ("cuda:0", "cuda:1"))
    expected = output_and_gradients(scan, leaves(here))
    actual = output_and_gradients(scan, leaves(there))
    assert torch.cuda.current_device() == 0
    assert all(t.device.index == 1 for t in actual.values())
    assert_near({n: t.cpu() for n, t in actual.items()}, {n: t.cpu() for n, t in expected.items()}, 1e-6)


def test_the_default_is_the_kernels(caplog):
    backends.log_once.cache_clear()
    with caplog.at_level(logging.INFO, backends.__name__):
        assert backends.choose_backend("auto", "cuda", torch.bfloat16, 16) == "cuda"
        assert backends.choose_backend("auto", "cuda", torch.bfloat16, 17) == "portable"
        for d_state in (16, 17):
            backends.log_backend_once("auto", "cuda", torch.bfloat16, d_state)
    assert [r.levelno for r in caplog.records] == [logging.INFO, logging.WARNING]


def loss_and_gradients(network, images):
    heads = network(images)
    sum(head.double().square().mean() for head in heads).backward()
    gradients = torch.cat([p.grad.double().flatten() for p in network.parameters()])
    network.zero_grad()
    return {**{f"head {i}": head.detach() for i, head in enumerate(heads)}, "gradients": gradients}


@pytest.mark.parametrize("encoder", ["vmamba_tiny_v0", "vmamba_tiny_s1l8"])
@pytest.mark.parametrize("cls", [SwinUMambaD, SwinUMamba], ids=lambda cls: cls.__name__)
def test_published_networks(cls, encoder):
    """The kernels and torch's operators, both in float32; and under autocast against that."""
    torch.manual_seed(0)
    network = cls(3, 5, drop_path_rate=0.0, encoder=encoder).cuda()
    portable = copy.deepcopy(network)
    for module in portable.modules():
        if isinstance(module, SS2D):
            module.backend.name = "portable"
    images = torch.randn(2, 3, 96, 128, device="cuda")
    actual, expected = (loss_and_gradients(n, images) for n in (network, portable))
    # roundings through some forty layers, forth and back; in the CNN decoder LeakyReLU's kinks make more of them
    assert_near(actual, expected, 1e-3 if cls is SwinUMambaD else 1e-2)
    with torch.autocast("cuda", torch.bfloat16):
        halves = loss_and_gradients(network, images)
    for name, want in expected.items():
        assert halves[name].isfinite().all()
        similarity = F.cosine_similarity(halves[name].double().flatten(), want.double().flatten(), dim=0)
        assert similarity > 0.95, name


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=str)
def test_mamba_ssm_computes_the_same(dtype, tolerance):
    pytest.importorskip("mamba_ssm")
    inputs = leaves(map_inputs(2, 13, 17, 36, 16, dtype=dtype, device="cuda"))
    expected = output_and_gradients(partial(cross_scan_2d, backend="mamba_ssm"), inputs)
    assert_near(output_and_gradients(scan, inputs), expected, tolerance)
