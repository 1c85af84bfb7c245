# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Serve a bundle by MONAI Label."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="its folder; training there replaces models/model.pt")
    parser.add_argument("--studies", required=True, help="folder of the images; labels are saved in its labels")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=8000, help="port of the server")


def run(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.serving import serve

    serve(arguments.bundle, arguments.studies, arguments.host, arguments.port)
