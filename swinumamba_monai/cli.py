# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m swinumamba_monai``: what comes before and beside ``python -m monai.bundle``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from swinumamba_monai import __version__
from swinumamba_monai.errors import InputError, find_input_error, hush_unasked_reader

# Modules of swinumamba_monai.commands, in the order of the list that --help shows.
COMMANDS = (
    *("predict", "prepare", "synthesize", "compare", "coco", "export", "overlay", "table", "erf"),
    *("package", "verify", "halve", "doctor", "serve"),
)


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of an option behind its help, where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did what was asked, 1 with one sentence on standard error if it could not, 130 if stopped.

    Without a command it prints the list of them there, and is 2, as for every command line that is none.
    """
    parser = make_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help(sys.stderr)
        return 2
    arguments, others = parser.parse_known_args(argv)
    if others:  # sentences about images name options as the bundles have them
        hint = "; an entry of the config is given as --set NAME=VALUE" if hasattr(arguments, "set") else ""
        parser.error(f"unrecognized arguments: {' '.join(others)}{hint}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    hush_unasked_reader()
    try:
        arguments.command(arguments)
    except (InputError, OSError) as error:
        if (sentence := find_input_error(error)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the function to call with what it parsed is its ``command``."""
    parser = argparse.ArgumentParser(prog="python -m swinumamba_monai", description=__doc__)
    parser.add_argument("--version", action="version", version=f"swinumamba_monai {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"swinumamba_monai.commands.{name}")
        text = module.__doc__.rstrip(".")
        text = text[0].lower() + text[1:]
        command = commands.add_parser(name, help=text, formatter_class=HelpWithDefaults)
        module.add_arguments(command)
        command.set_defaults(command=module.run)
    return parser
