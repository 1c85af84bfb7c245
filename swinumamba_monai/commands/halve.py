# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Write weights as safetensors of half precision."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="weights to read, such as models/model.pt")
    parser.add_argument("safetensors", help="file to write, such as bundles/microscopy/models/model.safetensors")


def run(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.weight_files import save_half_precision

    size = save_half_precision(arguments.checkpoint, arguments.safetensors)
    print(f"{arguments.safetensors}: {size / 1e6:.1f} MB")
