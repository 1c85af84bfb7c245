# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Stage 1: train one of VMamba's encoders as a classifier of images in folders, one a class, from random weights.

    python -m benchmarks.foundation.train --packed mine=my_images --encoder vmamba_tiny_s1l8 --output_dir out

packs the images (:mod:`.pack`) into ``out/packs`` and learns from them; packs that are there already, or folders of
them, are given as they are.

``--teacher`` adds what a network that knows ImageNet says of each view, and its maps at strides 8, 16 and 32.

The same command goes on where it was stopped. At the end ``out/classifier.pt`` holds the moving average of the weights
by the names that VMamba's authors use, ``out/encoder.pt`` the encoder alone by those of Swin-UMamba, with the patch
embedding; ``.safetensors`` are the same in half precision, and ``--pretrained`` takes all four. ``log.txt`` says how it
went, ``result.json`` what came of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.command import main_of
from benchmarks.nuclei.train import at_least
from swinumamba_monai.errors import InputError

from .pack import pack_source
from .packed import SUFFIX, Images, load_images
from .student import Student, dense_loss, export_encoder, save_weights
from .teacher import TEACHERS
from .training import Training, add_options, prepare, write_result
from .views import Batch, RandomViews, middle_views, normalized

LABEL_SMOOTHING = 0.1
WEIGHTS = (1.0, 1.0, 3.0)  # weights of the losses: labels, the teacher's classes, its maps
STORED_SIDE = 9 / 8  # side of the decoded images, as a multiple of the largest views'

QUICK = {"epochs": 2, "minutes": None, "batch_size": 4, "image_size": [32, 64], "num_workers": 1}
TOY = {"depths": (1, 1, 1, 1), "feature_size": 8}


class EncoderTraining(Training):
    """The training of a classifier from views of images.

    Args:
        student: the network that learns, on the device.
        views: the views that it learns from.
        arguments: options of :func:`make_parser`.
        teacher: the teacher, on the device, or None.
    """

    terms, weights = ("labels", "teacher", "maps"), WEIGHTS
    free = (*Training.free, "num_workers", "packed", "teacher_weights")

    def __init__(
        self, student: Student, views: RandomViews, arguments: argparse.Namespace, teacher: nn.Module | None
    ) -> None:
        super().__init__(student, arguments, views.steps_per_epoch * arguments.epochs)
        self.views, self.teacher = views, teacher

    def facts(self) -> dict:
        return {"images": len(self.views.numbers), "classes": list(self.views.images.classes)}

    def losses(self) -> Tensor:
        batch = self.views.batch(self.step, self.side)
        with self.autocast():
            said = self.teacher(batch.image) if self.teacher else None
            answer = self.student(normalized(batch.image))
        return losses(answer, batch, said)

    def validate(self) -> dict[str, float]:
        scores = validate(self.average, self.views.images, self.arguments.image_size[-1], self.dtype)
        return {f"top-1 {name}": score for name, score in scores.items()}


def losses(
    answer: tuple[Tensor, Tensor, list[Tensor]], batch: Batch, said: tuple[Tensor, list[Tensor]] | None
) -> Tensor:
    """Cross-entropy to the labels, divergence from the teacher's classes, and distance to its maps: (3,).

    Args:
        answer: output of a :class:`~.student.Student`.
        batch: the batch that it was given.
        said: output of the teacher on the same views, or None: the last two are 0 then.
    """
    logits, teacher_logits, maps = answer
    logits = logits.float()
    own, other = (
        F.cross_entropy(logits, label, label_smoothing=LABEL_SMOOTHING) for label in (batch.label, batch.other)
    )
    labels = batch.share * own + (1 - batch.share) * other
    if said is None:
        return torch.stack([labels, *labels.new_zeros(2)])
    wanted, wanted_maps = said
    ours, theirs = (values.float().log_softmax(1) for values in (teacher_logits, wanted))
    divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return torch.stack([labels, divergence, dense_loss(maps, wanted_maps)])


