# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Find what is in your images with a bundle's network: masks, outlines, tables."""

import argparse
import os
import re
import sys
from datetime import timedelta

from swinumamba_monai.errors import InputError, shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.HelpFormatter
    parser.add_argument("bundle", help="microscopy, endoscopy, abdomen_mri, or the folder of a bundle such as ./mine")
    parser.add_argument("images", nargs="+", help="files, folders or a prepared dataset")
    parser.add_argument("--output_dir", required=True, help="folder of the results; images finished there are skipped")
    parser.add_argument(
        "--checkpoint", nargs="+", action="extend", help="weights, several for an ensemble; default: the bundle's own"
    )
    parser.add_argument(
        "--format", nargs="+", action="extend", default=["masks"], help="masks, geojson, coco, roi; masks always are"
    )
    parser.add_argument("--channel", type=int, help="the channel to look at, from 0 on; default: all of them")
    parser.add_argument("--invert", action="store_true", help="dark cells on a bright ground, as inverted fluorescence")
    parser.add_argument(
        "--diameter", help="diameter of the cells in pixels; default: auto, which looks again at small or large ones"
    )
    parser.add_argument("--device", help="cuda:0, cpu, ...; default: a GPU if there is one")
    parser.add_argument("--overwrite", action="store_true", help="predict finished images again")
    parser.add_argument("--bundle_dir", help="folder of the bundle, for a package installed without the repository")
    parser.add_argument("--share", help="share of the images, as 3/8, the third of eight; default: torchrun's")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="entries of inference.json"
    )


def run(arguments: argparse.Namespace) -> None:
    import torch

    from swinumamba_monai.bundle_options import read_entries
    from swinumamba_monai.prediction import predict_images

    named = {"channel": arguments.channel, "invert": arguments.invert or None, "diameter": arguments.diameter}
    options = read_entries(arguments.set, named)
    local_rank = os.environ.get("LOCAL_RANK")  # of torchrun, whose processes each have a GPU of their own
    own_device = f"cuda:{local_rank}" if local_rank and torch.cuda.is_available() else None
    try:
        report = predict_images(
            arguments.bundle,
            arguments.images,
            arguments.output_dir,
            formats=arguments.format,
            overwrite=arguments.overwrite,
            share=_share(arguments.share),
            options=options,
            checkpoint=arguments.checkpoint,
            device=own_device if arguments.device is None else arguments.device,
            bundle_dir=arguments.bundle_dir,
        )
    except KeyboardInterrupt:
        print(
            f"{arguments.output_dir}: what is finished stays; the same command goes on with the rest", file=sys.stderr
        )
        raise
    before = f" ({report.finished} finished before)" if report.finished else ""
    doubtful = f", {len(report.warned)} to look at" if report.warned else ""
    count = report.predicted + report.finished
    images = f"{count} image{'s' * (count != 1)}{before}, {report.objects} objects{doubtful}"
    print(f"{arguments.output_dir}: {images}: {', '.join(report.files)}")
    for line in report.passed_over:
        print(line)
    for sentence in report.failed:
        print(f"problem: {sentence}", file=sys.stderr)
    if arguments.share is None and "TORCHELASTIC_RUN_ID" in os.environ:
        _wait_for_all()
    if report.failed:
        raise InputError(f"{len(report.failed)} of the images could not be predicted; they are named above.")


def _wait_for_all() -> None:
    """Wait until every process of torchrun has done its share: torchrun ends all of them when one exits with 1."""
    from torch.distributed import rendezvous

    store, rank, count = next(rendezvous("env://"))
    store.set(f"predicted {rank}", "")
    store.wait([f"predicted {other}" for other in range(count)], timedelta(days=365))


def _share(text: str | None) -> tuple[int, int]:
    if text is None:
        return int(os.environ.get("RANK", 0)) + 1, int(os.environ.get("WORLD_SIZE", 1))
    if not (parts := re.fullmatch(r"(\d+)/(\d+)", text)):
        raise InputError(f"--share is like 3/8, not {shown(repr(text))}.")
    return int(parts[1]), int(parts[2])
