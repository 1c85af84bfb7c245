# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Run the model zoo's checks on bundles, and each on an image."""

import argparse
import json
import logging
from pathlib import Path

from swinumamba_monai.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="+", help="folders, or archives made by package")
    parser.add_argument("--schema_file", help="the schema that the metadata names; default: the required fields alone")
    parser.add_argument("--override", default="{}", help="JSON of id-value pairs for the configs")


def run(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.atomic import temporary_folder
    from swinumamba_monai.distribution import unpack_archive, verify_bundle

    try:
        override = json.loads(arguments.override)
    except ValueError as error:
        raise InputError(f"--override is not JSON ({error}).") from error
    if not isinstance(override, dict):
        raise InputError('--override is no JSON object of id-value pairs, such as {"roi_size": [64, 64]}.')
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # what the configs that run have to say
    failed = 0
    try:
        for path in map(Path, arguments.bundles):
            if not path.exists():
                print(f"{path.name}: there is no folder or archive {path}")
                failed += 1
                continue
            with temporary_folder("unpacked") as temporary:
                try:
                    bundle = unpack_archive(path, temporary) if path.is_file() else path
                except InputError as error:
                    print(f"{path.name}: archive: {error}")
                    failed += 1
                    continue
                for check, problem in verify_bundle(bundle, arguments.schema_file, override):
                    print(f"{bundle.name}: {check}: {problem or 'ok'}")
                    failed += problem is not None
    finally:
        root.setLevel(level)
    if failed:
        raise InputError(f"{failed} checks failed.")
