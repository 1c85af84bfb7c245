# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Time of an SS2D block, forward and backward, as the map and the batch grow: a table, a plot and the slopes."""

from __future__ import annotations

import matplotlib
import numpy as np

from swinumamba_monai.analysis.measurement import free, measure, peak_bytes, reason
from swinumamba_monai.networks.vss import SS2D

from .record import Record, make_parser, start
from .ss2d_block import block_step, graphed_if_possible

SIDES = (40, 56, 80, 112, 160, 224, 320, 448, 640, 1024)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
COLUMNS = {
    "series": "series",
    "map": lambda row: f"{row['side']}×{row['side']}",
    "batch": "batch_size",
    "launch": "launch",
    "ms": "ms",
    "ns a position": lambda row: "ms" in row and 1e6 * row["ms"]["median"] / (row["batch_size"] * row["side"] ** 2),
    "peak, GB": lambda row: row.get("peak_bytes") and row["peak_bytes"] / 1e9,
    "failed": "error",
}
NOTES = [
    "SS2D under bf16 autocast, forward and backward; launch says whether a CUDA graph is replayed or kernels launched.",
    "Slopes are fitted to the logarithms of medians: 1 is linear. Below the size that fills the chip time grows more "
    "slowly than the work, so the slope of the larger half of the sizes is given beside that of all.",
    "A size that doesn't fit the memory keeps its row, with the reason.",
]


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--scan_backend", default="auto")
    parser.add_argument("--d_model", type=int, default=96)
    parser.add_argument("--sides", nargs="+", type=int, default=list(SIDES), help="of the maps at batch 1")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=list(BATCH_SIZES), help="at 80 × 80")
    arguments = parser.parse_args(argv)
    device = start(arguments)
    record = Record("growth", arguments, COLUMNS, NOTES)
    if arguments.quick:
        series = {"map": [(side, 1) for side in (8, 16, 32)], "batch": [(8, batch) for batch in (1, 2, 4)]}
    else:
        series = {"map": [(side, 1) for side in arguments.sides], "batch": [(80, n) for n in arguments.batch_sizes]}
    block = SS2D(8 if arguments.quick else arguments.d_model, scan_backend=arguments.scan_backend).to(device)
    for name, sizes in series.items():
        for side, batch_size in sizes:
            row = {"series": name, "side": side, "batch_size": batch_size}
            record.add(row | measure_size(block, side, batch_size, device, arguments))
            free(device)
    record.content["slopes"] = {name: slopes(record.content["rows"], name) for name in series}
    record.content["notes"].append(f"Slopes (all, larger half): {record.content['slopes']}.")
    record.save()
    plot(record)


def measure_size(block, side, batch_size, device, arguments) -> dict:
    try:
        step = block_step(block, batch_size, side, side, device)
        step()
        free(device)
        peak = peak_bytes(step, device)
        run, launch = graphed_if_possible(step, device)
        seconds = arguments.sample_seconds / 3
        result = measure({"block": run}, device, arguments.repeats, arguments.warmup, seconds)["block"]
    except Exception as error:
        return {"error": reason(error)}
    return {"launch": launch, "peak_bytes": peak, **result}


def points(rows: list[dict], series: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions times batch, and milliseconds, of a series."""
    measured = [row for row in rows if row["series"] == series and "ms" in row]
    work = np.array([row["batch_size"] * row["side"] ** 2 for row in measured], dtype=float)
    return work, np.array([row["ms"]["median"] for row in measured])


def slopes(rows: list[dict], series: str) -> dict | None:
    """Exponents of the power laws through all points and through the larger half; None of fewer than three points."""
    work, ms = points(rows, series)
    if len(work) < 3:
        return None
    half = slice(len(work) // 2, None) if len(work) > 3 else slice(1, None)
    fits = {"all": slice(None), "larger_half": half}
    work, ms = np.log(work), np.log(ms)
    return {name: round(float(np.polyfit(work[part], ms[part], 1)[0]), 3) for name, part in fits.items()}


def plot(record: Record) -> None:
    """Write ``growth.png``: time over work, with lines of slope 1 through each series' largest point."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    titles = {"map": "map, batch 1", "batch": "batch, 80 × 80" if not record.content["quick"] else "batch"}
    for axis, (series, title) in zip(axes, titles.items()):
        work, ms = points(record.content["rows"], series)
        if len(work) == 0:
            continue
        slope = record.content["slopes"][series]
        axis.loglog(work, ms, "o-", label=f"measured, slopes {slope}" if slope else "measured")
        axis.loglog(work, ms[-1] * work / work[-1], "--", color="gray", label="slope 1")
        axis.set(title=title, xlabel="positions × batch")
        axis.legend(fontsize=7)
        axis.grid(True, which="both", alpha=0.3)
    axes[0].set_ylabel("SS2D block, forward + backward, ms")
    figure.tight_layout()
    figure.savefig(record.output_dir / "growth.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
