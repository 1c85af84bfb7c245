# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What the commands that train have in common: a sentence instead of a traceback, and a log beside the output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from swinumamba_monai.errors import InputError

__all__ = ["logging_to", "run_plainly"]


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
