# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Say what is installed, what will be used, and what could be faster."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.doctor import examine

    print("\n".join(examine()))
