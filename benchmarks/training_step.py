# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a whole training step: both networks beside nnU-Net, at the three sizes, in two precisions."""

from __future__ import annotations

from swinumamba_monai.analysis.measurement import free, measure, reason

from .cases import BATCHES, DEFAULT_NETWORKS, HAVE_RELEASED, NETWORKS, QUICK_BATCHES, RELEASED, WAYS, MeasuredStep
from .inference import attempt
from .record import Record, make_parser, start
from .released import why_released_is_unavailable
from .timing import ratio

COLUMNS = {
    "batch": "batch",
    "precision": "precision",
    "network": "network",
    "way": "way",
    "step, ms": "ms",
    "× nnU-Net": "ratio",
    "× its best": "best_ratio",
    "peak, GB": lambda row: row.get("peak_bytes") and row["peak_bytes"] / 1e9,
    "× nnU-Net's": "peak_ratio",
    "failed": "error",
}
NOTES = [
    "A step is forward, loss, backward and AdamW; nothing is clipped. Loss and optimizer are train.json's; nnU-Net as "
    "called has MONAI's DeepSupervisionLoss over DiceCELoss and torch's default AdamW, with the same numbers.",
    "bf16: torch.autocast around forward and loss; fp32: none. TF32 as in settings.",
    "graph: forward and backward are replayed by torch's make_graphed_callables, as our networks do on their own; "
    "compiled: torch.compile, reduce-overhead. × nnU-Net: as called; × its best: its fastest way in this table.",
    "Times: median (least–most) over the samples. Ratios: of samples of the same round, median (least–most).",
    "Peak: parameters, AdamW's state, batch, and the most that a step allocates on top (graph: all that the network "
    "and its graph keep reserved); 1 GB is 10^9 bytes.",
    "nnU-Net: MONAI's DynUNet whose heads keep their own resolution. 'released': the scans in the published code's "
    "arrangement with mamba-ssm's selective_scan_fn (on a CPU with this package's kernel), all else as here.",
]


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=10)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"], choices=["bf16", "fp32"])
    parser.add_argument(
        "--sizes", nargs="+", default=[batch.task.name for batch in BATCHES], help="data sets, see cases.py"
    )
    parser.add_argument("--networks", nargs="+", default=list(DEFAULT_NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--scan_backend", default="auto")
    parser.add_argument("--compile", action="store_true", help="a row for nnU-Net by torch.compile, minutes more")
    parser.add_argument("--skip_released", action="store_true", help="no rows for the released arrangement")
    arguments = parser.parse_args(argv)
    device = start(arguments)
    record = Record("training_step", arguments, COLUMNS, NOTES)
    names = list(arguments.networks)
    if not arguments.skip_released and why_released_is_unavailable(device) is None:
        names += [name + RELEASED for name in arguments.networks if name in HAVE_RELEASED]
    for batch in QUICK_BATCHES if arguments.quick else [b for b in BATCHES if b.task.name in arguments.sizes]:
        measure_batch(batch, names, device, arguments, record)
        free(device)


def measure_batch(batch, names, device, arguments, record) -> None:
    """Rows of one batch: in each precision all networks are built, nnU-Net in every way, and then take turns."""
    ways = WAYS[: 4 if arguments.compile else 3] if device.type == "cuda" else WAYS[:1]
    for precision in arguments.precisions:

        def make_step(key, precision=precision):
            options = {"way": key[1], "precision": precision}
            return MeasuredStep(key[0], batch, device, arguments.quick, arguments.scan_backend, **options)

        keys = [(name, way) for name in names for way in (ways if name == "nnU-Net" else [None])]
        steps, results = attempt(keys, make_step, device)
        peaks = {key: peak_of(step) for key, step in steps.items()}
        results |= measure(steps, device, arguments.repeats, arguments.warmup, arguments.sample_seconds)
        called = ("nnU-Net", "as called")
        of_nnunet = [r["ms"] for (name, _), r in results.items() if name == "nnU-Net" and "ms" in r]
        best = min(of_nnunet, key=lambda ms: ms["median"], default=None)
        for key, result in results.items():
            name, way = key
            record.add(
                {
                    "size": batch.task.name,
                    "batch": str(batch),
                    "precision": precision,
                    "network": name,
                    "way": way or "train.json",
                    "ratio": ratio(result.get("ms"), results.get(called, {}).get("ms")),
                    "best_ratio": ratio(result.get("ms"), best),
                    "peak_bytes": peaks.get(key),
                    "peak_ratio": peaks[key] / peaks[called] if peaks.get(key) and peaks.get(called) else None,
                    **result,
                }
            )
        del steps
        free(device)


def peak_of(step: MeasuredStep) -> int | None:
    try:
        return step.peak_bytes()
    except Exception as error:
        print(f"no peak memory: {reason(error)}", flush=True)
        return None


if __name__ == "__main__":
    main()
