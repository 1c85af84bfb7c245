# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Regions of interest of ImageJ and Fiji: ``.roi`` files, and the ``.zip`` files of the ROI manager."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np

from swinumamba_monai.data.files.shapes import Annotations, Shape, as_box, as_ellipse, as_ring
from swinumamba_monai.errors import InputError, quoted, shown

MAX_ROIS, MAX_ROI_BYTES = 1 << 17, 1 << 22

# The kinds that have an area, by the number at byte 6; the rest are lines, angles and points.
POLYGON = 0
_POLYGONS = (POLYGON, 7, 8)  # kinds of polygons: drawn corner by corner, freehand and traced
RECTANGLE, _OVAL = 1, 2
_OTHERS = {3: "line", 4: "freehand line", 5: "segmented line", 6: "nothing", 9: "angle", 10: "point"}
_TEXT, _IMAGE = 1, 4  # subtypes at byte 48, which are rectangles for ImageJ
_SUBPIXEL = 128  # bit of the options at byte 50
_FIRST_SUBPIXEL_BOX = 223  # version that keeps fractions of rectangles and ovals, at byte 18
_HEADER = 64  # bytes
MOVE, LINE, CLOSE = 0, 1, 4  # steps of the path of a composite region


def read_rois(path: Path) -> Annotations:
    """Read the regions of one image.

    Polygons, freehand and traced regions, rectangles, ovals and composites of straight lines are read.

    Args:
        path: ``.roi``, or ``.zip`` with such files in it.

    Raises:
        InputError: the file is damaged or of another kind, holds none, or one that has no area.
    """
    try:
        if path.suffix.lower() == ".roi":
            shapes = [_parse(path.read_bytes(), path.stem)]
        else:
            with zipfile.ZipFile(path) as archive:
                members = [info for info in archive.infolist() if info.filename.lower().endswith(".roi")]
                if not members or len(members) > MAX_ROIS or any(i.file_size > MAX_ROI_BYTES for i in members):
                    raise InputError(f"{path} has {len(members)} ROI files; 1 to {MAX_ROIS} small ones can be read.")
                shapes = [_parse(archive.read(info), info.filename) for info in members]
    except InputError as error:
        raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    except Exception as error:  # zipfile, zlib and struct have no common class for a damaged file
        raise InputError(f"{path} is no ROI file of ImageJ ({quoted(error)}); save it again.") from error
    return Annotations(path, shapes)


def _parse(data: bytes, name: str) -> Shape:
    if data[:4] != b"Iout":
        raise InputError(f"{shown(name)} is no ROI of ImageJ; save it again.")
    kind = data[6]
    top, left, bottom, right = struct.unpack_from(">4h", data, 8)
    subtype, options = struct.unpack_from(">2h", data, 48)
    has_box = options & _SUBPIXEL and struct.unpack_from(">h", data, 4)[0] >= _FIRST_SUBPIXEL_BOX
    if has_box and kind in (RECTANGLE, _OVAL):
        left, top, width, height = struct.unpack_from(">4f", data, 18)
        right, bottom = left + width, top + height
    composite = struct.unpack_from(">i", data, 36)[0]
    if composite > 0:
        return Shape(name, [_path(np.frombuffer(data, ">f4", composite, _HEADER).tolist(), name)])
    if kind == RECTANGLE and subtype in (_TEXT, _IMAGE):
        raise InputError(f"{shown(name)} is a text or a picture, which has no pixels; keep areas only.")
    if kind == RECTANGLE:
        return Shape(name, [[as_box(left, top, right, bottom)]])
    if kind == _OVAL:
        middle, radii = ((left + right) / 2, (top + bottom) / 2), ((right - left) / 2, (bottom - top) / 2)
        return Shape(name, [[as_ellipse(middle, radii)]])
    if kind not in _POLYGONS:
        raise InputError(f"{shown(name)} is a {_OTHERS.get(kind, kind)}, which has no pixels; keep areas only.")
    count = struct.unpack_from(">H", data, 16)[0]
    if count < 3:
        raise InputError(f"{shown(name)} has {count} points, but an area needs three; remove it.")
    if options & _SUBPIXEL:
        x, y = np.frombuffer(data, ">f4", 2 * count, _HEADER + 4 * count).reshape(2, count)
    else:
        x, y = np.frombuffer(data, ">i2", 2 * count, _HEADER).reshape(2, count)
        x, y = x + float(left), y + float(top)
    return Shape(name, [[as_ring(zip(x, y))]])


def _path(numbers: list[float], name: str) -> list[np.ndarray]:
    """The rings of a composite region: its pieces, and holes inside them."""
    rings: list[list[tuple[float, float]]] = []
    place = 0
    while place < len(numbers):
        step = numbers[place]
        if step not in (MOVE, LINE, CLOSE):
            raise InputError(f"{shown(name)} has curves, which are not read; convert it to polygons.")
        if step == MOVE:
            rings.append([])
        if step != CLOSE:
            rings[-1].append((numbers[place + 1], numbers[place + 2]))
        place += 1 if step == CLOSE else 3
    rings = [ring for ring in rings if len(ring) > 2]
    if not rings:
        raise InputError(f"{shown(name)} has no outline; remove it.")
    return [as_ring(ring) for ring in rings]
