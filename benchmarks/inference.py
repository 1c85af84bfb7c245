# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Time of an inference, eager and as a CUDA graph: both networks beside nnU-Net, at the three sizes."""

from __future__ import annotations

from swinumamba_monai.analysis.measurement import free, measure, reason
from swinumamba_monai.analysis.steps import Inference

from .cases import BATCHES, DEFAULT_NETWORKS, HAVE_RELEASED, NETWORKS, QUICK_BATCHES, RELEASED, Batch, build
from .record import Record, make_parser, start
from .released import why_released_is_unavailable
from .timing import graphed, ratio

COLUMNS = {
    "batch": "batch",
    "launch": "launch",
    "network": "network",
    "inference, ms": "ms",
    "× nnU-Net": "ratio",
    "× called nnU-Net": "call_ratio",
    "failed": "error",
}
NOTES = [
    "Evaluation mode, torch.inference_mode, logits of the finest head; the batch is on the device already. Only "
    "the finest head is computed.",
    "call: the network called as a user calls it, so ours replay their own CUDA graphs. eager: each call launches its "
    "kernels and casts its weights. graph: for all, the replay of one captured call.",
    "Times: median (least–most) over the samples, back-to-back calls. Ratios: of samples of the same round.",
]


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=20)
    parser.set_defaults(warmup=10)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument(
        "--sizes", nargs="+", default=[batch.task.name for batch in BATCHES], help="data sets, see cases.py"
    )
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1])
    parser.add_argument("--networks", nargs="+", default=list(DEFAULT_NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--scan_backend", default="auto")
    parser.add_argument("--skip_released", action="store_true", help="no rows for the released arrangement")
    parser.add_argument("--skip_graph", action="store_true", help="no rows for CUDA graphs")
    arguments = parser.parse_args(argv)
    device = start(arguments)
    record = Record("inference", arguments, COLUMNS, [*NOTES, f"Precision: {arguments.precision}."])
    names = list(arguments.networks)
    if not arguments.skip_released and why_released_is_unavailable(device) is None:
        names += [name + RELEASED for name in arguments.networks if name in HAVE_RELEASED]
    for task in [b.task for b in (QUICK_BATCHES if arguments.quick else BATCHES)]:
        for batch_size in arguments.batch_sizes if arguments.quick or task.name in arguments.sizes else ():
            measure_batch(Batch(task, batch_size), names, device, arguments, record)
            free(device)


def measure_batch(batch, names, device, arguments, record) -> None:
    """Rows of one batch: all networks, eager, and then their graphs, take turns."""

    def make_run(name, cuda_graphs=False):
        options = {"heads": False, "cuda_graphs": cuda_graphs}
        network = build(name, batch.task, device, arguments.quick, arguments.scan_backend, **options).eval()
        return Inference(network, batch.task, device, arguments.precision, batch.batch_size)

    calls, broken = attempt(names, lambda name: make_run(name, cuda_graphs=True), device)
    called = report(batch, "call", calls, broken, device, arguments, record)
    if device.type == "cuda":
        eager, broken = attempt(names, make_run, device)
        report(batch, "eager", eager, broken, device, arguments, record, called)
        if not arguments.skip_graph:
            graphs, broken = attempt(eager, lambda name: graphed(eager[name], device), device)
            report(batch, "graph", graphs, broken, device, arguments, record, called)


def attempt(names, make, device) -> tuple[dict, dict]:
    """What ``make`` returns for each name, and the results of those for which it fails."""
    made, broken = {}, {}
    for name in names:
        try:
            made[name] = make(name)
        except Exception as error:
            broken[name] = {"error": reason(error)}
            free(device)
    return made, broken


def report(batch, launch, runs, broken, device, arguments, record, called=None) -> dict | None:
    """Measure and record; returns what nnU-Net took, which other launches are compared with too."""
    results = measure(runs, device, arguments.repeats, arguments.warmup, arguments.sample_seconds) | broken
    baseline = results.get("nnU-Net", {}).get("ms")
    for name, result in results.items():
        record.add(
            {
                "size": batch.task.name,
                "batch": str(batch),
                "launch": launch,
                "network": name,
                "ratio": ratio(result.get("ms"), baseline),
                "call_ratio": ratio(result.get("ms"), called or baseline),
                **result,
            }
        )
    return baseline


if __name__ == "__main__":
    main()
