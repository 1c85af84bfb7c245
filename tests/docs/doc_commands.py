# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The commands in the documentation's ``bash`` blocks, as the shell itself reads them.

bash runs each block with nothing on its path: whatever it would start is written down instead, with variables, quotes
and continued lines already resolved. Files that a block writes by ``echo`` are really written.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import swinumamba_monai

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("bundles/*/docs/*.md"))
)
# Called by bash for every command that is not there, and that is every command. An overlay's place is known here, so
# that the command around it is read as it will be.
_RECORDER = r"""
command_not_found_handle() {
    printf '%s\0' "$@" $'\x1e' >> "$RECORD"
    if [ "${2-} ${3-} ${4-}" = "-m swinumamba_monai overlay" ] && [ -n "${5-}" ]; then
        for file in "$OVERLAYS"/*/"$5.json"; do echo "$file"; done
    fi
}
"""


class Block(NamedTuple):
    """One ``bash`` block: its document from the root of the repository, its first line there, its text."""

    document: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def find_blocks() -> list[Block]:
    """All of them, in the order of the documents."""
    blocks = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start(1)) + 1
            blocks.append(Block(path.relative_to(ROOT).as_posix(), line, match[1]))
    return blocks


def read_commands(block: Block, folder: Path) -> list[list[str]]:
    """What the block starts, each a list of words.

    Args:
        block: of a document.
        folder: an existing folder, in which bash runs it.

    Raises:
        AssertionError: bash cannot read it, or it uses a variable that it does not set.
    """
    recorder, record = folder / ".recorder", folder / ".record"
    recorder.write_text(_RECORDER)
    record.write_bytes(b"")
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True, exist_ok=True)
    activate.touch()
    slurm = {f"SLURM_{name}": "1" for name in ("JOB_ID", "JOB_NODELIST", "NNODES", "ARRAY_TASK_ID")}
    environment = {
        "PATH": os.devnull,
        "PYTHONPATH": "",
        "BASH_ENV": str(recorder),
        "RECORD": str(record),
        "OVERLAYS": str(Path(swinumamba_monai.__file__).parent / "configs"),
        **slurm,
    }
    done = subprocess.run(
        [shutil.which("bash"), "-eu", "-c", block.text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and not done.stderr, f"{block}: bash: {done.stderr}"
    records = record.read_bytes().decode().split("\x1e\0")
    return [entry.rstrip("\0").split("\0") for entry in records if entry]
