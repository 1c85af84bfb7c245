# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Where a baseline's recipe or an ablation lies, for --config_file."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="name of an overlay; default: the list of all")


def run(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.overlays import OVERLAYS, overlay_path

    if arguments.name is not None:
        print(overlay_path(arguments.name))
        return
    for name, path in OVERLAYS.items():
        print(f"{path.parent.name}: {name}")
