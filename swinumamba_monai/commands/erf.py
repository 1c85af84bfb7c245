# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Effective receptive fields of networks (Fig. 7)."""

import argparse
import sys
from pathlib import Path

from swinumamba_monai.errors import InputError, check_known


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--network_name", nargs="+", default=["nnUNet", "SegResNet", "UNETR", "SwinUMambaD"], help="systems"
    )
    parser.add_argument("--ckpt_path", nargs="+", help="weights, one file a network; default: random ones")
    parser.add_argument("--images", help="an image, a folder of images or a prepared dataset; default: random input")
    parser.add_argument("--num_images", type=int, default=100, help="averaged over, at most; the paper: 1000")
    parser.add_argument("--in_channels", type=int, default=3, help="1 or 3")
    parser.add_argument("--num_classes", type=int, default=3, help="classes of the network, background included")
    parser.add_argument("--roi_size", type=int, nargs=2, default=[320, 320], metavar=("HEIGHT", "WIDTH"), help="input")
    parser.add_argument("--seed", type=int, default=0, help="seed of random weights and input")
    parser.add_argument("--device", help="cuda:0, cpu, ...; default: a GPU if there is one")
    parser.add_argument("--output_dir", default=".", help="folder of NETWORK_erf.png, erf.csv and erf.png")


def run(arguments: argparse.Namespace) -> None:
    from monai.utils import set_determinism

    from swinumamba_monai import analysis
    from swinumamba_monai.atomic import check_output_folder
    from swinumamba_monai.devices import find_device
    from swinumamba_monai.networks import SYSTEMS, build_network
    from swinumamba_monai.pretrained import load_pretrained

    names = arguments.network_name
    check_known("network", names, SYSTEMS)
    files = arguments.ckpt_path or [None] * len(names)
    if len(files) != len(names):
        raise InputError(f"{len(names)} networks need as many files in ckpt_path, not {len(files)}.")
    check_output_folder(arguments.output_dir)
    device, size, in_channels = find_device(arguments.device), tuple(arguments.roi_size), arguments.in_channels
    inputs = analysis.load_inputs(arguments.images, arguments.num_images, in_channels, size, seed=arguments.seed)
    networks = {}
    for name, file in zip(names, files):
        set_determinism(arguments.seed)
        try:
            network = build_network(name, in_channels=in_channels, out_channels=arguments.num_classes, roi_size=size)
        except ValueError as error:
            raise InputError(str(error)) from error
        if file is not None:
            load_pretrained(network, file, strict=True)
        networks[name if name not in networks else f"{name}_{len(networks)}"] = network
    fields = {}
    count, plural = len(inputs), "s" if len(inputs) != 1 else ""
    for label, network in networks.items():
        fields[label] = analysis.effective_receptive_field(network.to(device), inputs)
        print(f"{label}: computed over {count} input{plural}", file=sys.stderr)
    weights = "random weights" if arguments.ckpt_path is None else "weights of ckpt_path"
    source = f"image{plural} of {Path(arguments.images).name}" if arguments.images else f"random input{plural}"
    for path in analysis.write_erf(arguments.output_dir, fields, f"{count} {source}, {weights}"):
        print(f"written: {path}")
