# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Shares of one run, in processes of their own, have one folder of answers."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pytest

from swinumamba_monai.inference.kept_blocks import KeptBlocks

BLOCK = np.arange(12, dtype=np.uint8).reshape(3, 4)


def find(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return block.astype(np.int32), np.ones(11)


def test_an_answer_that_another_process_removes_meanwhile_is_found_anew(tmp_path, monkeypatch):
    """It had the same image under another name, and has finished it."""
    kept = KeptBlocks(tmp_path / "blocks", "")
    kept.answer(BLOCK, BLOCK, find)
    load = np.load

    def too_late(file: Path):
        file.unlink()
        return load(file)

    monkeypatch.setattr(np, "load", too_late)
    labels, scores = kept.answer(BLOCK, BLOCK, find)
    np.testing.assert_array_equal(labels, BLOCK)
    assert len(scores) == 11


def test_a_folder_that_another_process_removes_meanwhile_costs_no_answer(tmp_path, monkeypatch):
    """It found the folder empty, at the end of its image, before this one had put its first file there."""
    make = Path.mkdir

    def in_vain(folder: Path, *given, **more) -> None:
        make(folder, *given, **more)
        folder.rmdir()

    monkeypatch.setattr(Path, "mkdir", in_vain)
    with KeptBlocks(tmp_path / "blocks", "") as kept:
        labels, _ = kept.answer(BLOCK, BLOCK, find)
    np.testing.assert_array_equal(labels, BLOCK)


def test_a_damaged_answer_ends_the_run_and_is_gone(tmp_path):
    with KeptBlocks(tmp_path / "blocks", "") as kept:
        kept.answer(BLOCK, BLOCK, find)
        (file,) = (tmp_path / "blocks").iterdir()
        content = file.read_bytes()
    (tmp_path / "blocks").mkdir()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadZipFile), KeptBlocks(tmp_path / "blocks", "") as kept:
        kept.answer(BLOCK, BLOCK, find)
    assert not file.exists()
