# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What ``predict microscopy`` takes with the network that ships: many small images, and large TIFF images by blocks."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
import torch

from swinumamba_monai.analysis.measurement import reason
from swinumamba_monai.data.synthetic.microscopy import synthesize_image
from swinumamba_monai.prediction import predict_images

from .record import Record, make_parser, start

COLUMNS = {
    "images": "images",
    "pixels": lambda row: f"{row['side']}×{row['side']}",
    "objects": "objects",
    "s": "seconds",
    "s of the processor": "processor_seconds",
    "images/s": "images_per_second",
    "million pixels/s": lambda row: row.get("seconds") and row["images"] * row["side"] ** 2 / row["seconds"] / 1e6,
    "peak, GB": lambda row: row.get("peak_bytes") and row["peak_bytes"] / 1e9,
    "failed": "error",
}
NOTES = [
    "One call of predict_images a row, once: the network is built, the images are read, predicted and written with "
    "pictures and tables. Importing Python's packages is not in it. Seconds of the processor are those of all threads; "
    "other work on the machine changes them little.",
    "Drawn nuclei, gray, 8 bits, in TIFF files with tiles of 256 and zlib. A side of over 1024 is one drawn image of "
    "1024 × 1024 again and again, cut to the side.",
    "Peak: what the process had in its memory at the most since it began, all of Python and torch in it, without that "
    "of a GPU; rows of larger images come later.",
]
TOY = {"network": "$torch.nn.Identity()", "checkpointloader": None, "target": "classes", "block_size": 768}


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.set_defaults(warmup=0, sample_seconds=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=32, help="of 256 x 256 pixels, for the first row")
    parser.add_argument("--sides", nargs="+", type=int, default=[4096], help="of the large images, a row each")
    parser.add_argument("--block_size", type=int, default=4096)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device = start(arguments)
    record = Record("prediction", arguments, COLUMNS, NOTES)
    record.content["block_size"] = arguments.block_size
    options = TOY if arguments.quick else {"block_size": arguments.block_size}
    rows = [(2, 64), (1, 1100)] if arguments.quick else [(arguments.images, 256), *((1, s) for s in arguments.sides)]
    for images, side in rows:
        row = {"images": images, "side": side}
        with tempfile.TemporaryDirectory() as folder:
            try:
                record.add(row | predict(draw(images, side, arguments.seed, Path(folder)), options, device))
            except Exception as error:
                record.add(row | {"error": reason(error)})


def draw(images: int, side: int, seed: int, folder: Path) -> Path:
    """A folder in ``folder`` with so many TIFF images (side, side)."""
    (folder / "images").mkdir()
    random, part = np.random.default_rng(seed), min(side, 1024)
    for number in range(images):
        image, _ = synthesize_image(random, (part, part), stained=False)
        whole = np.tile(image, (-(-side // part),) * 2)[:side, :side]
        tifffile.imwrite(folder / "images" / f"{number}.tif", whole, tile=(256, 256), compression="zlib")
    return folder / "images"


def predict(folder: Path, options: dict, device: torch.device) -> dict:
    """Seconds, peak and counts of the prediction of a folder's images."""
    begin, busy = time.perf_counter(), time.process_time()
    report = predict_images("microscopy", [folder], folder.parent / "out", device=str(device), options=options)
    seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    if report.failed:
        raise RuntimeError(report.failed[0])
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rate = report.predicted / seconds
    times = {"seconds": seconds, "processor_seconds": busy, "images_per_second": rate}
    return {**times, "peak_bytes": peak, "objects": report.objects}


if __name__ == "__main__":
    main()
