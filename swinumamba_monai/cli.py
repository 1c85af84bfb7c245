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
from typing import TYPE_CHECKING

from swinumamba_monai import __version__
from swinumamba_monai.errors import InputError, find_input_error
from swinumamba_monai.tasks import TASKS, find_task

if TYPE_CHECKING:
    import torch


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did what was asked, 1 with one sentence on standard error if it could not."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        arguments.command(arguments)
    except (InputError, OSError) as error:
        if (sentence := find_input_error(error)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
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
    prepare.add_argument("task", choices=list(TASKS))
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
    synthesize.add_argument("task", choices=list(TASKS))
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

    coco = commands.add_parser("coco", help="gather predictions in one COCO file, for CVAT and other tools")
    coco.add_argument("predictions", help="folder that the inference of microscopy or endoscopy wrote")
    coco.add_argument("--images", required=True, help="what was predicted: a file, a folder, or a prepared dataset")
    coco.add_argument("--output_file", required=True, help="the .json file to write")
    coco.add_argument("--metadata", help="configs/metadata.json of the bundle, which names the classes of endoscopy")
    coco.set_defaults(command=_coco)

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

    overlay = commands.add_parser(
        "overlay", help="where a baseline's recipe or an ablation lies, for --config_file", formatter_class=defaults
    )
    overlay.add_argument("name", nargs="?", help="which; default: the list of all")
    overlay.set_defaults(command=_overlay)
    _add_tables(commands, defaults)

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

    serve = commands.add_parser("serve", help="serve a bundle by MONAI Label", formatter_class=defaults)
    serve.add_argument("bundle", help="its folder; training there replaces models/model.pt")
    serve.add_argument("--studies", required=True, help="folder of the images; labels are saved in its labels")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    serve.add_argument("--port", type=int, default=8000)
    serve.set_defaults(command=_serve)
    return parser


def _add_tables(commands: argparse._SubParsersAction, defaults: type) -> None:
    table = commands.add_parser("table", help="the paper's tables, computed here and beside the paper's numbers")
    tables = table.add_subparsers(required=True, metavar="TABLE")
    complexity = tables.add_parser(
        "complexity", help="parameters and FLOPs of every system, Tables I–IV", formatter_class=defaults
    )
    complexity.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    complexity.add_argument("--systems", nargs="+", metavar="NETWORK_NAME", help="default: all")
    complexity.add_argument("--output_dir", default=".", help="where complexity.md, .csv and what is measured go")
    complexity.add_argument(
        "--measure", action="store_true", help="also time and memory, side by side, and Fig. 1 with time for FLOPs"
    )
    complexity.add_argument("--device", help="to measure on, as cuda:0 or cpu; default: a GPU if there is one")
    complexity.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    complexity.add_argument("--batch_size", type=int, default=2, help="of the training step")
    complexity.add_argument("--repeats", type=int, default=5, help="samples of each")
    complexity.set_defaults(command=_table_complexity)

    results = tables.add_parser(
        "results", help="evaluations of runs in the layout of Tables I–III and V", formatter_class=defaults
    )
    results.add_argument(
        "dirs", nargs="+", metavar="DIR", help="what an evaluation wrote; NAME=DIR to call its row NAME, else by itself"
    )
    results.add_argument(
        "--reading", choices=["published", "corrected"], default="published", help="how scores are computed"
    )
    results.add_argument("--output_dir", default=".", help="where results.md and results.csv go")
    results.set_defaults(command=_table_results)

    erf = commands.add_parser("erf", help="effective receptive fields of networks (Fig. 7)", formatter_class=defaults)
    erf.add_argument("--network_name", nargs="+", default=["nnUNet", "SegResNet", "UNETR", "SwinUMambaD"])
    erf.add_argument("--ckpt_path", nargs="+", help="weights, one file a network; default: random ones")
    erf.add_argument("--images", help="an image, a folder of images or a prepared dataset; default: random input")
    erf.add_argument("--num_images", type=int, default=100, help="averaged over, at most; the paper: 1000")
    erf.add_argument("--in_channels", type=int, default=3, help="1 or 3")
    erf.add_argument("--num_classes", type=int, default=3, help="of the network")
    erf.add_argument("--roi_size", type=int, nargs=2, default=[320, 320], metavar=("HEIGHT", "WIDTH"))
    erf.add_argument("--seed", type=int, default=0, help="of random weights and input")
    erf.add_argument("--device", help="as cuda:0 or cpu; default: a GPU if there is one")
    erf.add_argument("--output_dir", default=".", help="where NETWORK_erf.png, erf.csv and erf.png go")
    erf.set_defaults(command=_erf)


def _prepare(arguments: argparse.Namespace) -> None:
    from swinumamba_monai import data

    options = data.PrepareOptions(
        val_fraction=arguments.val_fraction,
        test_fraction=arguments.test_fraction,
        seed=arguments.seed,
        fold=arguments.fold,
        skip_bad=arguments.skip_bad,
        progress=_show_progress,
    )
    task = find_task(arguments.task)
    made = task.prepare(arguments.source_dir, arguments.output_dir, options, arguments.label_map)
    for kind, sentences in {"problem": made.problems, "warning": made.warnings}.items():
        for sentence in sentences:
            print(f"{kind}: {sentence}")
    print(data.describe_fingerprint(made.fingerprint))
    sections = ", ".join(f"{number} {section}" for section, number in made.sizes.items())
    classes = made.fingerprint.get("classes")
    instances = "" if classes else f"; {made.instances} instances"
    print(f"layout: {made.layout}; {sections} images{instances}")
    num_classes = f" --num_classes {len(classes)}" if classes else ""
    print(f"ready: --dataset_dir {made.output_dir}{num_classes}")


def _synthesize(arguments: argparse.Namespace) -> None:
    names = ("num_train", "num_validation", "num_test", "image_size", "num_slices")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    folder = find_task(arguments.task).synthesize(arguments.output_dir, seed=arguments.seed, **given)
    print(f"ready: --dataset_dir {folder}")


def _coco(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.inference import write_coco

    paths = (arguments.predictions, arguments.images, arguments.output_file, arguments.metadata)
    num_images, num_annotations = write_coco(*paths)
    print(f"{arguments.output_file}: {num_images} images, {num_annotations} annotations")


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


def _overlay(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.overlays import OVERLAYS, overlay_path

    if arguments.name is not None:
        print(overlay_path(arguments.name))
        return
    for name, path in OVERLAYS.items():
        print(f"{path.parent.name}: {name}")


def _table_complexity(arguments: argparse.Namespace) -> None:
    from swinumamba_monai import analysis

    systems = _check_systems(arguments.systems)
    rows = analysis.complexity_rows(arguments.tasks, systems)
    columns, notes = analysis.COMPLEXITY_COLUMNS, analysis.COMPLEXITY_NOTES
    print(analysis.write_table(arguments.output_dir, "complexity", columns, rows, notes))
    if not arguments.measure:
        return
    device = _device(arguments.device)
    settings = {"batch_size": arguments.batch_size, "precision": arguments.precision, "repeats": arguments.repeats}
    notes, speed = analysis.speed_notes(device, **settings), []
    for task in arguments.tasks:  # what is measured is kept, should the next one be stopped
        speed += analysis.speed_rows([task], systems, device, **settings)
        text = analysis.write_table(arguments.output_dir, "speed", analysis.SPEED_COLUMNS, speed, notes)
    print(text)
    path = Path(arguments.output_dir) / "speed.png"
    analysis.draw_speed(path, speed, rows, notes[0])
    print(f"figure: {path}")


def _table_results(arguments: argparse.Namespace) -> None:
    from swinumamba_monai import analysis

    evaluations = [analysis.read_evaluation(argument) for argument in arguments.dirs]
    tables = analysis.result_tables(evaluations, arguments.reading)
    print(analysis.write_results(arguments.output_dir, tables, arguments.reading))


def _erf(arguments: argparse.Namespace) -> None:
    from monai.utils import set_determinism

    from swinumamba_monai import analysis
    from swinumamba_monai.networks import build_network
    from swinumamba_monai.pretrained import load_pretrained

    names = _check_systems(arguments.network_name)
    files = arguments.ckpt_path or [None] * len(names)
    if len(files) != len(names):
        raise InputError(f"{len(names)} networks need as many files in ckpt_path, not {len(files)}.")
    device, size = _device(arguments.device), tuple(arguments.roi_size)
    inputs = analysis.load_inputs(
        arguments.images, arguments.num_images, arguments.in_channels, size, seed=arguments.seed
    )
    fields = {}
    for name, file in zip(names, files):
        set_determinism(arguments.seed)
        try:
            network = build_network(
                name, in_channels=arguments.in_channels, out_channels=arguments.num_classes, roi_size=size
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        if file is not None:
            load_pretrained(network, file, strict=True)
        label = name if name not in fields else f"{name}_{len(fields)}"
        fields[label] = analysis.effective_receptive_field(network.to(device), inputs)
        print(f"{label}: computed over {len(inputs)} inputs", file=sys.stderr)
    weights = "random weights" if arguments.ckpt_path is None else "weights of ckpt_path"
    source = f"images of {Path(arguments.images).name}" if arguments.images else "random inputs"
    for path in analysis.write_erf(arguments.output_dir, fields, f"{len(inputs)} {source}, {weights}"):
        print(f"written: {path}")


def _check_systems(names: Sequence[str] | None) -> list[str]:
    """Names of networks; all for None. An InputError lists them where one is wrong."""
    from swinumamba_monai.networks import SYSTEMS

    wrong = [name for name in names or () if name not in SYSTEMS]
    if wrong:
        raise InputError(f"there is no network '{wrong[0]}'; choose from {', '.join(SYSTEMS)}.")
    return list(names or SYSTEMS)


def _device(name: str | None) -> torch.device:
    """A device by its name; a GPU if there is one, else the CPU, for None."""
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from error
    return device


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
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # what the configs that run have to say
    failed = 0
    try:
        for path in map(Path, arguments.bundles):
            with TemporaryDirectory() as temporary:
                bundle = unpack(path, temporary) if path.is_file() else path
                for check, problem in verify_bundle(bundle, arguments.schema_file, override):
                    print(f"{bundle.name}: {check}: {problem or 'ok'}")
                    failed += problem is not None
    finally:
        root.setLevel(level)
    if failed:
        raise InputError(f"{failed} checks failed.")


def _halve(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.pretrained import save_half_precision

    size = save_half_precision(arguments.checkpoint, arguments.safetensors)
    print(f"{arguments.safetensors}: {size / 1e6:.1f} MB")


def _doctor(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.doctor import examine

    print("\n".join(examine()))


def _serve(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.serving import serve

    serve(arguments.bundle, arguments.studies, arguments.host, arguments.port)


def _show_progress(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"checked {done} of {total} pairs", file=sys.stderr)
