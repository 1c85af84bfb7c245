# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Inference and training step on a CPU: Swin-UMamba† with each CPU backend beside nnU-Net, float32."""

from __future__ import annotations

import torch

from swinumamba_monai.analysis.timing import measure, reason
from swinumamba_monai.ops.backends import choose_backend

from .cases import QUICK_SIZES, Size, TrainingStep, build
from .record import Record, make_parser, start
from .timing import ratio

SIZE = Size("abdomen_mri", 1, 1, 320, 320, 14)
COLUMNS = {"what": "what", "network": "network", "ms": "ms", "× nnU-Net": "ratio", "failed": "error"}
NOTES = [
    "float32. Inference: evaluation mode, torch.inference_mode, the finest head alone. Step: forward, deep supervision "
    "loss, backward, AdamW.",
    "Times: median (least–most) over the samples, a call each. Ratios: of samples of the same round.",
]


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.set_defaults(device="cpu", warmup=1, sample_seconds=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scan_backends", nargs="+", default=["numba", "portable"])
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device = start(arguments)
    record = Record("cpu", arguments, COLUMNS, NOTES)
    size = QUICK_SIZES[0]._replace(batch_size=1) if arguments.quick else SIZE
    cases = {"nnU-Net": ("nnU-Net", "auto")}
    cases |= {f"Swin-UMamba†, {backend}": ("Swin-UMamba†", backend) for backend in arguments.scan_backends}
    image = torch.randn(1, size.in_channels, size.height, size.width)

    def make_inference(name, backend):
        network = build(name, size, device, arguments.quick, backend, heads=False).eval()
        return torch.inference_mode()(lambda: network(image))

    def make_step(name, backend):
        return TrainingStep(name, size, device, arguments.quick, backend)

    for what, make in {"inference": make_inference, "training step": make_step}.items():
        runs, results = {}, {}
        for row, (name, backend) in cases.items():
            try:
                choose_backend(backend, "cpu", torch.float32)
                runs[row] = make(name, backend)
            except Exception as error:
                results[row] = {"error": reason(error)}
        results |= measure(runs, device, arguments.repeats, arguments.warmup, arguments.sample_seconds)
        baseline = results["nnU-Net"].get("ms")
        for row in cases:
            result = results[row]
            record.add({"what": what, "network": row, "ratio": ratio(result.get("ms"), baseline), **result})


if __name__ == "__main__":
    main()
