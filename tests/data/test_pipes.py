# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Pipes in a folder of data: whoever opens one waits until somebody writes into it."""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swinumamba_monai.data.files.images import read_image, stated_orientation
from swinumamba_monai.data.files.video import count_frames
from swinumamba_monai.data.files.volumes import read_volume
from swinumamba_monai.data.files.walk import find_files
from swinumamba_monai.data.listing import load_frames, load_volumes
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks import find_task

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")


@pytest.fixture(autouse=True)
def limit():
    """A test that waits fails after minutes."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for somebody to write into a pipe"))
    signal.alarm(200)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def source(tmp_path) -> Path:
    """Three images and their labels."""
    source = tmp_path / "source"
    for folder in ("images", "labels"):
        (source / folder).mkdir(parents=True)
        for name in "abc":
            Image.fromarray(np.full((64, 64), 1, np.uint8)).save(source / folder / f"{name}.png")
    return source


def test_only_pipes_are_passed_over(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    assert [path.name for path in find_files(tmp_path)] == ["broken", "file"]
    assert [path.name for path in find_files(tmp_path, pipes=True)] == ["broken", "file", "link", "pipe"]


@pytest.mark.parametrize("name", ["images/d.png", "labels/d.png", "labels/d.json", "datalist.json"])
def test_a_dataset_with_one_is_prepared_and_it_is_named(source, tmp_path, caplog, name):
    os.mkfifo(source / name)
    with caplog.at_level(logging.INFO):
        find_task("microscopy").prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "datalist.json").is_file()
    assert "3 taken" in caplog.text and (Path(name).name in caplog.text or name == "datalist.json")


def test_the_names_of_yolo_labels(source, tmp_path):
    for label in list((source / "labels").iterdir()):
        label.with_suffix(".txt").write_text("0 0.1 0.1 0.8 0.1 0.8 0.8\n")
        label.unlink()
    os.mkfifo(source / "labels" / "classes.txt")
    assert sum(find_task("microscopy").prepare(source, tmp_path / "out").sizes.values()) == 3


def test_the_label_of_an_image_that_is_one(source, tmp_path):
    (source / "labels" / "c.png").unlink()
    os.mkfifo(source / "labels" / "c.png")
    with pytest.raises(InputError, match=r"c\.png has no label"):
        find_task("microscopy").prepare(source, tmp_path / "out")


def test_among_volumes_it_is_named(tmp_path, caplog):
    (tmp_path / "a.nii.gz").touch()
    for name in ("b.nii.gz", "c.dcm", "d"):
        os.mkfifo(tmp_path / name)
    with caplog.at_level(logging.INFO):
        assert [Path(item["image"]).name for item in load_volumes(tmp_path)] == ["a.nii.gz"]
    assert "3 pipes, sockets or devices (b.nii.gz, c.dcm, d)" in caplog.text


READERS = [("a.png", read_image), ("a.mp4", count_frames), ("a.nii.gz", read_volume), ("a.dcm", read_volume)]


@pytest.mark.parametrize(("name", "read"), READERS)
def test_every_reader_says_the_same_of_a_pipe_and_of_a_socket(tmp_path, monkeypatch, name, read):
    with pytest.raises(InputError, match="does not exist; check the path"):
        read(tmp_path / name)
    os.mkfifo(tmp_path / name)
    (tmp_path / "socket").mkdir()
    monkeypatch.chdir(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)  # whose absolute path may be too long for one
    for path in (tmp_path / name, tmp_path / "socket" / name):
        with pytest.raises(InputError, match=f"{name} is no file but a pipe, socket or device; check the path"):
            read(path)


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_a_folder_is_called_one(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name} is no file but a folder; check the path"):
        dict(READERS)[name](tmp_path / name)


@pytest.mark.parametrize("name", ["a.mp4", "a.nii.gz"])
def test_one_that_is_given_by_itself(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is no file but a pipe"):
        (load_frames if name == "a.mp4" else load_volumes)(tmp_path / name)


def test_the_orientation_of_one(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert stated_orientation(tmp_path / "a.png") == 1
