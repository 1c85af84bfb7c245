# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Write a bundle's network for ONNX Runtime or torch.export."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=["onnx", "program"], help="program: a .pt2 file of torch.export")
    parser.add_argument("--config_file", required=True, help="configs/inference.json of the bundle")
    parser.add_argument("--ckpt_file", required=True, help="weights, as training wrote them or as .safetensors")
    parser.add_argument("--filepath", required=True, help="the file to write")
    parser.add_argument("--network_name", help="system that was trained, such as nnUNet; default: the config's")
    parser.add_argument("--in_channels", type=int, help="channels of the image; default: the config's")
    parser.add_argument("--num_classes", type=int, help="classes, background included; default: the config's")
    parser.add_argument("--encoder", help="encoder of VMamba; default: the config's")
    parser.add_argument(
        "--roi_size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="crops of the training; default: the config's",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="other entries of the config, such as those that the training was given",
    )


def run(arguments: argparse.Namespace) -> None:
    from swinumamba_monai import export
    from swinumamba_monai.bundle_options import read_entries
    from swinumamba_monai.distribution.network_of_config import read_bundle_network

    names = ("network_name", "in_channels", "num_classes", "encoder", "roi_size")
    entries = read_entries(arguments.set, {name: getattr(arguments, name) for name in names})
    network = read_bundle_network(arguments.config_file, arguments.ckpt_file, entries)
    write = {"onnx": export.export_onnx, "program": export.export_program}[arguments.format]
    print(f"ready: {write(network, arguments.filepath)}")
