# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Run the tables that need one GPU, one process each, and go on where one fails: ``python -m benchmarks.run_all``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

ORDER = ("training_step", "loss", "inference", "ss2d_block", "growth", "loss_curve")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Every other option is handed to each script.")
    parser.add_argument(
        "--only", nargs="+", default=list(ORDER), choices=[*ORDER, "step_profile", "cpu", "data_parallel"]
    )
    parser.add_argument("--timeout", type=float, default=300, help="of a script, in seconds")
    arguments, shared = parser.parse_known_args(argv)
    failed = []
    for name in arguments.only:
        begin = time.perf_counter()
        try:
            command = [sys.executable, "-m", f"benchmarks.{name}", *shared]
            code = subprocess.run(command, timeout=arguments.timeout).returncode
        except subprocess.TimeoutExpired:
            code = "out of time; the rows so far are written"
        print(f"== {name}: {time.perf_counter() - begin:.0f} s, exit {code}", flush=True)
        failed += [] if code == 0 else [name]
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
