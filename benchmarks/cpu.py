# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Inference and training step on a CPU: Swin-UMamba† with each CPU backend beside nnU-Net, float32."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager

import torch

from swinumamba_monai.analysis.measurement import measure, reason
from swinumamba_monai.analysis.steps import Inference
from swinumamba_monai.ops.backends import choose_backend
from swinumamba_monai.tasks import TASKS

from .cases import QUICK_BATCHES, Batch, MeasuredStep, build
from .record import Record, make_parser, start
from .timing import ratio

COLUMNS = {"what": "what", "network": "network", "ms": "ms", "× nnU-Net": "ratio", "failed": "error"}
NOTES = [
    "float32. Inference: evaluation mode, torch.inference_mode, the finest head alone. Step: forward, deep supervision "
    "loss, backward, AdamW.",
    "Times: median (least–most) over the samples, a call each. Ratios: of samples of the same round.",
]


@contextmanager
def neighbours(count: int):
    """Other processes that keep a core busy each, for as long as this lasts."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.set_defaults(device="cpu", warmup=1, sample_seconds=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scan_backends", nargs="+", default=["numba", "portable"])
    parser.add_argument("--neighbours", type=int, default=0, help="other processes that keep a core busy meanwhile")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device = start(arguments)
    record = Record("cpu", arguments, COLUMNS, NOTES)
    task = QUICK_BATCHES[0].task if arguments.quick else TASKS["abdomen_mri"]
    cases = {"nnU-Net": ("nnU-Net", "auto")}
    cases |= {f"Swin-UMamba†, {backend}": ("Swin-UMamba†", backend) for backend in arguments.scan_backends}

    def make_inference(name, backend):
        return Inference(build(name, task, device, arguments.quick, backend, heads=False).eval(), task, device)

    def make_step(name, backend):
        way = "as called" if name == "nnU-Net" else None
        return MeasuredStep(name, Batch(task, 1), device, arguments.quick, backend, way)

    for what, make in {"inference": make_inference, "training step": make_step}.items():
        runs, results = {}, {}
        for row, (name, backend) in cases.items():
            try:
                choose_backend(backend, "cpu", torch.float32)
                runs[row] = make(name, backend)
            except Exception as error:
                results[row] = {"error": reason(error)}
        with neighbours(arguments.neighbours):
            results |= measure(runs, device, arguments.repeats, arguments.warmup, arguments.sample_seconds)
        baseline = results["nnU-Net"].get("ms")
        for row in cases:
            result = results[row]
            record.add({"what": what, "network": row, "ratio": ratio(result.get("ms"), baseline), **result})


if __name__ == "__main__":
    main()
