# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Size and latency of exported networks on a CPU, beside eager. ``python -m benchmarks.export_cpu`` prints a table."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch

from swinumamba_monai.export import export_onnx
from swinumamba_monai.networks import SwinUMamba, SwinUMambaD

NETWORKS = {"SwinUMambaD": SwinUMambaD, "SwinUMamba": SwinUMamba}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--size", type=int, nargs=2, default=[320, 320], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.num_threads)
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {arguments.num_threads} threads")
    print("| network | as | MB | ms, median (least–most) | largest difference from eager |\n|---|---|---|---|---|")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            measure(name, Path(folder), arguments)
    print("load of the machine over the last 1, 5, 15 minutes:", *(f"{load:.1f}" for load in os.getloadavg()))


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Print the rows of one network; the ways of running it take turns, so that other work slows all alike."""
    torch.manual_seed(0)
    net = NETWORKS[name](1, 14).eval()
    x = torch.randn(1, 1, *arguments.size)
    torch.jit.trace(net, torch.rand(1, 1, 64, 64), check_trace=False).save(folder / "model.ts")
    traced = torch.jit.load(folder / "model.ts")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.num_threads
    model = export_onnx(net, folder / "model.onnx")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    runs = {
        "eager": lambda: net(x),
        "TorchScript": lambda: traced(x),
        "ONNX Runtime": lambda: torch.from_numpy(session.run(None, {"image": x.numpy()})[0]),
    }
    sizes = {"TorchScript": "model.ts", "ONNX Runtime": "model.onnx"}
    logits = {label: run() for label, run in runs.items()}
    times = {label: [] for label in runs}
    for _ in range(arguments.repeats):
        for label, run in runs.items():
            start = time.perf_counter()
            run()
            times[label].append(1e3 * (time.perf_counter() - start))
    for label, samples in times.items():
        size = f"{(folder / sizes[label]).stat().st_size / 1e6:.0f}" if label in sizes else "–"
        spread = f"{statistics.median(samples):.0f} ({min(samples):.0f}–{max(samples):.0f})"
        difference = (logits[label] - logits["eager"]).abs().max().item()
        print(f"| {name} | {label} | {size} | {spread} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
