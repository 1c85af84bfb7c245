# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's tables, computed here and beside the paper's numbers."""

import argparse
from pathlib import Path

from swinumamba_monai.errors import InputError, check_known
from swinumamba_monai.tasks import TASKS, find_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tables = parser.add_subparsers(required=True, metavar="TABLE")
    defaults = parser.formatter_class
    complexity = tables.add_parser("complexity", help="parameters and FLOPs, Tables I–IV", formatter_class=defaults)
    complexity.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS), help="rows")
    complexity.add_argument("--systems", nargs="+", metavar="NETWORK_NAME", help="default: all")
    complexity.add_argument(
        "--encoders", nargs="*", metavar="ENCODER", help="VMamba's besides the paper's; default: all; none by no name"
    )
    complexity.add_argument("--output_dir", default=".", help="folder of complexity.md, .csv and what is measured")
    complexity.add_argument(
        "--measure", action="store_true", help="time and memory too, and Fig. 1 with time for FLOPs"
    )
    complexity.add_argument("--device", help="where to measure: cuda:0, cpu, ...; default: a GPU if there is one")
    complexity.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="when measured")
    complexity.add_argument("--batch_size", type=int, default=2, help="images of a training step")
    complexity.add_argument("--repeats", type=int, default=5, help="samples of each measurement")
    complexity.set_defaults(table=_complexity)

    results = tables.add_parser("results", help="evaluations as Tables I–III and V", formatter_class=defaults)
    results.add_argument("dirs", nargs="+", metavar="DIR", help="folder of an evaluation; NAME=DIR calls its row NAME")
    results.add_argument("--reading", choices=["published", "corrected"], default="published", help="reading of scores")
    results.add_argument("--output_dir", default=".", help="folder of results.md and results.csv")
    results.set_defaults(table=_results)


def run(arguments: argparse.Namespace) -> None:
    arguments.table(arguments)


def _complexity(arguments: argparse.Namespace) -> None:
    from swinumamba_monai import analysis
    from swinumamba_monai.atomic import check_output_folder
    from swinumamba_monai.devices import find_device
    from swinumamba_monai.networks import ENCODERS, SYSTEMS
    from swinumamba_monai.reports import write_table

    systems = arguments.systems or list(SYSTEMS)
    encoders = list(ENCODERS)[1:] if arguments.encoders is None else arguments.encoders
    check_known("network", systems, SYSTEMS)
    check_known("encoder", encoders, ENCODERS)
    for name in ("batch_size", "repeats"):
        if (value := getattr(arguments, name)) < 1:
            raise InputError(f"--{name} must be a positive integer, got {value}.")
    check_output_folder(arguments.output_dir)
    rows = analysis.complexity_rows(arguments.tasks, systems, encoders)
    columns, notes = analysis.COMPLEXITY_COLUMNS, analysis.COMPLEXITY_NOTES
    print(write_table(arguments.output_dir, "complexity", columns, rows, notes))
    if not arguments.measure:
        return
    device = find_device(arguments.device)
    settings = {"batch_size": arguments.batch_size, "precision": arguments.precision, "repeats": arguments.repeats}
    notes, speed = analysis.speed_notes(device, **settings), []
    for task in arguments.tasks:  # what is measured is kept, should the next one be stopped
        speed += analysis.speed_rows([find_task(task)], systems, device, **settings)
        text = write_table(arguments.output_dir, "speed", analysis.SPEED_COLUMNS, speed, notes)
    print(text)
    path = Path(arguments.output_dir) / "speed.png"
    analysis.draw_speed(path, speed, rows, notes[0])
    print(f"figure: {path}")


def _results(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.reports import read_evaluation, result_tables, write_results

    evaluations = [read_evaluation(argument) for argument in arguments.dirs]
    tables = result_tables(evaluations, arguments.reading)
    print(write_results(arguments.output_dir, tables, arguments.reading))
