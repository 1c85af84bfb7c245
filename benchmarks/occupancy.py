# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Registers, spills, shared memory and warps of the CUDA kernels on each architecture; nvcc compiles, no GPU is needed.

Kernels and macros are those that a Swin-UMamba† of the paper's size launches in its first stage. ``ptxas`` reports
registers and spills, and what fits a multiprocessor follows from them as in NVIDIA's occupancy calculator.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from swinumamba_monai.ops.cuda import scan_one
from swinumamba_monai.ops.cuda.device import ELEMENTS, divide_channels
from swinumamba_monai.ops.cuda.fused import CONV_VECTOR, ROWS, RUN, THREADS, divide_row
from swinumamba_monai.ops.cuda.instance_norm import make_macros as make_instance_macros
from swinumamba_monai.ops.cuda.nvrtc import read_source
from swinumamba_monai.ops.cuda.scan_layout import TUNING, make_layout
from swinumamba_monai.reports.tables import markdown_lines

CHANNELS, STATES = 192, 16  # numbers of channels and of states of a scan of the paper's first stage
DECODER_CHANNELS = 48  # number of channels of Swin-UMamba's finest maps
DEEPEST = 1536  # channels of the last stage, and of the widest norm
LARGE, SMALL = 1000, 2  # blocks of a scan of channels with one state, which takes few warps a block or many
MULTIPROCESSORS = 108
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
VECTOR = 4  # channels that a thread moves at once, but for the convolution's


class Architecture(NamedTuple):
    """Limits of a multiprocessor, from the table of compute capabilities in NVIDIA's programming guide.

    Args:
        block_kib: shared memory that a block may have, in KiB; a multiprocessor has 1 KiB more, which a block costs.
        warps: warps of a multiprocessor.
        blocks: blocks of a multiprocessor.
    """

    block_kib: int
    warps: int
    blocks: int


ARCHITECTURES = {
    "sm_80": Architecture(163, 64, 32),
    "sm_86": Architecture(99, 48, 16),
    "sm_89": Architecture(99, 48, 24),
    "sm_90": Architecture(227, 64, 32),
}


class Launch(NamedTuple):
    """What a kernel is launched with: file, macros, warps of a block and its dynamic shared memory in bytes."""

    label: str
    kernel: str
    file: str
    macros: dict[str, int]
    warps: int
    shared_bytes: int


def launches(dtype: torch.dtype, shared_kib: int) -> list[Launch]:
    """The launches that count in a step, as ``ops/cuda`` makes them on a GPU with so much shared memory."""
    own = {"ELEMENT": ELEMENTS[dtype], "VECTOR": VECTOR}
    layout = make_layout(CHANNELS, STATES, dtype, VECTOR, VECTOR, True, shared_kib, TUNING)
    found = [
        Launch(kernel, kernel, "scan.cu", layout.macros, layout.warps[way], layout.shared_bytes[way])
        for kernel, way in (
            ("scan_forward", "forward"),
            ("scan_backward", "backward"),
            ("scan_end_states", "forward"),
            ("scan_end_gradients", "forward"),
        )
    ]
    for blocks in (LARGE, SMALL):
        macros = own | scan_one.make_macros(blocks, 6400, MULTIPROCESSORS, True)
        for way in ("forward", "backward"):
            warps = macros[f"{way.upper()}_WARPS"]
            shared = scan_one.shared_bytes(warps)
            found.append(Launch(f"one state: scan_{way}", f"scan_{way}", "scan_one.cu", macros, warps, shared))
    macros = own | {"VECTOR": CONV_VECTOR, "RUN": RUN, "ROWS": ROWS[0]}
    found.append(Launch("conv_silu", "conv_silu", "conv.cu", macros, THREADS // 32, 0))
    shared = 4 * THREADS * CONV_VECTOR
    found.append(Launch("conv_silu_backward", "conv_silu_backward", "conv.cu", macros, THREADS // 32, shared))
    lanes, _, teams = divide_channels(DECODER_CHANNELS // VECTOR, THREADS)
    for two in (False, True):
        macros, number = own | make_instance_macros(two), 4 * lanes * teams * VECTOR
        for kernel, numbers in (("statistics", 2), ("norm", 0), ("sums", 2 + two), ("backward", 0)):
            name, label = f"instance_{kernel}", f"instance_{kernel}{', two' if two else ''}"
            found.append(Launch(label, name, "instance_norm.cu", macros, -(-lanes * teams // 32), numbers * number))
    for channels in (CHANNELS, DEEPEST):
        lanes, items = divide_row(channels // VECTOR)
        macros = own | {"LANES": lanes, "ITEMS": items}
        for kernel, shared in (("layer_norm_gate", 0), ("layer_norm_gate_backward", 4 * THREADS // lanes * channels)):
            found.append(Launch(f"{kernel}, {channels} channels", kernel, "norm.cu", macros, THREADS // 32, shared))
    return found


class Usage(NamedTuple):
    """What the compiler says of a kernel: registers of a thread, and bytes a thread that it spills and has static."""

    registers: int
    spill_bytes: int
    static_bytes: int


def read_report(report: str) -> dict[str, Usage]:
    """The kernels of what ``ptxas -v`` prints."""
    form = (
        r"Function properties for (\w+)\s.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?"
    )
    return {
        name: Usage(int(registers), int(stores) + int(loads), int(static or 0))
        for name, stores, loads, registers, static in re.findall(form, report, re.DOTALL)
    }


def fitting_blocks(architecture: Architecture, registers: int, warps: int, shared_bytes: int) -> int:
    """Blocks of a multiprocessor.

    Registers are given out to a warp by 256, each quarter of a multiprocessor has 16,384 of them, and shared memory is
    given out by 128 bytes.
    """
    by_registers = 16384 // (-(-32 * registers // 256) * 256) * 4 // warps
    by_shared = (architecture.block_kib + 1 << 10) // (-(-shared_bytes // 128) * 128 + 1024)
    return min(by_registers, by_shared, architecture.warps // warps, architecture.blocks)


def compile_report(file: str, macros: dict[str, int], architecture: str) -> dict[str, Usage]:
    """Compile a file of kernels as :mod:`swinumamba_monai.ops.cuda.nvrtc` does, for its report alone."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / file
        source.write_text(read_source(file), encoding="utf-8")
        command = ["nvcc", "-cubin", "-std=c++17", f"-arch={architecture}", "-Xptxas", "-v", "-o", f"{source}.cubin"]
        command += [f"-D{key}={value}" for key, value in macros.items()]
        done = subprocess.run([*command, str(source)], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"nvcc could not compile {file}:\n{done.stderr}")
    return read_report(done.stderr)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    arguments = parser.parse_args(argv)
    header = ["kernel", "maps", "GPU", "warps a block", "registers", "spilled bytes", "KiB a block", "blocks", "warps"]
    rows, reports = [], {}
    for precision in arguments.precisions:
        for name in arguments.architectures:
            for launch in launches(DTYPES[precision], ARCHITECTURES[name].block_kib):
                key = (launch.file, tuple(launch.macros.items()), name)
                if key not in reports:
                    reports[key] = compile_report(launch.file, launch.macros, name)
                usage = reports[key][launch.kernel]
                shared = launch.shared_bytes + usage.static_bytes
                blocks = fitting_blocks(ARCHITECTURES[name], usage.registers, launch.warps, shared)
                numbers = (launch.warps, *usage[:2], f"{shared / 1024:.1f}", blocks, blocks * launch.warps)
                rows.append([launch.label, precision, name, *map(str, numbers)])
    print(markdown_lines(header, rows))


if __name__ == "__main__":
    main()
