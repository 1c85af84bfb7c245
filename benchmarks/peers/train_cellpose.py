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
import time
from pathlib import Path

import numpy as np
import torch

from .sections import read_sections, save_instances, save_timing


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
    _, images, labels = read_sections(args.dataset_dir, "training", "validation")

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

    names, images, _ = read_sections(args.dataset_dir, "test")
    for name, image in zip(names, images, strict=True):
        diameter, _ = size_model.eval(image, channels=[0, 0])
        masks, _, _ = model.eval(image, channels=[0, 0], diameter=float(diameter))
        save_instances(args.output_dir, name, masks)
    timing = {
        "epochs": args.epochs,
        "seed": args.seed,
        "training_seconds": trained - begin,
        "size_model_seconds": sized - trained,
        "prediction_seconds": time.time() - sized,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    save_timing(args.output_dir, timing)


if __name__ == "__main__":
    main()
