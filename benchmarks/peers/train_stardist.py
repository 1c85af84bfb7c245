# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""StarDist trained from random weights on a prepared microscopy dataset; writes an instance map of every test image.

StarDist is not among the requirements: ``pip install stardist tensorflow-cpu`` (or ``tensorflow[and-cuda]``) in an
environment of its own, which needs nothing of this package. Settings are those of its example for training: 32 rays, a
grid of 2 x 2, flips, quarter turns and changes of brightness, images stretched from their percentiles 1 to 99.8, and
thresholds that the validation images choose. Images are gray.

    python -m benchmarks.peers.train_stardist --dataset_dir prepared --output_dir stardist --epochs 400
    python -m benchmarks.peers.score --dataset_dir prepared --predictions stardist
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np

from .sections import read_sections, save_instances, save_timing


def augment(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image and its map, turned and flipped alike, and the image brighter or darker and noisier."""
    turns = np.random.randint(4)
    image, label = np.rot90(image, turns), np.rot90(label, turns)
    if np.random.rand() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    image = image * np.random.uniform(0.6, 2) + np.random.uniform(-0.2, 0.2)
    return image + 0.02 * np.random.rand() * np.random.normal(size=image.shape), label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder that `prepare microscopy` wrote")
    parser.add_argument("--output_dir", type=Path, required=True, help="for the instance maps and timing.json")
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--steps_per_epoch", type=int, default=100)
    parser.add_argument("--patch", type=int, default=256, help="pixels of the sides of the crops")
    parser.add_argument("--count", type=int, help="images of each section, for a trial; default: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import tensorflow as tf  # of an environment of its own, as all of StarDist; --help needs none
    from csbdeep.utils import normalize
    from stardist.models import Config2D, StarDist2D

    args.output_dir.mkdir(parents=True, exist_ok=True)
    for seed in (np.random.seed, random.seed, tf.random.set_seed):
        seed(args.seed)

    def read(section: str) -> tuple[list, list, list]:
        """As read_sections, the images from about 0 to 1."""
        names, grays, labels = read_sections(args.dataset_dir, section, count=args.count)
        return names, [normalize(gray, 1, 99.8, axis=(0, 1)) for gray in grays], labels

    _, images, labels = read("training")
    _, *validation = read("validation")
    gpu = bool(tf.config.list_physical_devices("GPU"))

    begin = time.time()
    config = Config2D(
        n_rays=32, grid=(2, 2), n_channel_in=1, use_gpu=False, train_patch_size=(args.patch, args.patch),
        train_epochs=args.epochs, train_steps_per_epoch=args.steps_per_epoch, train_tensorboard=False,
    )  # fmt: skip
    model = StarDist2D(config, name="nuclei", basedir=str(args.output_dir))
    model.train(images, labels, validation_data=tuple(validation), augmenter=augment, seed=args.seed)
    trained = time.time()
    model.optimize_thresholds(*validation)
    optimized = time.time()

    names, images, _ = read("test")
    for name, image in zip(names, images, strict=True):
        found, _ = model.predict_instances(image)
        save_instances(args.output_dir, name, found)
    timing = {
        "epochs": args.epochs,
        "seed": args.seed,
        "training_seconds": trained - begin,
        "threshold_seconds": optimized - trained,
        "prediction_seconds": time.time() - optimized,
        "device": "GPU" if gpu else "cpu",
    }
    save_timing(args.output_dir, timing)


if __name__ == "__main__":
    main()
