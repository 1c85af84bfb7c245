# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What the commands that train have in common: a sentence instead of a traceback, and a log beside the output."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from swinumamba_monai.errors import InputError

__all__ = ["logging_to", "main_of", "run_plainly"]


def run_plainly(run: Callable[[], object]) -> int:
    """Call what a command does, and say in a line what the user can mend; the exit code."""
    try:
        run()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def logging_to(file: Path, mode: str) -> Iterator[Callable[[str], None]]:
    """A function that writes a line to a file and to the screen, with the seconds since now.

    Args:
        file: the log; its folder is made.
        mode: ``"w"`` for a new one, ``"a"`` to go on with it.
    """
    begin = time.perf_counter()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open(mode, encoding="utf-8") as log:

        def report(line: str) -> None:
            for target in (sys.stdout, log):
                print(f"[{time.perf_counter() - begin:.0f} s] {line}", file=target, flush=True)

        yield report


def main_of(
    parser: argparse.ArgumentParser,
    quick: Mapping[str, object],
    run: Callable[[argparse.Namespace, Callable[[str], object]], object],
    argv: Sequence[str] | None,
    mode: str = "a",
) -> int:
    """A training as a command; returns its exit code.

    Args:
        parser: parser of its options.
        quick: options that ``--quick`` replaces.
        run: reads, trains and writes what the parsed arguments say; it is given a function for the log's lines too.
        argv: words of the command line, None for the process's own.
        mode: mode of ``log.txt`` in the output folder, see :func:`logging_to`.
    """
    arguments = parser.parse_args(argv)
    if arguments.quick:
        vars(arguments).update(quick)

    def run_with_log() -> None:
        with logging_to(arguments.output_dir / "log.txt", mode) as report:
            run(arguments, report)

    return run_plainly(run_with_log)
