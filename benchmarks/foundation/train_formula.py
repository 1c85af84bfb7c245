# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Stage 1 without a photograph: train the whole of Swin-UMamba† to segment pictures made by formulas.

    python -m benchmarks.foundation.train_formula --encoder vmamba_tiny_s1l8 --output_dir out

Every step has new pictures (:mod:`.formula`); the loss is that of the bundles. The same command goes on where it was
stopped. At the end ``out/network.pt`` holds the moving average of the weights, of which ``--pretrained`` takes encoder
and decoder into Swin-UMamba† for any number of classes, and ``out/encoder.pt`` the encoder alone, which masked image
modelling takes; ``.safetensors`` are the same in half precision. ``log.txt`` says how it went, ``result.json`` what
came of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.cases import classes_loss
from benchmarks.command import main_of
from benchmarks.nuclei.train import at_least
from swinumamba_monai.networks import build_network

from .formula import NUM_CLASSES, make_images
from .student import save_weights
from .training import Training, add_options, prepare, write_result
from .views import SEEDS

HELD_OUT = 8  # batches, the same for every seed
ENCODER = "vssm_encoder."

QUICK = {"steps": 4, "minutes": None, "batch_size": 2, "image_size": [32]}
TOY = {"depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1), "feature_size": 8}


class FormulaTraining(Training):
    """The training of a network from pictures that are made for each step.

    Args:
        student: network for images of three channels and :data:`~.formula.NUM_CLASSES` classes, on the device.
        arguments: options of :func:`make_parser`.
    """

    terms, weights = ("Dice and cross-entropy",), (1.0,)

    def __init__(self, student: torch.nn.Module, arguments: argparse.Namespace) -> None:
        super().__init__(student, arguments, arguments.steps)
        self.loss = classes_loss()

    def losses(self) -> Tensor:
        image, mask = self.make(self.arguments.seed * SEEDS + self.step, self.side)
        with self.autocast():
            heads = self.student(image)
        return self.loss(heads, mask.float())[None]

    def make(self, seed: int, side: int) -> tuple[Tensor, Tensor]:
        """The batch of a seed: images and masks of so many pixels a side."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return make_images(self.arguments.batch_size, side, generator, self.device)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Dice over all pixels of pictures that no step has: of shapes against the ground, and the classes' mean."""
        pairs = torch.zeros(NUM_CLASSES**2, dtype=torch.int64, device=self.device)
        for number in range(HELD_OUT):
            image, mask = self.make(-1 - number, self.arguments.image_size[-1])
            with self.autocast():
                found = self.average(image).argmax(1)
            pairs += torch.bincount((mask[:, 0] * NUM_CLASSES + found).flatten(), minlength=len(pairs))
        pairs = pairs.view(NUM_CLASSES, NUM_CLASSES).double()
        inside = pairs[1:, 1:].sum()
        sizes = pairs.sum(0) + pairs.sum(1)
        dice = (2 * pairs.diagonal() / sizes)[1:]
        return {"Dice of shapes": (2 * inside / sizes[1:].sum()).item(), "of classes": dice.nanmean().item()}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=at_least(1), default=10_000)
    add_options(parser, batch_size=32, image_size=[224], drop_path_rate=0.1)
    return parser


def run(arguments: argparse.Namespace, report: Callable[[str], object]) -> None:
    """Train and write what the parsed arguments say."""
    device = prepare(arguments, report)
    network = build_network(
        "SwinUMambaD",
        in_channels=3,
        out_channels=NUM_CLASSES,
        roi_size=arguments.image_size[-1],
        deep_supervision=True,
        encoder=arguments.encoder,
        drop_path_rate=arguments.drop_path_rate,
        **(TOY if arguments.quick else {}),
    ).to(device)
    training = FormulaTraining(network, arguments)
    training.run(arguments.output_dir / "checkpoint.pt", report)
    weights = {name: weight.cpu() for name, weight in training.average.state_dict().items()}
    save_weights(weights, arguments.output_dir / "network")
    encoder = {name: weight for name, weight in weights.items() if name.startswith(ENCODER)}
    save_weights(encoder, arguments.output_dir / "encoder")
    scores = training.validate()
    write_result(training, scores=scores)
    report(f"done after {training.step} steps, {training.seconds:.0f} s of training: {scores}")


def main(argv: Sequence[str] | None = None) -> int:
    return main_of(make_parser(), QUICK, run, argv)


if __name__ == "__main__":
    sys.exit(main())
