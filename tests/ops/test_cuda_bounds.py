# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""No kernel reads or writes beyond a tensor: every tensor ends, or begins, at a page that must not be touched.

Run in a process of its own, which the operating system ends at the first such access; one for both sides, because
most of its time goes into compiling the kernels.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, faulthandler, math, sys
import pytest, torch
sys.path[:0] = ["tests/ops"]
faulthandler.enable()  # the line of the launch, where a kernel ends the process
from emulated_backend import Emulator
from cuda_cases import map_inputs
from swinumamba_monai.ops.cuda import class_sums
from swinumamba_monai.ops.cuda import fused as cuda_fused
from swinumamba_monai.ops.cuda import instance_norm as cuda_instance_norm
from swinumamba_monai.ops.cuda import scan as cuda_scan

libc, page = ctypes.CDLL(None), 4096
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def guarded(shape, dtype, strides=None):
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    pages = -(-size // page)
    address = libc.mmap(None, (pages + 2) * page, 3, 0x22, -1, 0)
    for forbidden in (address, address + (pages + 1) * page):
        assert libc.mprotect(forbidden, page, 0) == 0
    first = address + page + (pages * page - size if at_end else 0)
    memory = (ctypes.c_byte * size).from_address(first)
    t = torch.frombuffer(memory, dtype=dtype, count=math.prod(shape))
    return t.view(shape) if strides is None else t.as_strided(shape, strides)

def copied(t):
    return guarded(t.shape, t.dtype).copy_(t)

def new_empty(self, *shape, dtype=None):
    return guarded(tuple(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape), dtype or self.dtype)

torch.Tensor.new_empty = new_empty
torch.empty_like = lambda t: guarded(tuple(t.shape), t.dtype, t.stride())

def run_all_kernels(emulator):
    maps = (2, 5, 9, 96, 16), (1, 13, 11, 20, 8), (1, 7, 7, 5, 1), (1, 11, 7, 36, 1)
    for multiprocessors, sizes in zip((1, 40, 1, 1), maps):
        emulator.set_multiprocessors(multiprocessors)
        for dtype in (torch.float32, torch.bfloat16):
            x, delta, A, B, C, D, bias = map(copied, map_inputs(*sizes, dtype=dtype).values())
            delta, B, C = (t.permute(3, 0, 1, 2, 4).flatten(2, 3) for t in (delta, B, C))
            u, size = x.flatten(1, 2)[None], list(sizes[1:3])
            _, states = cuda_scan._forward(u, delta, A, B, C, D, bias, size, True, True)
            gradients = cuda_scan._backward(copied(u), states, u, delta, A, B, C, D, bias, size, True)
            assert all(t.isfinite().all() for t in gradients)
            channels = sizes[3]
            taps, bias = (copied(torch.randn(*shape, channels)) for shape in ((10,), ()))
            y = cuda_fused.conv_silu(x, taps)
            cuda_fused.conv_silu_backward(y, x, taps)
            for two in (False, True):
                residual, affine, options = copied(x), [bias] * 4 if two else [bias, bias, None, None], (two, 1e-5, 0.1)
                normed, statistics = cuda_instance_norm._forward(x, residual, affine, options)
                kept = (x, residual if two else None, normed, statistics)
                cuda_instance_norm._backward(copied(x), *kept, affine, options, True)
            rows, gate = x.flatten(0, 2), copied(x).flatten(0, 2)
            y, statistics = cuda_fused.layer_norm(rows, gate, bias, bias, 1e-5)
            cuda_fused.layer_norm_backward(y, statistics, rows, gate, bias, bias)
    for batch, classes, pixels in ((1, 3, 1), (2, 4, 63), (2, 4, 600), (3, 14, 30)):
        for channels_last in (False, True):
            logits = copied(torch.randn(batch, pixels, classes)).transpose(1, 2)
            logits = logits if channels_last else copied(logits)
            target = copied(torch.randint(classes, (batch, pixels)).float())
            sums = class_sums._forward(logits, target, 255.0)
            dlogits = class_sums._backward(copied(sums), logits, target, 255.0)
            assert sums.isfinite().all() and dlogits.isfinite().all()

with pytest.MonkeyPatch.context() as monkeypatch:
    emulator = Emulator(monkeypatch)
    for at_end in (True, False):
        print("the page is", "behind" if at_end else "before", "each tensor", flush=True)
        run_all_kernels(emulator)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forbids pages by mmap and mprotect")
def test_no_access_beyond_a_tensor(emulator, pytestconfig):
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.stdout.splitlines() == ["the page is behind each tensor", "the page is before each tensor"]
