# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""One SS2D block and the scan alone, beside the released arrangement and the floor of the exponentials."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from swinumamba_monai.analysis.measurement import free, measure, peak_bytes, reason
from swinumamba_monai.analysis.steps import autocast
from swinumamba_monai.networks.vss import SS2D
from swinumamba_monai.ops import cross_scan_2d

from .record import Record, make_parser, start
from .released import ReleasedSS2D, released_kernel, why_released_is_unavailable
from .timing import exponential_floor_ms, graphed

COLUMNS = {
    "part": "part",
    "arrangement": "arrangement",
    "channels": "channels",
    "map": "map",
    "batch": "batch",
    "pass": "pass",
    "launch": "launch",
    "ms": "ms",
    "peak, GB": lambda row: row.get("peak_bytes") and row["peak_bytes"] / 1e9,
    "floor, ms": "floor_ms",
    "floor / time": lambda row: row.get("floor_ms") and "ms" in row and row["floor_ms"] / row["ms"]["median"],
    "failed": "error",
}
NOTES = [
    "Block: SS2D under bf16 autocast on a float32 map that needs a gradient, forward and backward; d_state 16, or with "
    "--d_state 1 as in VMamba's final version, with as many channels scanned as the map has and no gate.",
    "Peak: the most allocated during forward and backward beyond what was allocated before: activations, temporaries, "
    "output, gradients of map and parameters; not the map, the parameters and the gradient of the output.",
    "Scan, this package: cross_scan_2d, bf16 in and out. Scan, mamba-ssm: selective_scan_fn alone, on four stacked "
    "float32 sequences that lie ready, without the copies that make and merge them; on a CPU this package's kernel.",
    "Floor: one exponential a state update (batch · positions · 4 · channels · states) at 16 a clock and "
    "multiprocessor, at the highest SM clock that nvidia-smi names (hardware.gpu.max_sm_clock_mhz); twice with the "
    "backward, which recomputes the states. Small inputs stay in the L2 cache between calls, as in the network.",
    "The scan is timed as a CUDA graph where it can be captured (column launch), so launches are outside.",
]


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=10)
    parser.add_argument("--scan_backend", default="auto")
    parser.add_argument("--d_model", type=int, default=96)
    parser.add_argument("--d_state", type=int, default=16, help="1: the block of VMamba's final version, with no gate")
    parser.add_argument("--side", type=int, default=80)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--scan_batch_sizes", nargs="+", type=int, default=[1, 16, 32])
    arguments = parser.parse_args(argv)
    device = start(arguments)
    record = Record("ss2d_block", arguments, COLUMNS, NOTES)
    if arguments.quick:
        measure_block(record, arguments, device, 8, 12, 2)
        measure_scan(record, arguments, device, 16, 6, 2)
        return
    measure_block(record, arguments, device, arguments.d_model, arguments.side, arguments.batch_size)
    for batch_size in arguments.scan_batch_sizes:
        for halvings in range(4):
            expand = 1 if arguments.d_state == 1 else 2
            channels, side = expand * arguments.d_model << halvings, arguments.side >> halvings
            measure_scan(record, arguments, device, channels, side, batch_size)
            free(device)


def block_step(block: SS2D, batch_size: int, height: int, width: int, device: torch.device) -> Callable[[], tuple]:
    """Forward and backward of a block under bf16 autocast, on a random map; returns the gradients."""
    x = torch.randn(batch_size, height, width, block.in_proj.in_features, device=device, requires_grad=True)
    inputs = (x, *block.parameters())
    with autocast(device, "bf16"):
        gradient = torch.randn_like(block(x))

    def step():
        with autocast(device, "bf16"):
            y = block(x)
        return torch.autograd.grad(y, inputs, gradient)

    return step


