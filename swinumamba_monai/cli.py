# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m swinumamba_monai``: what comes before and beside ``python -m monai.bundle``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from swinumamba_monai import __version__
from swinumamba_monai.errors import InputError

TASKS = ("abdomen_mri", "endoscopy", "microscopy")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did what was asked, 1 with one sentence on standard error if it could not."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        arguments.command(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m swinumamba_monai", description=__doc__)
    parser.add_argument("--version", action="version", version=f"swinumamba_monai {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    defaults = argparse.ArgumentDefaultsHelpFormatter

    prepare = commands.add_parser(
        "prepare", help="check a dataset and make it a --dataset_dir", formatter_class=defaults
    )
    prepare.add_argument("task", choices=TASKS)
    prepare.add_argument("--source_dir", required=True, help="the images with their labels, left as they are")
    prepare.add_argument("--output_dir", required=True, help="what --dataset_dir of the bundle will be")
    prepare.add_argument("--val_fraction", type=float, default=0.1, help="of the training images, where no split says")
    prepare.add_argument("--test_fraction", type=float, default=0.2, help="of all images, where no split says")
    prepare.add_argument("--seed", type=int, default=0, help="of these random choices")
    prepare.add_argument("--fold", type=int, help="which of the folds in split.json, from 0; default: no fold")
    prepare.add_argument(
        "--label_map", help="JSON file of class names and their numbers in the labels; default: the paper's classes"
    )
    prepare.add_argument("--skip_bad", action="store_true", help="leave out what cannot be used instead of stopping")
    prepare.set_defaults(command=_prepare)

    synthesize = commands.add_parser("synthesize", help="make a synthetic dataset", formatter_class=defaults)
    synthesize.add_argument("task", choices=TASKS)
    synthesize.add_argument("--output_dir", required=True, help="what --dataset_dir of the bundle will be")
    synthesize.add_argument("--num_train", type=int, help="training images; default: the task's")
    synthesize.add_argument("--num_validation", type=int, help="validation images; default: the task's")
    synthesize.add_argument("--num_test", type=int, help="test images; default: the task's")
    synthesize.add_argument(
        "--image_size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of images or slices; default: the task's"
    )
    synthesize.add_argument("--num_slices", type=int, help="of a volume; default: the task's")
    synthesize.add_argument("--seed", type=int, default=0)
    synthesize.set_defaults(command=_synthesize)

    compare = commands.add_parser(
        "compare", help="test two evaluations of the same cases against each other", formatter_class=defaults
    )
    compare.add_argument("a", metavar="A.csv", help="metrics.csv of one evaluation")
    compare.add_argument("b", metavar="B.csv", help="metrics.csv of the other")
    compare.add_argument("--columns", nargs="+", help="what to compare, where it is not every column they share")
    compare.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    compare.set_defaults(command=_compare)

    export = commands.add_parser(
        "export", help="write a bundle's network for ONNX Runtime or torch.export", formatter_class=defaults
    )
    export.add_argument("format", choices=["onnx", "program"], help="program: a .pt2 file of torch.export")
    export.add_argument("--config_file", required=True, help="configs/inference.json of the bundle")
    export.add_argument("--ckpt_file", required=True, help="weights, as training wrote them or as .safetensors")
    export.add_argument("--filepath", required=True, help="the file to write")
    export.add_argument("--in_channels", type=int, help="of the image, where it is not the config's")
    export.add_argument("--num_classes", type=int, help="background included, where it is not the config's")
    export.set_defaults(command=_export)
    return parser


def _prepare(arguments: argparse.Namespace) -> None:
    from swinumamba_monai import data

    options = data.Options(
        val_fraction=arguments.val_fraction,
        test_fraction=arguments.test_fraction,
        seed=arguments.seed,
        fold=arguments.fold,
        skip_bad=arguments.skip_bad,
        progress=_show_progress,
    )
    folders = (arguments.source_dir, arguments.output_dir, options)
    if arguments.task == "microscopy":
        if arguments.label_map is not None:
            raise InputError("Cells have no classes, so microscopy takes no label_map; leave it out.")
        report = data.prepare_microscopy(*folders)
    else:
        prepare = data.prepare_abdomen_mri if arguments.task == "abdomen_mri" else data.prepare_endoscopy
        label_map = None if arguments.label_map is None else data.read_label_map(arguments.label_map)
        report = prepare(*folders, label_map)
    for kind in ("problems", "warnings"):
        for sentence in report[kind]:
            print(f"{kind[:-1]}: {sentence}")
    print(data.describe_fingerprint(report["fingerprint"]))
    sections = ", ".join(f"{report[section]} {section}" for section in ("training", "validation", "test"))
    instances = f"; {report['instances']} instances" if arguments.task == "microscopy" else ""
    print(f"layout: {report['layout']}; {sections} images{instances}")
    classes = report["fingerprint"].get("classes")
    num_classes = f" --num_classes {len(classes)}" if classes else ""
    print(f"ready: --dataset_dir {report['output_dir']}{num_classes}")


def _synthesize(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.data import SYNTHESIZERS

    if arguments.num_slices is not None and arguments.task != "abdomen_mri":
        raise InputError(f"Images of {arguments.task} have no slices; leave num_slices out.")
    names = ("num_train", "num_validation", "num_test", "image_size", "num_slices")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    folder = SYNTHESIZERS[arguments.task](arguments.output_dir, seed=arguments.seed, **given)
    print(f"ready: --dataset_dir {folder}")


def _export(arguments: argparse.Namespace) -> None:
    from swinumamba_monai import export

    given = {name: getattr(arguments, name) for name in ("in_channels", "num_classes")}
    overrides = {name: value for name, value in given.items() if value is not None}
    network = export.read_network(arguments.config_file, arguments.ckpt_file, **overrides)
    write = {"onnx": export.export_onnx, "program": export.export_program}[arguments.format]
    print(f"ready: {write(network, arguments.filepath)}")


def _compare(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.metrics import compare, comparison_text

    print(comparison_text(compare(arguments.a, arguments.b, columns=arguments.columns, seed=arguments.seed)))


def _show_progress(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"checked {done} of {total} pairs", file=sys.stderr)
