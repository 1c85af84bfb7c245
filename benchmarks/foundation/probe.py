# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Linear probe: what a frozen encoder knows, by a logistic regression on its features; random weights beside it.

    python -m benchmarks.foundation.probe --encoder vmamba_tiny_s1l8 --weights out/classifier.safetensors \\
        --packed packed/imagenette.safetensors --output_dir out

The regression learns the images for training and is scored on those held out. Its features are the mean of the last
stage's map, and the means of all four stages' beside each other. How much it is held back is chosen on every fifth of
the images for training. ``probe.json`` and ``probe.md`` hold the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.command import run_plainly
from benchmarks.nuclei.train import at_least
from swinumamba_monai.atomic import replacing
from swinumamba_monai.devices import find_device
from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import ENCODERS, VMambaClassifier, build_vmamba
from swinumamba_monai.reports.tables import markdown
from swinumamba_monai.training import autocast_dtype, default_amp
from swinumamba_monai.weight_files import read_weights

from .packed import Images, load_images
from .student import is_head
from .train import STORED_SIDE, TOY
from .views import middle_views, normalized

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # weights of the squared coefficients, to choose from
CHOOSING_EVERY = 5  # number of images for training to one on which the decay is chosen
ITERATIONS = 100  # number of iterations of L-BFGS


def load_encoder(name: str, weights: Path | None, **options) -> VMambaClassifier:
    """A classifier whose encoder has the weights of a file, or random ones; its head is of no matter.

    Args:
        name: a key of :data:`swinumamba_monai.networks.ENCODERS`.
        weights: the file that ``train`` wrote as ``classifier.safetensors``, or a checkpoint of VMamba's authors.
        options: further keyword arguments of :func:`swinumamba_monai.networks.build_vmamba`.

    Raises:
        InputError: the file cannot be read, or is of another encoder.
    """
    network = build_vmamba(name, num_classes=1, **options)
    if weights is not None:
        given = {key: weight for key, weight in read_weights(weights).items() if not is_head(key)}
        wanted = {key for key in network.state_dict() if not is_head(key)}
        if given.keys() != wanted:
            raise InputError(f"{weights} is not of the encoder {name}, or not a classifier's weights; see --help.")
        try:
            network.load_state_dict(given, strict=False)
        except RuntimeError as error:
            raise InputError(f"{weights} does not fit the encoder {name}; choose its --encoder.") from error
    return network.eval().requires_grad_(False)


@torch.no_grad()
def features_of(
    network: VMambaClassifier, images: Images, numbers: Tensor, side: int, dtype: torch.dtype | None
) -> list[Tensor]:
    """The means of the stages' maps, (n, channels) each, finest stage first.

    Args:
        network: the network, on the images' device.
        images: the images.
        numbers: which of them, (n,).
        side: side of the views, in pixels.
        dtype: dtype of autocast, or None.
    """
    stages = []
    for some in numbers.split(128):
        with torch.autocast(some.device.type, dtype, enabled=dtype is not None):
            maps = network.features(normalized(middle_views(images, some, side)))
        stages.append([features.float().mean((1, 2)) for features in maps])
    return [torch.cat(parts) for parts in zip(*stages)]


def fit(features: Tensor, labels: Tensor, num_classes: int, decay: float) -> Tensor:
    """Coefficients of a logistic regression with an intercept, (channels + 1, num_classes), by L-BFGS.

    Args:
        features: (n, channels), of about mean 0 and standard deviation 1.
        labels: (n,).
        num_classes: number of classes.
        decay: weight of the sum of the squared coefficients beside the mean loss.
    """
    coefficients = features.new_zeros(features.shape[1] + 1, num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([coefficients], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(_predict(features, coefficients), labels) + decay * coefficients[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return coefficients.detach()


def _predict(features: Tensor, coefficients: Tensor) -> Tensor:
    return features @ coefficients[:-1] + coefficients[-1]


def probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, num_classes: int) -> dict[str, float]:
    """Accuracy of a logistic regression on the test features, and the decay that was chosen for it.

    Args:
        train: features (n, channels) that it learns.
        train_labels: (n,).
        test: features (m, channels) that it is scored on.
        test_labels: (m,).
        num_classes: number of classes.
    """
    mean, spread = train.mean(0), train.std(0).clamp_min(1e-6)
    train, test = (train - mean) / spread, (test - mean) / spread
    choosing = torch.arange(len(train), device=train.device) % CHOOSING_EVERY == 0

    def accuracy(decay: float, known: Tensor, known_labels: Tensor, asked: Tensor, asked_labels: Tensor) -> float:
        answer = _predict(asked, fit(known, known_labels, num_classes, decay)).argmax(1)
        return (answer == asked_labels).float().mean().item()

    parts = train[~choosing], train_labels[~choosing], train[choosing], train_labels[choosing]
    chosen = max(DECAYS, key=lambda decay: accuracy(decay, *parts))
    return {"accuracy": accuracy(chosen, train, train_labels, test, test_labels), "decay": chosen}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--packed", type=Path, required=True, help="a pack, with images held out")
    parser.add_argument("--weights", type=Path, nargs="*", default=[], help="of the encoder: classifiers' files")
    parser.add_argument("--output_dir", type=Path, required=True, help="for probe.json and probe.md")
    parser.add_argument("--encoder", choices=ENCODERS, default="vmamba_tiny_v0")
    parser.add_argument("--image_size", type=at_least(32), default=128, help="side of the views")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--num_workers", type=at_least(1), default=8, help="threads that decode the pack")
    parser.add_argument("--device", default=None, help="a GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="a toy network: shows that it runs")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Probe the encoders that the parsed arguments name."""
    device = find_device(arguments.device)
    dtype = autocast_dtype(default_amp(device), device)
    images = load_images([arguments.packed], round(arguments.image_size * STORED_SIDE), arguments.num_workers)
    images = images.to(device)
    numbers = [images.numbers(held_out) for held_out in (False, True)]
    if not len(numbers[1]):
        raise InputError(f"{arguments.packed} holds no images out; pack it with some.")
    labels = [images.labels[some] for some in numbers]
    rows = []
    for weights in [None, *arguments.weights]:
        torch.manual_seed(arguments.seed)
        network = load_encoder(arguments.encoder, weights, **(TOY if arguments.quick else {})).to(device)
        stages = [features_of(network, images, some, arguments.image_size, dtype) for some in numbers]
        for kind, first in (("last stage", -1), ("all stages", 0)):
            train, test = (torch.cat(parts[first:], 1) for parts in stages)
            score = probe(train, labels[0], test, labels[1], len(images.classes))
            rows.append({"weights": str(weights or "random"), "features": kind, **score})
            print(rows[-1], flush=True)
    content = {
        "encoder": arguments.encoder,
        "images": {"training": len(numbers[0]), "held out": len(numbers[1]), "classes": len(images.classes)},
        "image_size": arguments.image_size,
        "rows": rows,
    }
    table = markdown({"weights": "weights", "features": "features", "accuracy": "accuracy"}, rows)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for suffix, text in (("json", json.dumps(content, indent=1) + "\n"), ("md", table)):
        with replacing(arguments.output_dir / f"probe.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    return run_plainly(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
