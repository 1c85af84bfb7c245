# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Outlines as regions of interest for ImageJ and Fiji: a ``.zip`` that its ROI Manager opens.

A file of ImageJ's holds big-endian numbers: a header of 64 bytes, corners, a second header, and the name.

An outline without holes is a polygon.
One with holes, in several pieces, or too long or far away for 16 bits, is what ImageJ calls a shape: the segments of a
path, as float32.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from os import PathLike

import numpy as np

from swinumamba_monai.atomic import replacing
from swinumamba_monai.data.files.imagej_roi import CLOSE, LINE, MOVE, POLYGON, RECTANGLE
from swinumamba_monai.inference.polygons import outlines, regions

VERSION = 227
MAX_CORNER, MAX_CORNERS = (1 << 15) - 1, (1 << 16) - 1
# Name of the format, version, kind, box (top, left, bottom, right), number of corners; at byte 36 the length of a
# shape, at byte 60 where the second header begins, which has at its byte 16 where the name begins, and its length.
_HEADER = struct.Struct(">4shBx4hH18xi20xi")
_SECOND_HEADER = struct.Struct(">16x2i40x")


def write_rois(path: str | PathLike, labels: np.ndarray) -> None:
    """Write every cell or class as a region.

    Args:
        path: ``.zip`` file to write, whole or not at all; each region in it is called by its number.
        labels: numbers (H, W), 0 is background.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, mask, corner in regions(labels):
            rings = [np.array(ring[:-1]) for polygon in outlines(mask, corner) for ring in polygon]
            # With a date of its own, the same regions would never be the same file.
            archive.writestr(zipfile.ZipInfo(f"{number:05d}.roi"), _roi(rings, f"{number:05d}"))


def _roi(rings: Sequence[np.ndarray], name: str) -> bytes:
    """The corners (n, 2) of the rings of a region, x and y, as ImageJ's file."""
    corners = np.concatenate(rings)
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    box = np.minimum((top, left, bottom, right), MAX_CORNER).tolist()  # of a shape ImageJ takes the path alone
    if len(rings) == 1 and len(corners) <= MAX_CORNERS and corners.max() <= MAX_CORNER:
        kind, path = POLYGON, (corners - (left, top)).T.astype(">i2")
        lengths = (len(corners), 0)
    else:
        kind, segments = RECTANGLE, []
        for ring in rings:
            segments += [MOVE, *ring[0], *(number for corner in ring[1:] for number in (LINE, *corner)), CLOSE]
        path, lengths = np.array(segments, ">f4"), (0, len(segments))
    second = _HEADER.size + path.nbytes
    header = _HEADER.pack(b"Iout", VERSION, kind, *box, *lengths, second)
    return (
        header
        + path.tobytes()
        + _SECOND_HEADER.pack(second + _SECOND_HEADER.size, len(name))
        + name.encode("utf-16-be")
    )
