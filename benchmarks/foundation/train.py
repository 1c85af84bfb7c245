# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Stage 1: train one of VMamba's encoders as a classifier of packed images, from random weights.

    python -m benchmarks.foundation.pack imagenette=IMAGENETTE --output_dir packed
    python -m benchmarks.foundation.train --packed packed --encoder vmamba_tiny_s1l8 --output_dir out

``--teacher`` adds what a network that knows ImageNet says of each view, and its maps at strides 8, 16 and 32.

The same command goes on where it was stopped. At the end ``out/classifier.pt`` holds the moving average of the weights
by the names that VMamba's authors use, ``out/encoder.pt`` the encoder alone by those of Swin-UMamba, with the patch
embedding; ``.safetensors`` are the same in half precision, and ``--pretrained`` takes all four. ``log.txt`` says how it
went, ``result.json`` what came of it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmarks.command import logging_to, run_plainly
from benchmarks.nuclei.train import at_least, parameter_groups
from benchmarks.record import hardware, versions
from swinumamba_monai.atomic import replacing
from swinumamba_monai.devices import find_device
from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import ENCODERS
from swinumamba_monai.training import autocast_dtype, default_amp
from swinumamba_monai.weight_files import read_checkpoint

from .packed import Images, load_images
from .student import Student, dense_loss, export_encoder, save_weights
from .teacher import TEACHERS
from .views import Batch, RandomViews, middle_views, normalized

WARM_UP, LAST_RATE = 0.05, 0.01  # share of the way on which the learning rate grows, and what is left of it at the end
BETAS, EPSILON = (0.9, 0.99), 1e-6  # of AdamW
GRADIENT_CLIP = 5.0
AVERAGE_DECAY = 0.998  # of the weights' moving average
LABEL_SMOOTHING = 0.1
WEIGHTS = (1.0, 1.0, 3.0)  # of the losses: labels, the teacher's classes, its maps
LOG_EVERY = 50  # steps
VALIDATIONS = 10  # on the way
STORED_SIDE = 9 / 8  # of the decoded images, as a multiple of the largest views'

QUICK = {"epochs": 2, "minutes": None, "batch_size": 4, "image_size": [32, 64], "num_workers": 1}
TOY = {"depths": (1, 1, 1, 1), "feature_size": 8}
FREE = ("output_dir", "device", "num_workers", "save_seconds", "packed", "teacher_weights")  # to change on the way


class Training:
    """A training and its state, which :meth:`save` keeps and :meth:`load` brings back.

    Args:
        student: on the device.
        views: what it learns from.
        arguments: of :func:`make_parser`.
        teacher: on the device, or None.
    """

    def __init__(
        self, student: Student, views: RandomViews, arguments: argparse.Namespace, teacher: nn.Module | None
    ) -> None:
        self.student, self.views, self.arguments, self.teacher = student, views, arguments, teacher
        self.device = next(student.parameters()).device
        self.dtype = autocast_dtype(default_amp(self.device), self.device)
        self.average = copy.deepcopy(student).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(student), arguments.learning_rate, BETAS, EPSILON, fused=self.device.type == "cuda"
        )
        self.steps = views.steps_per_epoch * arguments.epochs
        self.step, self.seconds = 0, 0.0  # done so far

    @property
    def progress(self) -> float:
        """The share of the way that is done, in steps or in time: whichever ends first."""
        limit = self.arguments.minutes
        return min(1.0, max(self.step / self.steps, self.seconds / (60 * limit) if limit else 0.0))

    @property
    def side(self) -> int:
        """Of the views now: each of the sizes has an equal share of the way."""
        sizes = self.arguments.image_size
        return sizes[min(int(self.progress * len(sizes)), len(sizes) - 1)]

    def settings(self) -> dict:
        """What must be the same in the command that goes on."""
        chosen = {name: value for name, value in vars(self.arguments).items() if name not in FREE}
        return {**chosen, "images": len(self.views.numbers), "classes": list(self.views.images.classes)}

    def save(self, path: Path) -> None:
        """Keep all that a later run needs to go on."""
        parts = ("student", "average", "optimizer")
        state = {name: getattr(self, name).state_dict() for name in parts}
        with replacing(path) as temporary:
            settings = json.dumps(self.settings())
            torch.save({**state, "step": self.step, "seconds": self.seconds, "settings": settings}, temporary)

    def load(self, path: Path) -> None:
        """Go on from a file of :meth:`save`.

        Raises:
            InputError: it is damaged, or of other settings.
        """
        state = read_checkpoint(path)
        try:
            settings = json.loads(state["settings"])
            now = json.loads(json.dumps(self.settings()))
            if other := sorted(name for name in settings.keys() | now.keys() if settings.get(name) != now.get(name)):
                raise InputError(
                    f"{path} is of a training with other settings ({', '.join(other)}); give those of it, or another "
                    "--output_dir."
                )
            for name in ("student", "average", "optimizer"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
        except (KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is no checkpoint of this training; remove it to begin anew.") from error

    def run(self, path: Path, report: Callable[[str], object]) -> None:
        """Train to the end.

        Args:
            path: of the checkpoint.
            report: is given lines.
        """
        begin = saved = time.perf_counter() - self.seconds
        logged, sums, left_out = (self.step, self.seconds), [], 0
        self.student.train()
        while self.progress < 1:
            stage = int(self.progress * VALIDATIONS)
            terms, is_finite = self._learn()
            left_out += not is_finite  # this waits for the GPU, so that the clock below is right
            sums.append(terms)
            self.seconds = time.perf_counter() - begin
            if self.step % LOG_EVERY == 0 or self.progress == 1:
                (step, seconds), logged = logged, (self.step, self.seconds)
                rate = (self.step - step) * self.views.batch_size / (self.seconds - seconds)
                means = ", ".join(f"{value:.3f}" for value in torch.stack(sums).mean(0).tolist())
                report(
                    f"step {self.step}, {100 * self.progress:.1f} %: loss of labels, teacher, maps {means}; "
                    f"{self.side} pixels, {rate:.0f} images/s, {left_out} steps left out"
                )
                sums = []
            if int(self.progress * VALIDATIONS) > stage:
                scores = validate(self.average, self.views.images, self.arguments.image_size[-1], self.dtype)
                report(f"held out: top-1 {', '.join(f'{name} {score:.4f}' for name, score in scores.items())}")
            if self.progress == 1 or time.perf_counter() - saved > self.arguments.save_seconds:
                self.seconds = time.perf_counter() - begin
                self.save(path)
                saved = time.perf_counter()

    def _learn(self) -> tuple[Tensor, bool]:
        """One step; returns the three losses and whether they were finite."""
        torch.manual_seed(self.views.seed + self.step)  # of dropped paths, so that a step is the same after a stop
        batch = self.views.batch(self.step, self.side)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            said = self.teacher(batch.image) if self.teacher else None
            answer = self.student(normalized(batch.image))
        terms = losses(answer, batch, said)
        (terms * terms.new_tensor(WEIGHTS)).sum().backward()
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), GRADIENT_CLIP)
        if is_finite := bool(norm.isfinite()):
            for group in self.optimizer.param_groups:
                group["lr"] = self.arguments.learning_rate * rate_factor(self.progress)
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        decay = min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step))  # at first the weights change fast
        get_ema_multi_avg_fn(decay)(list(self.average.parameters()), list(self.student.parameters()), self.step)
        return terms.detach(), is_finite