def measure_block(record, arguments, device, d_model, side, batch_size) -> None:
    final = arguments.d_state == 1
    options = {"expand": 1, "gate": False, "conv_bias": False} if final else {}
    obstacle = "the released arrangement has a gate" if final else why_released_is_unavailable(device)
    blocks = {"this package": SS2D} | ({} if obstacle else {"released": ReleasedSS2D})
    steps, peaks, results = {}, {}, {} if not obstacle else {"released": {"error": obstacle}}
    for name, block_type in blocks.items():
        try:
            block = block_type(d_model, arguments.d_state, scan_backend=arguments.scan_backend, **options).to(device)
            steps[name] = block_step(block, batch_size, side, side, device)
            steps[name]()
            free(device)
            peaks[name] = peak_bytes(steps[name], device)
        except Exception as error:
            results[name] = {"error": reason(error)}
            steps.pop(name, None)
            free(device)
    results |= measure(steps, device, arguments.repeats, arguments.warmup, arguments.sample_seconds)
    for name, result in results.items():
        row = {"part": "block", "arrangement": name, "channels": d_model, "map": f"{side}×{side}", "batch": batch_size}
        row |= {"pass": "forward + backward", "launch": "eager", "peak_bytes": peaks.get(name)}
        updates = batch_size * side**2 * 4 * options.get("expand", 2) * d_model * arguments.d_state
        floor = exponential_floor_ms(2 * updates, record.content["hardware"])
        record.add({**row, "updates": updates, "floor_ms": floor, **result})


def scan_inputs(
    channels: int, d_state: int, side: int, batch_size: int, device: torch.device
) -> dict[str, tuple[Tensor, ...]]:
    """Random inputs of the two scans, in their own layouts."""

    def random(*shape, dtype=torch.float32):
        return torch.randn(shape, device=device, dtype=dtype)

    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    A = -torch.rand(4, channels, d_state, device=device) * d_state
    D, bias = random(4, channels), random(4, channels) - 4  # Δ about e^-4, in the middle of what Mamba starts with
    pixels, sequence = (batch_size, side, side), (batch_size, 4 * channels, side * side)
    ours = [random(*pixels, channels, dtype=half), random(*pixels, 4, channels, dtype=half)]
    ours += [A, *(random(*pixels, 4, d_state, dtype=half) for _ in "BC"), D, bias]
    theirs = [random(*sequence), random(*sequence), A.flatten(0, 1)]
    theirs += [*(random(batch_size, 4, d_state, side * side) for _ in "BC"), D.flatten(), bias.flatten()]
    return {"this package": tuple(ours), "mamba-ssm": tuple(theirs)}


def measure_scan(record, arguments, device, channels, side, batch_size) -> None:
    scans = {
        "this package": lambda *t: cross_scan_2d(*t, backend=arguments.scan_backend),
        "mamba-ssm": released_kernel,
    }
    if why_released_is_unavailable(device):
        del scans["mamba-ssm"]
    runs, launches, results = {}, {}, {}
    for name, tensors in scan_inputs(channels, arguments.d_state, side, batch_size, device).items():
        if name not in scans:
            continue
        for direction, run in passes(scans[name], tensors).items():
            key = (name, direction)
            try:
                runs[key], launches[key] = graphed_if_possible(run, device)
            except Exception as error:
                results[key] = {"error": reason(error)}
                free(device)
    results |= measure(runs, device, arguments.repeats, arguments.warmup, arguments.sample_seconds / 3)
    updates = batch_size * side**2 * 4 * channels * arguments.d_state
    for (name, direction), result in results.items():
        row = {"part": "scan", "arrangement": name, "channels": channels, "map": f"{side}×{side}", "batch": batch_size}
        row |= {"pass": direction, "launch": launches.get((name, direction)), "updates": updates}
        times = 2 if "backward" in direction else 1
        floor = exponential_floor_ms(times * updates, record.content["hardware"])
        record.add({**row, "floor_ms": floor, **result})


def passes(scan: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> dict[str, Callable[[], object]]:
    """The forward alone, without anything kept for a backward, and both together."""
    leaves = [t.requires_grad_() for t in tensors]

    def forward():
        with torch.no_grad():
            return scan(*leaves)

    gradient = torch.randn_like(forward())

    def both():
        return torch.autograd.grad(scan(*leaves), leaves, gradient)

    return {"forward": forward, "forward + backward": both}


def graphed_if_possible(run: Callable[[], object], device: torch.device) -> tuple[Callable[[], object], str]:
    """``run`` as a CUDA graph, or as it is where that fails, and the word that says which."""
    run()
    if device.type == "cuda":
        try:
            return graphed(run, device), "graph"
        except Exception as error:
            print(f"eager: {reason(error)}", flush=True)
    return run, "eager"


if __name__ == "__main__":
    main()
