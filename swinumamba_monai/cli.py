# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m swinumamba_monai``: what comes before and beside ``python -m monai.bundle``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

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

    package = commands.add_parser(
        "package", help="make the archive of a bundle, and what else its release needs", formatter_class=defaults
    )
    package.add_argument("bundle_dir", help="such as bundles/microscopy")
    package.add_argument("--output_dir", required=True, help="it may hold other bundles and versions already")
    package.add_argument("--release_url", help="where the archives will lie; default: files are named without it")
    package.set_defaults(command=_package)

    verify = commands.add_parser(
        "verify", help="run the model zoo's checks on bundles, and each on an image", formatter_class=defaults
    )
    verify.add_argument("bundles", nargs="+", help="folders, or archives made by package")
    verify.add_argument("--schema_file", help="what the metadata's schema names; default: the required fields alone")
    verify.add_argument("--override", default="{}", help="JSON of id-value pairs for the configs")
    verify.set_defaults(command=_verify)

    halve = commands.add_parser("halve", help="write weights as safetensors of half precision")
    halve.add_argument("checkpoint", help="such as models/model.pt")
    halve.add_argument("safetensors", help="such as bundles/microscopy/models/model.safetensors")
    halve.set_defaults(command=_halve)

    doctor = commands.add_parser("doctor", help="say what is installed, what will be used, and what could be faster")
    doctor.set_defaults(command=_doctor)
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


def _compare(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.metrics import compare, comparison_text

    print(comparison_text(compare(arguments.a, arguments.b, columns=arguments.columns, seed=arguments.seed)))


def _package(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.distribution import package_bundle

    package = package_bundle(arguments.bundle_dir, arguments.output_dir, arguments.release_url)
    print(f"archive: {package.archive} (sha256 {package.sha256})")
    if package.weights is None:
        print("weights: none in its models folder, so whoever fetches it has to train it")
    else:
        print(f"weights: {package.weights}")
        if arguments.release_url is None:
            print("no --release_url: large_files.yml and model_info.json name the files without an address")
    print(f"for push_to_hf_hub: --bundle_dir {package.huggingface_dir}")


def _verify(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.distribution import unpack, verify_bundle

    try:
        override = json.loads(arguments.override)
    except ValueError as error:
        raise InputError(f"--override is not JSON ({error}).") from error
    logging.getLogger().setLevel(logging.ERROR)
    failed = 0
    for path in map(Path, arguments.bundles):
        with TemporaryDirectory() as temporary:
            bundle = unpack(path, temporary) if path.is_file() else path
            for check, problem in verify_bundle(bundle, arguments.schema_file, override):
                print(f"{bundle.name}: {check}: {problem or 'ok'}")
                failed += problem is not None
    if failed:
        raise InputError(f"{failed} checks failed.")


def _halve(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.pretrained import save_half_precision

    size = save_half_precision(arguments.checkpoint, arguments.safetensors)
    print(f"{arguments.safetensors}: {size / 1e6:.1f} MB")


def _doctor(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.doctor import examine

    print("\n".join(examine()))


def _show_progress(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"checked {done} of {total} pairs", file=sys.stderr)
