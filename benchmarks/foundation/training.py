# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What the trainings of a foundation have in common: options, schedule, steps, the moving average of the weights, and a
checkpoint from which the same command goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmarks.nuclei.train import at_least, parameter_groups
from benchmarks.record import hardware, versions
from swinumamba_monai.atomic import replacing
from swinumamba_monai.devices import find_device
from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import ENCODERS
from swinumamba_monai.training import autocast_dtype, default_amp
from swinumamba_monai.weight_files import read_checkpoint

__all__ = ["Training", "add_options", "prepare", "rate_factor", "write_result"]

WARM_UP, LAST_RATE = 0.05, 0.01  # share of the way on which the learning rate grows, and what is left of it at the end
BETAS, EPSILON = (0.9, 0.99), 1e-6  # AdamW's numbers
GRADIENT_CLIP = 5.0
AVERAGE_DECAY = 0.998  # decay of the weights' moving average
LOG_EVERY = 50  # steps
VALIDATIONS = 10  # number of validations on the way


class Training(ABC):
    """A training and its state, which :meth:`save` keeps and :meth:`load` brings back.

    Args:
        student: the network that learns, on the device.
        arguments: parsed, with the options of :func:`add_options`.
        steps: number of steps of the whole way.
    """

    terms: Sequence[str]  # names of the losses
    weights: Sequence[float]  # of each in their sum
    free = ("output_dir", "device", "save_seconds")  # options to change on the way

    def __init__(self, student: nn.Module, arguments: argparse.Namespace, steps: int) -> None:
        self.student, self.arguments, self.steps = student, arguments, steps
        self.device = next(student.parameters()).device
        self.dtype = autocast_dtype(default_amp(self.device), self.device)
        self.average = copy.deepcopy(student).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(student), arguments.learning_rate, BETAS, EPSILON, fused=self.device.type == "cuda"
        )
        self.step, self.seconds = 0, 0.0  # done so far

    @abstractmethod
    def losses(self) -> Tensor:
        """The losses of the step :attr:`step`, one for each of :attr:`terms`, with gradients."""

    @abstractmethod
    def validate(self) -> Mapping[str, float]:
        """Scores of the average, by name."""

    def facts(self) -> dict:
        """What must be the same in the command that goes on, beside the options."""
        return {}

    @property
    def progress(self) -> float:
        """The share of the way that is done, in steps or in time: whichever ends first."""
        limit = self.arguments.minutes
        return min(1.0, max(self.step / self.steps, self.seconds / (60 * limit) if limit else 0.0))

    @property
    def side(self) -> int:
        """Of the images now: each of the sizes has an equal share of the way."""
        sizes = self.arguments.image_size
        return sizes[min(int(self.progress * len(sizes)), len(sizes) - 1)]

    def settings(self) -> dict:
        """What must be the same in the command that goes on."""
        return {
            **{name: value for name, value in vars(self.arguments).items() if name not in self.free},
            **self.facts(),
        }

    def autocast(self) -> torch.autocast:
        """Half precision where the device has it."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

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
        """Train to the end, from where a run before was stopped.

        Args:
            path: path of the checkpoint.
            report: is given lines.

        Raises:
            InputError: there is a checkpoint that is damaged, or of other settings.
        """
        if path.exists():
            self.load(path)
            report(f"going on after step {self.step}, {100 * self.progress:.1f} %")
        begin = saved = time.perf_counter() - self.seconds
        logged, sums, left_out = (self.step, self.seconds), [], 0
        self.student.train()
        while self.progress < 1:
            stage = int(self.progress * VALIDATIONS)
            losses, is_finite = self._learn()
            left_out += not is_finite  # this waits for the GPU, so that the clock below is right
            sums.append(losses)
            self.seconds = time.perf_counter() - begin
            if self.step % LOG_EVERY == 0 or self.progress == 1:
                (step, seconds), logged = logged, (self.step, self.seconds)
                rate = (self.step - step) * self.arguments.batch_size / (self.seconds - seconds)
                means = ", ".join(f"{value:.3f}" for value in torch.stack(sums).mean(0).tolist())
                report(
                    f"step {self.step}, {100 * self.progress:.1f} %: loss of {', '.join(self.terms)} {means}; "
                    f"{self.side} pixels, {rate:.0f} images/s, {left_out} steps left out"
                )
                sums = []
            if int(self.progress * VALIDATIONS) > stage:
                scores = self.validate()
                report(f"held out: {', '.join(f'{name} {score:.4f}' for name, score in scores.items())}")
            if self.progress == 1 or time.perf_counter() - saved > self.arguments.save_seconds:
                self.seconds = time.perf_counter() - begin
                self.save(path)
                saved = time.perf_counter()

    def _learn(self) -> tuple[Tensor, bool]:
        """One step; returns the losses and whether they were finite."""
        torch.manual_seed(self.arguments.seed + self.step)  # of dropped paths, so that a step is the same after a stop
        losses = self.losses()
        (losses * losses.new_tensor(self.weights)).sum().backward()
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), GRADIENT_CLIP)
        if is_finite := bool(norm.isfinite()):
            for group in self.optimizer.param_groups:
                group["lr"] = self.arguments.learning_rate * rate_factor(self.progress)
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        decay = min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step))  # at first the weights change fast
        get_ema_multi_avg_fn(decay)(list(self.average.parameters()), list(self.student.parameters()), self.step)
        return losses.detach(), is_finite


def rate_factor(progress: float) -> float:
    """Of the learning rate: a short way up, then down along a cosine.

    Args:
        progress: share of the way that is done.
    """
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return min(1.0, progress / WARM_UP + 1e-3) * (LAST_RATE + (1 - LAST_RATE) * cosine)


def add_options(parser: argparse.ArgumentParser, **defaults: object) -> None:
    """Options of every training.

    Args:
        parser: gets them.
        defaults: values of the options that differ: ``batch_size``, ``image_size``, ``drop_path_rate``.
    """
    parser.add_argument("--output_dir", type=Path, required=True, help="for the weights, the log and the checkpoint")
    parser.add_argument("--encoder", choices=ENCODERS, default="vmamba_tiny_v0")
    parser.add_argument("--minutes", type=float, default=None, help="end earlier, after so many minutes of training")
    parser.add_argument("--batch_size", type=at_least(2))
    parser.add_argument(
        "--image_size", type=at_least(32), nargs="+", help="side of the images; several: one after another"
    )
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="the largest")
    parser.add_argument("--drop_path_rate", type=float, help="of the encoder's last block")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--save_seconds", type=float, default=120, help="between two checkpoints")
    parser.add_argument("--device", default=None, help="a GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="a toy network and a few steps: shows that it runs")
    parser.set_defaults(**defaults)


def prepare(arguments: argparse.Namespace, report: Callable[[str], object]) -> torch.device:
    """Check the sizes, say what is run and where, seed and choose the device."""
    if wrong := [size for size in arguments.image_size if size % 32]:
        raise InputError(f"--image_size must be multiples of 32, got {wrong[0]}.")
    device = find_device(arguments.device)
    report(f"{vars(arguments)}, {hardware(device)}, {versions()}")
    torch.manual_seed(arguments.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = device.type == "cuda"
    return device


def write_result(training: Training, **scores: object) -> None:
    """Write ``result.json`` into the output folder: the scores, steps, seconds and settings."""
    result = {**scores, "steps": training.step, "seconds": training.seconds, "settings": training.settings()}
    with replacing(training.arguments.output_dir / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
