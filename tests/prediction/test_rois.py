# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Regions for ImageJ hold the very pixels of the cells, as another library reads them."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from swinumamba_monai.prediction import write_rois

LABELS = np.zeros((12, 20), int)
LABELS[2:6, 3:9] = 1  # a plain cell
LABELS[3:10, 11:18] = 2  # one with a hole
LABELS[5:7, 13:16] = 0
LABELS[9:11, 1:3] = LABELS[7, 5:7] = 7  # one in two pieces


def fill(rings: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The pixels within rings of x and y, by the even-odd rule at the middle of every pixel."""
    inside = np.zeros(shape, bool)
    middles = np.argwhere(np.ones(shape))[:, ::-1] + 0.5
    for ring in rings:
        inside ^= Outline(np.vstack([ring, ring[:1]])).contains_points(middles).reshape(shape)
    return inside


def test_roifile_reads_the_same_pixels(tmp_path):
    roifile = pytest.importorskip("roifile")
    write_rois(tmp_path / "a.zip", LABELS)
    rois = roifile.roiread(tmp_path / "a.zip")
    assert [roi.name for roi in rois] == ["00001", "00002", "00007"]
    for roi, number in zip(rois, (1, 2, 7), strict=True):
        rings = roi.coordinates(multi=True) if roi.multi_coordinates is not None else [roi.coordinates()]
        np.testing.assert_array_equal(fill(rings, LABELS.shape), LABELS == number)


def test_the_bytes_of_a_polygon(tmp_path):
    """By the layout that ImageJ's RoiDecoder.java has at its top."""
    write_rois(tmp_path / "a.zip", LABELS)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        content = archive.read("00001.roi")
    assert content[:4] == b"Iout" and content[6] == 0
    numbers = np.frombuffer(content[8:18], ">i2").tolist()
    assert numbers == [2, 3, 6, 9, 4], "top, left, bottom, right, corners"
    x, y = np.frombuffer(content[64:80], ">i2").reshape(2, 4) + np.array([[3], [2]])
    np.testing.assert_array_equal(fill([np.stack([x, y], 1)], LABELS.shape), LABELS == 1)


def test_the_bytes_of_a_shape(tmp_path):
    write_rois(tmp_path / "a.zip", LABELS)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        content = archive.read("00002.roi")
    assert content[6] == 1
    path, rings = np.frombuffer(content[64:], ">f4", int.from_bytes(content[36:40], "big")).tolist(), []
    while path:
        if (segment := path.pop(0)) == 4:
            continue
        if segment == 0:
            rings.append([])
        rings[-1].append((path.pop(0), path.pop(0)))
    np.testing.assert_array_equal(fill([np.array(ring) for ring in rings], LABELS.shape), LABELS == 2)


def test_what_lies_beyond_16_bits_is_a_shape(tmp_path):
    labels = np.zeros((2, 40_000), int)
    labels[0, 39_000:39_500] = 1
    write_rois(tmp_path / "a.zip", labels)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        content = archive.read("00001.roi")
    assert content[6] == 1 and 39_500 in np.frombuffer(content[64:], ">f4", 14)


def test_the_same_cells_are_the_same_file(tmp_path):
    for name in ("a.zip", "b.zip"):
        write_rois(tmp_path / name, LABELS)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
