# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Make the archive of a bundle, and what else its release needs."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle_dir", help="folder of the bundle, such as bundles/microscopy")
    parser.add_argument("--output_dir", required=True, help="folder to write; other bundles and versions in it stay")
    parser.add_argument("--release_url", help="address of the archives; default: files are named without it")
    parser.add_argument("--encoder_weights", help="safetensors file of a pretrained encoder, to be released beside it")


def run(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.distribution import package_bundle

    package = package_bundle(
        arguments.bundle_dir, arguments.output_dir, arguments.release_url, arguments.encoder_weights
    )
    print(f"archive: {package.archive} (sha256 {package.sha256})")
    if package.weights is None:
        print("weights: none in its models folder, so whoever fetches it has to train it")
    else:
        print(f"weights: {package.weights}")
    if package.encoder is not None:
        print(f"encoder: {package.encoder}, which download_large_files brings as models/encoder.safetensors")
    if arguments.release_url is None and (package.weights or package.encoder):
        print("no --release_url: large_files.yml and model_info.json name the files without an address")
    print(f"for push_to_hf_hub: --bundle_dir {package.huggingface_dir}")