def losses(
    answer: tuple[Tensor, Tensor, list[Tensor]], batch: Batch, said: tuple[Tensor, list[Tensor]] | None
) -> Tensor:
    """Cross-entropy to the labels, divergence from the teacher's classes, and distance to its maps: (3,).

    Args:
        answer: of a :class:`~.student.Student`.
        batch: that it was given.
        said: of the teacher on the same views, or None: the last two are 0 then.
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


def rate_factor(progress: float) -> float:
    """Of the learning rate: a short way up, then down along a cosine.

    Args:
        progress: share of the way that is done.
    """
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return min(1.0, progress / WARM_UP + 1e-3) * (LAST_RATE + (1 - LAST_RATE) * cosine)


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


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--packed", type=Path, nargs="+", required=True, help="packs, or folders of them")
    parser.add_argument("--output_dir", type=Path, required=True, help="for the weights, the log and the checkpoint")
    parser.add_argument("--encoder", choices=ENCODERS, default="vmamba_tiny_v0")
    parser.add_argument("--teacher", choices=TEACHERS, default=None, help="to learn from, beside the labels")
    parser.add_argument("--teacher_weights", type=Path, default=None, help="its file; by default its package's")
    parser.add_argument("--teacher_size", type=at_least(32), default=192, help="side of the views that it sees")
    parser.add_argument("--epochs", type=at_least(1), default=100)
    parser.add_argument("--minutes", type=float, default=None, help="end earlier, after so many minutes of training")
    parser.add_argument("--batch_size", type=at_least(2), default=256)
    parser.add_argument(
        "--image_size",
        type=at_least(32),
        nargs="+",
        default=[128],
        help="side of the views; several: one after another",
    )
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="the largest")
    parser.add_argument("--drop_path_rate", type=float, default=0.1, help="of the last block")
    parser.add_argument("--seed", type=int, default=0, help="of weights and views")
    parser.add_argument("--save_seconds", type=float, default=120, help="between two checkpoints")
    parser.add_argument("--num_workers", type=at_least(1), default=8, help="threads that decode the packs")
    parser.add_argument("--device", default=None, help="a GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="a toy network and a few steps: shows that it runs")
    return parser


def run(arguments: argparse.Namespace, report: Callable[[str], object]) -> None:
    """Read, train and write what the parsed arguments say."""
    if wrong := [size for size in arguments.image_size if size % 32]:
        raise InputError(f"--image_size must be multiples of 32, got {wrong[0]}.")
    device = find_device(arguments.device)
    report(f"{vars(arguments)}, {hardware(device)}, {versions()}")
    torch.manual_seed(arguments.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = device.type == "cuda"
    teacher = None
    if arguments.teacher:
        teacher = TEACHERS[arguments.teacher](arguments.teacher_weights, arguments.teacher_size).to(device)
    images = load_images(arguments.packed, round(max(arguments.image_size) * STORED_SIDE), arguments.num_workers)
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
    training = Training(student, views, arguments, teacher)
    checkpoint = arguments.output_dir / "checkpoint.pt"
    if checkpoint.exists():
        training.load(checkpoint)
        report(f"going on after step {training.step}, {100 * training.progress:.1f} %")
    training.run(checkpoint, report)
    weights = training.average.weights()
    save_weights(weights, arguments.output_dir / "classifier")
    save_weights(export_encoder(weights), arguments.output_dir / "encoder")
    scores = validate(training.average, views.images, arguments.image_size[-1], training.dtype)
    result = {"top1": scores, "steps": training.step, "seconds": training.seconds, "settings": training.settings()}
    with replacing(arguments.output_dir / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    report(f"done after {training.step} steps, {training.seconds:.0f} s of training: {scores}")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.quick:
        vars(arguments).update(QUICK)

    def run_with_log() -> None:
        with logging_to(arguments.output_dir / "log.txt", "a") as report:
            run(arguments, report)

    return run_plainly(run_with_log)


if __name__ == "__main__":
    sys.exit(main())
