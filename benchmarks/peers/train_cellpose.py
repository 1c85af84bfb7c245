# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cellpose 3 trained from random weights on a prepared microscopy dataset; writes an instance map of every test image.

Cellpose is not among the requirements: ``pip install --no-deps "cellpose<4" fastremap fill-voids natsort roifile`` and
``opencv-python-headless``, in an environment of its own. Settings are those of its notebook for training (SGD, learning
rate 0.1, weight decay 1e-4), on images in gray, and sizes are found by its own size model.

    python -m benchmarks.peers.train_cellpose --dataset_dir prepared --output_dir cellpose --epochs 75
    python -m benchmarks.peers.score --dataset_dir prepared --predictions cellpose
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def read_section(dataset_dir: Path, *sections: str) -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
    """Names, gray images (H, W) uint8, and instance maps (H, W) of sections of a ``datalist.json``."""
    lists = json.loads((dataset_dir / "datalist.json").read_text())
    folder = dataset_dir / lists.get("source_dir", ".")
    items = [item for section in sections for item in lists[section]]
    images = [np.asarray(Image.open(folder / item["image"]).convert("L")) for item in items]
    labels = [np.asarray(Image.open(folder / item["label"])).astype(np.uint16) for item in items]
    return [Path(item["image"]).stem for item in items], images, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder that `prepare microscopy` wrote")
    parser.add_argument("--output_dir", type=Path, required=True, help="for the instance maps and timing.json")
    parser.add_argument("--epochs", type=int, default=75)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from cellpose import models, train  # of an environment of its own; --help needs none

    args.output_dir.mkdir(parents=True, exist_ok=True)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    _, images, labels = read_section(args.dataset_dir, "training", "validation")

    begin = time.time()
    model = models.CellposeModel(gpu=torch.cuda.is_available(), pretrained_model=False)
    path, _, _ = train.train_seg(
        model.net, train_data=images, train_labels=labels, channels=[0, 0], n_epochs=args.epochs, SGD=True,
        learning_rate=0.1, weight_decay=1e-4, save_path=args.output_dir, model_name="nuclei",
    )  # fmt: skip
    trained = time.time()
    model.pretrained_model = str(path)
    sizes = train.train_size(model.net, str(path), train_data=images, train_labels=labels, channels=[0, 0])
    size_model = models.SizeModel(model)
    size_model.params, size_model.diam_mean = sizes, torch.tensor(sizes["diam_mean"])
    sized = time.time()

    names, images, _ = read_section(args.dataset_dir, "test")
    for name, image in zip(names, images, strict=True):
        diameter, _ = size_model.eval(image, channels=[0, 0])
        masks, _, _ = model.eval(image, channels=[0, 0], diameter=float(diameter))
        Image.fromarray(masks.astype(np.uint16)).save(args.output_dir / f"{name}_instances.png")
    timing = {
        "epochs": args.epochs,
        "seed": args.seed,
        "training_seconds": trained - begin,
        "size_model_seconds": sized - trained,
        "prediction_seconds": time.time() - sized,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    (args.output_dir / "timing.json").write_text(json.dumps(timing, indent=1))
    print(timing)


if __name__ == "__main__":
    main()
