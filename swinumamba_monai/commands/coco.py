# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Gather predictions in one COCO file, for CVAT and other tools."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.HelpFormatter  # there are no defaults to show
    parser.add_argument("predictions", help="folder that the inference of microscopy or endoscopy wrote")
    parser.add_argument("--images", required=True, help="the predicted images: a file, a folder, or a prepared dataset")
    parser.add_argument("--output_file", required=True, help="the .json file to write")
    parser.add_argument("--metadata", help="configs/metadata.json of the bundle, which names the classes of endoscopy")
    parser.add_argument(
        "--ckpt_path", nargs="+", default=(), help="weights that predicted, where they are not those of the bundle"
    )


def run(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.inference import write_coco

    paths = (arguments.predictions, arguments.images, arguments.output_file, arguments.metadata, arguments.ckpt_path)
    num_images, num_annotations = write_coco(*paths)
    print(f"{arguments.output_file}: {num_images} images, {num_annotations} annotations")
