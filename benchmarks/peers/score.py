# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of instance maps of the test images, whoever made them: one matcher for every tool.

Every nucleus counts, on the border too. F1 is the mean over images at IoU 0.5 and 0.75; AP = TP / (TP + FP + FN) over
all nuclei. With ``--manifest`` each group of images has its line too.

    python -m benchmarks.peers.score --dataset_dir prepared --predictions cellpose [--manifest manifest.csv]

``--scores`` writes what was counted in each image to a CSV file.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from swinumamba_monai.atomic import replacing
from swinumamba_monai.data import load_datalist, read_instances
from swinumamba_monai.metrics import CellCounts, cell_counts

THRESHOLDS = (0.5, 0.75)
GROUPS = {"gray_dark": "fluorescence", "color_bright": "stained", "gray_bright": "brightfield"}


def score_folder(dataset_dir: Path, predictions: Path, section: str = "test") -> dict[str, list[CellCounts]]:
    """Counts at each of :data:`THRESHOLDS` for every image of a section, by the image's name.

    Raises:
        FileNotFoundError: an image has no ``NAME_instances.png`` or ``.tif``; nothing is left out.
    """
    counts = {}
    for item in load_datalist(dataset_dir, section, check=False):
        name = Path(item["image"]).stem
        found = [path for suffix in (".png", ".tif") for path in predictions.rglob(f"{name}_instances{suffix}")]
        if len(found) != 1:
            raise FileNotFoundError(f"{predictions} must hold one {name}_instances.png or .tif; found: {len(found)}.")
        truth, prediction = read_instances(item["label"]), read_instances(found[0])
        counts[name] = [cell_counts(truth, prediction, at, True, "corrected") for at in THRESHOLDS]
    return counts


def summary(counts: list[list[CellCounts]]) -> str:
    """One line: images, mean F1 at both thresholds, AP at 0.5, and the nuclei found, false and missed at 0.5."""
    f1 = [float(np.mean([each[place].f1 for each in counts])) for place in range(len(THRESHOLDS))]
    tp, fp, fn = (sum(getattr(each[0], name) for each in counts) for name in ("tp", "fp", "fn"))
    shares = f"F1 {f1[0]:.3f} {f1[1]:.3f}, AP {tp / (tp + fp + fn):.3f}"
    return f"{len(counts)} images: {shares}, found {tp}, false {fp}, missed {fn}"


def write_scores(counts: Mapping[str, Sequence[CellCounts]], path: Path) -> None:
    """A row for every image: nuclei found, false and missed, and F1, at each of :data:`THRESHOLDS`."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", *(f"{word}_{at}" for at in THRESHOLDS for word in ("found", "false", "missed", "f1"))])
        for name, each in counts.items():
            writer.writerow([name, *(value for at in each for value in (at.tp, at.fp, at.fn, f"{at.f1:.4f}"))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder that `prepare microscopy` wrote")
    parser.add_argument("--predictions", type=Path, required=True, help="folder of NAME_instances.png or .tif")
    parser.add_argument("--manifest", type=Path, help="CSV with the columns name and group")
    parser.add_argument("--section", default="test")
    parser.add_argument("--scores", type=Path, help="CSV file for the counts of each image")
    args = parser.parse_args()
    counts = score_folder(args.dataset_dir, args.predictions, args.section)
    print("all:", summary(list(counts.values())))
    if args.scores:
        write_scores(counts, args.scores)
    if args.manifest:
        with args.manifest.open(newline="") as file:
            groups = {row["name"]: GROUPS.get(row["group"], row["group"]) for row in csv.DictReader(file)}
        for group in dict.fromkeys(groups[name] for name in counts):
            print(f"{group}:", summary([each for name, each in counts.items() if groups[name] == group]))


if __name__ == "__main__":
    main()