@torch.no_grad()
def validate(
    student: Student, images: Images, side: int, dtype: torch.dtype | None, batch_size: int = 256
) -> dict[str, float]:
    """Share of the images held out whose class has the largest logit of all classes, for each source that has some."""
    numbers, hits = images.numbers(held_out=True), []
    for some in numbers.split(batch_size):
        with torch.autocast(some.device.type, dtype, enabled=dtype is not None):
            logits, *_ = student(normalized(middle_views(images, some, side)))
        hits.append(logits.argmax(1) == images.labels[some])
    if not hits:
        return {}
    hit, source = torch.cat(hits).float(), images.source[numbers]
    return {
        name: hit[source == index].mean().item() for index, name in enumerate(images.sources) if (source == index).any()
    }


def packs_of(
    given: Sequence[Path], folder: Path, side: int, num_workers: int, report: Callable[[str], object]
) -> list[Path]:
    """What is given, with a pack in ``folder`` for each ``NAME=FOLDER``; one that is there from before is taken."""
    packs = []
    for path in given:
        name, equals, _ = str(path).partition("=")
        if equals and not path.exists():
            target = folder / f"{name}{SUFFIX}"
            line = (
                f"{target}: from before"
                if target.is_file()
                else pack_source(str(path), folder, side, num_workers=num_workers)
            )
            report(line)
            path = target
        packs.append(path)
    return packs


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--packed",
        type=Path,
        nargs="+",
        required=True,
        metavar="PACK",
        help="packs, folders of them, or NAME=FOLDER of images",
    )
    parser.add_argument("--teacher", choices=TEACHERS, default=None, help="to learn from, beside the labels")
    parser.add_argument("--teacher_weights", type=Path, default=None, help="its file; by default its package's")
    parser.add_argument("--teacher_size", type=at_least(32), default=192, help="side of the views that it sees")
    parser.add_argument("--epochs", type=at_least(1), default=100)
    parser.add_argument("--num_workers", type=at_least(1), default=8, help="threads that decode the packs")
    add_options(parser, batch_size=256, image_size=[128], drop_path_rate=0.1)
    return parser


def run(arguments: argparse.Namespace, report: Callable[[str], object]) -> None:
    """Read, train and write what the parsed arguments say."""
    device = prepare(arguments, report)
    teacher = None
    if arguments.teacher:
        teacher = TEACHERS[arguments.teacher](arguments.teacher_weights, arguments.teacher_size).to(device)
    side = round(max(arguments.image_size) * STORED_SIDE)
    packs = packs_of(arguments.packed, arguments.output_dir / "packs", side, arguments.num_workers, report)
    images = load_images(packs, side, arguments.num_workers)
    views = RandomViews(images.to(device), arguments.seed, arguments.batch_size)
    if views.steps_per_epoch == 0:
        raise InputError(f"{len(views.numbers)} images for training are less than a batch; take a smaller batch_size.")
    counts = torch.bincount(images.source, minlength=len(images.sources)).tolist()
    report(
        f"{len(images.labels)} images of {len(images.classes)} classes, {len(views.numbers)} of them for training: "
        + ", ".join(f"{name} {count}" for name, count in zip(images.sources, counts))
    )
    of_teacher = {"teacher_classes": teacher.num_classes, "teacher_channels": teacher.channels} if teacher else {}
    options = {"drop_path_rate": arguments.drop_path_rate, **(TOY if arguments.quick else {})}
    student = Student(arguments.encoder, len(images.classes), **of_teacher, **options).to(device)
    training = EncoderTraining(student, views, arguments, teacher)
    training.run(arguments.output_dir / "checkpoint.pt", report)
    weights = training.average.weights()
    save_weights(weights, arguments.output_dir / "classifier")
    save_weights(export_encoder(weights), arguments.output_dir / "encoder")
    scores = validate(training.average, views.images, arguments.image_size[-1], training.dtype)
    write_result(training, top1=scores)
    report(f"done after {training.step} steps, {training.seconds:.0f} s of training: {scores}")


def main(argv: Sequence[str] | None = None) -> int:
    return main_of(make_parser(), QUICK, run, argv)


if __name__ == "__main__":
    sys.exit(main())
