# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What is compared: the tasks with their budgets, and the arms, networks with what they begin from."""

from __future__ import annotations

from typing import NamedTuple

BATCH_SIZE = 12
ADAPTATION_STEPS = 400  # steps of masked image modelling


class ClaimTask(NamedTuple):
    """A task as it is learnt here.

    Args:
        classes: names of the classes but the background.
        crop: height and width in pixels.
        steps: number of steps of a training, each of 12 crops.
        parts: those that are left out and tested.
    """

    classes: tuple[str, ...]
    crop: tuple[int, int]
    steps: int
    parts: tuple[int, ...]


CLAIM_TASKS = {
    "microscopy": ClaimTask(("interior", "boundary"), (256, 256), 1200, (0,)),
    "endoscopy": ClaimTask(("shaft", "manipulator"), (192, 256), 800, (0, 1, 2, 3)),
    "abdomen_mri": ClaimTask(("liver", "right kidney", "left kidney", "spleen"), (256, 256), 800, (0, 1, 2, 3, 4)),
}


class Arm(NamedTuple):
    """One of what is compared.

    Args:
        network: name for ``build_network``.
        encoder: name of VMamba's encoder; None for a network without.
        weights: name of the file that it begins from, in the folder of weights; None: random weights.
        is_adapted: whether its encoder then learns from the task's training images by masked image modelling.
        rates: learning rates, of which the validation chooses.
    """

    network: str
    encoder: str | None = None
    weights: str | None = None
    is_adapted: bool = False
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)


LATER, PAPERS = "vmamba_tiny_s1l8", "vmamba_tiny_v0"
LOWER = (1e-4, 3e-4, 1e-3)
ARMS = {
    "nnU-Net": Arm("nnUNet", rates=(3e-3, 1e-2, 3e-2)),
    "† s1l8": Arm("SwinUMambaD", LATER),
    "† s1l8, stage 1": Arm("SwinUMambaD", LATER, f"{LATER}.safetensors", rates=LOWER),
    "†": Arm("SwinUMambaD", PAPERS),
    "†, stage 1": Arm("SwinUMambaD", PAPERS, f"{PAPERS}.safetensors", rates=LOWER),
    "† s1l8, MIM": Arm("SwinUMambaD", LATER, is_adapted=True),
    "† s1l8, stage 1 + MIM": Arm("SwinUMambaD", LATER, f"{LATER}.safetensors", True, LOWER),
    "† s1l8, formula": Arm("SwinUMambaD", LATER, f"{LATER}_formula.safetensors", rates=LOWER),
    "Swin-UMamba": Arm("SwinUMamba", PAPERS, rates=LOWER),
    "Swin-UMamba, stage 1": Arm("SwinUMamba", PAPERS, f"{PAPERS}_classifier.safetensors", rates=LOWER),
}


class Job(NamedTuple):
    """One training with its test.

    Args:
        task: key of :data:`CLAIM_TASKS`.
        arm: key of :data:`ARMS`.
        part: number of the part that is left out and tested.
        seed: seed of the weights, the crops, and the choice of cases.
        share: share of the cases that it learns from, 0 to 1.
        rate: learning rate to be tried, in half of the steps on the validation; None: a test at the best of these.
        steps: factor of the task's number of steps.
    """

    task: str
    arm: str
    part: int = 0
    seed: int = 0
    share: float = 1.0
    rate: float | None = None
    steps: float = 1.0

    @property
    def name(self) -> str:
        """That of its file."""
        number = list(ARMS).index(self.arm)
        kind = f"part{self.part}-seed{self.seed}-share{self.share}" if self.rate is None else f"rate{self.rate}"
        return f"{self.task}-{number}-{kind}-steps{self.steps}"


def rate_jobs(task: str, arm: str) -> list[Job]:
    """Those that choose an arm's learning rate."""
    return [Job(task, arm, rate=rate, steps=0.5) for rate in ARMS[arm].rates]


def test_jobs(arm: str, seed: int, share: float = 1.0, steps: float = 1.0) -> list[Job]:
    """Those of one seed: every part of every task."""
    return [Job(name, arm, part, seed, share, steps=steps) for name, task in CLAIM_TASKS.items() for part in task.parts]


def plan() -> list[Job]:
    """All jobs, the most telling first."""
    names = list(ARMS)
    first, papers, others, decoder = names[:3], names[3:5], names[5:8], names[8:]
    jobs = _with_choice(first)
    jobs += [job for arm in first for job in test_jobs(arm, 0, share=0.1)]
    jobs += [job for seed in (1, 2) for arm in first for job in test_jobs(arm, seed)]
    jobs += _with_choice(papers) + _with_choice(others) + _with_choice(decoder)
    jobs += [job for arm in first for job in test_jobs(arm, 0, share=0.3)]
    jobs += test_jobs("nnU-Net", seed=0, steps=2.0)  # does it still rise?
    jobs += [job for arm in ("nnU-Net", "† s1l8, stage 1") for job in test_jobs(arm, seed=0, steps=4.0)]
    for arms in (papers, decoder, others):
        jobs += [job for seed in (1, 2) for arm in arms for job in test_jobs(arm, seed)]
    return jobs


def _with_choice(arms: list[str]) -> list[Job]:
    """The choice of the learning rates of some arms, and their first tests."""
    jobs = [job for task in CLAIM_TASKS for arm in arms for job in rate_jobs(task, arm)]
    return jobs + [job for arm in arms for job in test_jobs(arm, seed=0)]
