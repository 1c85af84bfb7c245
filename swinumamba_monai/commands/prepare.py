# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Check a dataset and make it a --dataset_dir."""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator

from swinumamba_monai.errors import listed
from swinumamba_monai.tasks import TASKS, find_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", choices=tuple(TASKS))
    parser.add_argument("--source_dir", required=True, help="the images with their labels, left as they are")
    parser.add_argument("--output_dir", required=True, help="folder to write, the --dataset_dir of the bundle")
    parser.add_argument("--val_fraction", type=float, default=0.1, help="share of the training images, without a split")
    parser.add_argument("--test_fraction", type=float, default=0.2, help="share of all images, without a split")
    parser.add_argument("--seed", type=int, default=0, help="seed of these random choices")
    parser.add_argument("--fold", type=int, help="number of a fold in split.json, from 0; default: no fold")
    parser.add_argument("--label_map", help="JSON file of classes and their numbers; default: the paper's classes")
    parser.add_argument(
        "--mask_threshold", type=float, help="least value of a black and white mask, such as 128; default: none"
    )
    parser.add_argument("--series", help="DICOM series of several in a folder: number, UID or a part of the name")
    parser.add_argument("--nan", type=float, help="number in the place of NaN in volumes, such as 0; default: refused")
    parser.add_argument("--in_channels", type=int, help="channels that volumes hold as a fourth dimension; default: 1")
    parser.add_argument(
        "--label_grid",
        choices=("file", "image"),
        default="file",
        help="image: voxels of label volumes are those of their images, whatever their headers say",
    )
    parser.add_argument("--skip_bad", action="store_true", help="leave out what cannot be used instead of stopping")


def run(arguments: argparse.Namespace) -> None:
    from swinumamba_monai import data
    from swinumamba_monai.data.files.label_map import simple_name

    names = "val_fraction test_fraction seed fold skip_bad mask_threshold series nan in_channels label_grid".split()
    options = data.PrepareOptions(**{name: getattr(arguments, name) for name in names}, progress=_show_progress)
    task = find_task(arguments.task)
    made = task.prepare(arguments.source_dir, arguments.output_dir, options, arguments.label_map)
    for sentence in _in_short(made.warnings):
        print(f"warning: {sentence}")
    print(data.describe_fingerprint(made.fingerprint))
    sections = ", ".join(f"{number} {section}" for section, number in made.sizes.items())
    classes = made.fingerprint.get("classes")
    instances = "" if classes else f"; {made.instances} instances"
    print(f"layout: {made.layout}; {sections} images{instances}")
    of_bundle = task.files.class_names
    if classes and len(classes) == len(of_bundle) and [*map(simple_name, classes)] != [*map(simple_name, of_bundle)]:
        print(
            "warning: these are other classes than the bundle's, and as many: where weights lie without the run.json "
            "of their training, predict calls them by the bundle's names"
        )
    num_classes = f" --num_classes {len(classes)}" if classes else ""
    channels = len(made.fingerprint["intensities"])
    in_channels = f" --in_channels {channels}" if "axes" in made.fingerprint and channels > 1 else ""
    nan = f" --nan {arguments.nan:g}" if arguments.nan is not None else ""
    print(f"ready: --dataset_dir {shlex.quote(str(made.output_dir))}{num_classes}{in_channels}{nan}")
    made.inputs.finish()


def _in_short(sentences: Iterable[str]) -> Iterator[str]:
    """The sentences; of those of the form "FILE has WHAT" that differ in the file and in numbers alone the first."""
    alike: dict[str, list[str]] = {}
    for sentence in sentences:
        file, _, what = sentence.partition(" has ")
        alike.setdefault(re.sub(r"\d+", "", what) if os.sep in file else sentence, []).append(sentence)
    for first, *others in alike.values():
        files = listed(other.partition(" has ")[0] for other in others)
        yield f"{first} So it is with {len(others)} other{'s' * (len(others) > 1)}: {files}." if others else first


def _show_progress(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"checked {done} of {total} pairs", file=sys.stderr)
