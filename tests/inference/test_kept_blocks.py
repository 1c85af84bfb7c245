# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Shares of one run, in processes of their own, have one folder of answers."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from swinumamba_monai.errors import InputError
from swinumamba_monai.inference.kept_blocks import KeptBlocks

BLOCK = np.arange(12, dtype=np.uint8).reshape(3, 4)


def find(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return block.astype(np.int32), np.ones(11)


def test_an_answer_that_another_process_removes_meanwhile_is_found_anew(tmp_path, monkeypatch):
    """It had the same image under another name, and has finished it."""
    kept = KeptBlocks(tmp_path / "blocks", "")
    kept.finder(BLOCK, find)(BLOCK)
    load = np.load

    def too_late(file: Path):
        file.unlink()
        return load(file)

    monkeypatch.setattr(np, "load", too_late)
    labels, scores = kept.finder(BLOCK, find)(BLOCK)
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
        labels, _ = kept.finder(BLOCK, find)(BLOCK)
    np.testing.assert_array_equal(labels, BLOCK)


def test_a_damaged_answer_is_found_anew(tmp_path, caplog):
    KeptBlocks(tmp_path / "blocks", "").finder(BLOCK, find)(BLOCK)
    (file,) = (tmp_path / "blocks").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    labels, _ = KeptBlocks(tmp_path / "blocks", "").finder(BLOCK, find)(BLOCK)
    np.testing.assert_array_equal(labels, BLOCK)
    assert f"{file} is damaged: it is not used, and made again" in caplog.text
    assert file.read_bytes() == content


def test_an_error_leaves_the_answers_and_the_end_of_the_image_removes_them(tmp_path):
    with pytest.raises(OSError, match="full"), KeptBlocks(tmp_path / "blocks", "") as kept:
        kept.finder(BLOCK, find)(BLOCK)
        raise OSError("the disk is full")
    with KeptBlocks(tmp_path / "blocks", "") as kept:
        labels, _ = kept.finder(BLOCK, lambda block: pytest.fail("it was found before"))(BLOCK)
    np.testing.assert_array_equal(labels, BLOCK)
    assert not (tmp_path / "blocks").exists()


def test_a_full_disk_is_said_of_the_folder_that_is_on_it(tmp_path, monkeypatch):
    """And not of the file of the image, in whose writing the blocks are found."""
    monkeypatch.setattr(np, "savez_compressed", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(InputError, match=f"kept in {tmp_path}/blocks .*No space left.*the next run goes on"):
        KeptBlocks(tmp_path / "blocks", "").finder(BLOCK, find)(BLOCK)
