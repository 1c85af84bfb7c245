# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Test two evaluations of the same cases against each other."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A.csv", help="metrics.csv of one evaluation")
    parser.add_argument("b", metavar="B.csv", help="metrics.csv of the other")
    parser.add_argument("--columns", nargs="+", help="columns to compare; default: every one that they share")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")


def run(arguments: argparse.Namespace) -> None:
    from swinumamba_monai.reports import compare, comparison_text

    print(comparison_text(compare(arguments.a, arguments.b, columns=arguments.columns, seed=arguments.seed)))
