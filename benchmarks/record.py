# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What every script here has in common around its measurement: options, the record it writes, the table it prints."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from swinumamba_monai.atomic import replacing
from swinumamba_monai.ops.backends import choose_backend
from swinumamba_monai.reports.tables import markdown_lines

__all__ = ["Record", "make_parser", "start"]

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "triton", "numba")


def make_parser(description: str, repeats: int) -> argparse.ArgumentParser:
    """Parser with the options that all scripts share.

    Args:
        description: a module's docstring, its first line is shown.
        repeats: default number of samples of each row.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that the script runs, measures nothing")
    parser.add_argument("--repeats", type=int, default=repeats, help="samples of each row")
    parser.add_argument("--warmup", type=int, default=3, help="calls of each row before the first sample")
    parser.add_argument(
        "--sample_seconds", type=float, default=0.05, help="calls are repeated until one lasts that long"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tf32", action="store_true", help="TF32 in matrix products too, not in convolutions alone")
    parser.add_argument("--cudnn_benchmark", action="store_true", help="let cuDNN try its algorithms first")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--git_commit", default=None, help="of the code, where it runs without its repository")
    return parser


def start(arguments: argparse.Namespace) -> torch.device:
    """Apply the shared options to this process; returns the device."""
    torch.manual_seed(arguments.seed)
    torch.backends.cudnn.benchmark = arguments.cudnn_benchmark
    if arguments.tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    if arguments.quick:
        arguments.sample_seconds = 0
    device = torch.device(arguments.device)
    if device.type == "cuda":  # cuBLAS allocates its workspaces once: no row shall be charged for them
        weight = torch.randn(8, 8, device=device, requires_grad=True)
        (weight @ weight).sum().backward()
    return device


class Record:
    """Rows and where they come from, in ``NAME.json`` and ``NAME.md``, both written anew after every row.

    Args:
        name: name of the files, without suffix.
        arguments: parsed options of :func:`make_parser`.
        columns: heading of each column of the printed table: how a row fills it.
        notes: sentences that say what was counted and how.
    """

    def __init__(self, name: str, arguments: argparse.Namespace, columns: dict, notes: list[str]) -> None:
        self.name = name
        self.columns = columns
        self.output_dir = arguments.output_dir
        self.content = {
            "benchmark": name,
            "quick": arguments.quick,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": _command(name),
            "git_commit": arguments.git_commit or _git_commit(),
            "seed": arguments.seed,
            "repeats": arguments.repeats,
            "warmup": arguments.warmup,
            "sample_seconds": arguments.sample_seconds,
            "hardware": hardware(torch.device(arguments.device)),
            "versions": versions(),
            "settings": {
                "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
                "cudnn_tf32": torch.backends.cudnn.allow_tf32,
                "cudnn_benchmark": torch.backends.cudnn.benchmark,
            },
            "notes": notes,
            "rows": [],
        }
        if "scan_backend" in arguments:
            device_type = torch.device(arguments.device).type
            self.content["scan_backend"] = choose_backend(arguments.scan_backend, device_type, torch.float32)
        self.save()

    def add(self, row: dict) -> None:
        """Append a row, write the files and show the row."""
        self.content["rows"].append(row)
        self.save()
        print(f"{self.name}: " + " | ".join(self._cells(row)), flush=True)

    def save(self) -> None:
        """Write both files; either the old or the whole new one is there, whenever the run is stopped."""
        mamba_ssm = sys.modules.get("mamba_ssm")  # made by mamba_ssm_build, so no installed distribution
        self.content["versions"]["mamba_ssm"] = getattr(mamba_ssm, "__version__", None)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for suffix, text in ((".json", json.dumps(self.content, indent=1) + "\n"), (".md", self.markdown())):
            with replacing(self.output_dir / f"{self.name}{suffix}") as temporary:
                temporary.write_text(text, encoding="utf-8")

    def markdown(self) -> str:
        """The table with the facts a reader needs under it."""
        place, used = self.content["hardware"], self.content["versions"]
        table = markdown_lines(list(self.columns), map(self._cells, self.content["rows"]))
        where = place.get("gpu", {}).get("name") or f"{place['cpu']}, {place['threads']} threads"
        facts = f"{self.content['date'][:10]}, {where}, torch {used['torch']}, commit {self.content['git_commit']}"
        if "scan_backend" in self.content:
            facts += f", scan backend {self.content['scan_backend']}"
        if self.content["quick"]:
            facts += ", TOY SIZES"
        return "\n".join([f"# {self.name}", "", table, "", f"{facts}: `{self.content['command']}`", ""]) + "".join(
            f"\n- {note}" for note in self.content["notes"]
        )

    def _cells(self, row: dict) -> list[str]:
        return [_cell(fill(row) if callable(fill) else row.get(fill)) for fill in self.columns.values()]


def _cell(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):  # a summary of timing.py
        return f"{value['median']:.4g} ({value['min']:.4g}–{value['max']:.4g})"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("\n", " ")


def hardware(device: torch.device) -> dict:
    """The machine, as far as the numbers depend on it."""
    facts = {"cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = {
            "name": properties.name,
            "count": torch.cuda.device_count(),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            **_nvidia_smi(device),
        }
    return facts


def _nvidia_smi(device: torch.device) -> dict:
    query = {"driver": "driver_version", "max_sm_clock_mhz": "clocks.max.sm", "sm_clock_at_start_mhz": "clocks.sm"}
    command = ["nvidia-smi", f"--query-gpu={','.join(query.values())}", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
        values = [value.strip() for value in lines[device.index or 0].split(",")]
        return {name: float(value) if name.endswith("mhz") else value for name, value in zip(query, values)}
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return {}  # the record then says nothing of driver and clocks, and tables have no floor


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict:
    """Of what the numbers depend on; None for what is not installed."""
    found = {"python": platform.python_version(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _command(name: str) -> str:
    """What was typed, but for where its files went and where its data lie: that says nothing elsewhere."""
    words = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    return re.sub(r" --output_dir[ =]\S+|(?<=--dataset_dir[ =])\S*/", "", words)


def _git_commit() -> str:
    try:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=120).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
