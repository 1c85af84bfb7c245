# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Does AOTInductor take the exported networks, and is the result right and fast? On a GPU, or the CPU without one.

Each attempt says what came out, or the reason why nothing did. ``python -m benchmarks.export_gpu`` from the repository.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from swinumamba_monai.export import make_program
from swinumamba_monai.networks import SwinUMamba, SwinUMambaD

NETWORKS = {"SwinUMambaD": SwinUMambaD, "SwinUMamba": SwinUMamba}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--size", type=int, nargs=2, default=[320, 320], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--backends", nargs="+", default=["auto", "portable"], help="scan backends to export")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="networks of 16 features, for a try")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {name}")
    for network in arguments.networks:
        for backend in arguments.backends:
            attempt(network, backend, device, arguments)


def attempt(name: str, backend: str, device: torch.device, arguments: argparse.Namespace) -> None:
    """Export, compile, load and run one network; print one line of each step."""
    small = {"depths": (1, 1, 1, 1), "feature_size": 16, "d_state": 4} if arguments.small else {}
    torch.manual_seed(0)
    net = NETWORKS[name](1, 14, scan_backend=backend, **small).to(device).eval()
    label = f"{name}, scan {backend}"
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.no_grad():
        package = str(Path(folder) / "model.pt2")
        program = step(label, "torch.export", lambda: make_program(net))
        if program is None:
            return
        report(f"{label}: exported program", program.module(), net, device, arguments)
        if step(label, "AOTInductor", lambda: compile_package(program, package)) is None:
            return
        loaded = step(label, "load", lambda: torch._inductor.aoti_load_package(package))
        if loaded is not None:
            report(f"{label}: AOTInductor", loaded, net, device, arguments)


def compile_package(program: torch.export.ExportedProgram, package: str) -> str:
    return torch._inductor.aoti_compile_and_package(program, package_path=package)


def step(label: str, what: str, run: Callable):
    """``run()``, or None after its reason has been printed: a failure of one step is the result of this script."""
    start = time.perf_counter()
    try:
        result = run()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        print(f"{label}: {what} failed with {type(error).__name__}: {' '.join(lines[:3])[:500]}", flush=True)
        return None
    print(f"{label}: {what} took {time.perf_counter() - start:.1f} s", flush=True)
    return result


def report(
    label: str, run: Callable, net: torch.nn.Module, device: torch.device, arguments: argparse.Namespace
) -> None:
    height, width = arguments.size
    for size in ((height, width), (height // 2 + 1, width + 7)):
        x = torch.randn(1, 1, *size, device=device)
        logits = step(label, f"{size[0]}×{size[1]}", lambda x=x: run(x))
        if logits is None:
            return
        difference = (logits - net(x)).abs().max().item()
        print(f"{label}: {size[0]}×{size[1]}: largest difference from eager {difference:.1e}", flush=True)
    x = torch.randn(1, 1, height, width, device=device)
    ours, eager = (milliseconds(lambda f=f: f(x), device, arguments.repeats) for f in (run, net))
    print(f"{label}: {height}×{width}: {ours:.2f} ms, eager {eager:.2f} ms (medians)", flush=True)


def milliseconds(run: Callable, device: torch.device, repeats: int) -> float:
    times = []
    for i in range(repeats + 5):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 5:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


if __name__ == "__main__":
    main()
