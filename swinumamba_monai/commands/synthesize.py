# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Make a synthetic dataset."""

import argparse
import shlex

from swinumamba_monai.tasks import TASKS, find_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", choices=tuple(TASKS))
    parser.add_argument("--output_dir", required=True, help="folder to write, the --dataset_dir of the bundle")
    parser.add_argument("--num_train", type=int, help="training images; default: the task's")
    parser.add_argument("--num_validation", type=int, help="validation images; default: the task's")
    parser.add_argument("--num_test", type=int, help="test images; default: the task's")
    parser.add_argument("--image_size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: the task's")
    parser.add_argument("--num_slices", type=int, help="slices of a volume; default: the task's")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn")


def run(arguments: argparse.Namespace) -> None:
    names = ("num_train", "num_validation", "num_test", "image_size", "num_slices")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    folder = find_task(arguments.task).synthesize(arguments.output_dir, seed=arguments.seed, **given)
    print(f"ready: --dataset_dir {shlex.quote(str(folder))}")
