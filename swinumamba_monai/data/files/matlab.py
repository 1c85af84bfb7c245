# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Nuclei in MATLAB's files, as CoNSeP, CPM, Kumar (in the form of HoVer-Net) and Lizard have them.

Level 5 of the format is read here, its arrays of numbers alone, after "MAT-File Format" by The MathWorks: SciPy's
reader ends the process on some damaged files, and unpacks what a stranger's file claims without bounds.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from swinumamba_monai.data.files.limits import MAX_UNFOLDED_BYTES
from swinumamba_monai.errors import InputError, explained, listed

MAP, _IDS, _CLASSES_BY_ID, _CLASSES_IN_ORDER = "inst_map", "id", "class", "inst_type"

_HDF5, _LITTLE_ENDIAN = b"MATLAB 7.3", b"IM"
_HEADER, _TAG = 128, 8  # bytes
_MATRIX, _COMPRESSED = 14, 15
# Types of numbers by the kind of their element; kinds of arrays that are numbers, and no structures, texts or objects.
_TYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_DOUBLE, _UINT64 = 6, 15
_COMPLEX = 8  # bit of an array's second byte
_START = 1 << 12  # bytes of a variable, in which its name is


def read_variables(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Those of some variables that a file has as arrays of numbers.

    Raises:
        InputError: the file is of MATLAB 7.3, which is HDF5, or damaged, or lacks a map of nuclei that is asked for.
    """
    there, found = [], {}
    with explained(f"{path} is no file of MATLAB that can be read", "download it again, or save it with -v7"):
        data = memoryview(path.read_bytes())
        if data[: len(_HDF5)] == _HDF5:
            raise InputError(f"{path} is a file of MATLAB 7.3, which is HDF5 and is not read; save it with -v7.")
        if data[_HEADER - 2 : _HEADER] != _LITTLE_ENDIAN:
            raise ValueError("it does not begin as one of level 5, little endian")
        for kind, packed in _elements(data[_HEADER:]):
            variable = _unpacked(packed, _START) if kind == _COMPRESSED else packed
            (_, flags), (_, shape), (_, name) = islice(_elements(variable), 3)
            name = bytes(name).decode("latin-1")
            if kind in (_MATRIX, _COMPRESSED) and _DOUBLE <= flags[0] <= _UINT64 and not flags[1] & _COMPLEX:
                there.append(name)
                if name in names:
                    variable = _unpacked(packed, MAX_UNFOLDED_BYTES) if kind == _COMPRESSED else packed
                    found[name] = _numbers(variable, np.frombuffer(shape, "<i4").tolist())
    if MAP in names and MAP not in found:
        raise InputError(f"{path} has no {MAP} with the numbers of its nuclei, but {listed(there) or 'nothing'}.")
    return found


def _elements(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The kind and the bytes of each element; up to four bytes lie within their tag."""
    place = 0
    while place + _TAG <= len(data):
        kind, size = struct.unpack_from("<2I", data, place)
        start = place + _TAG
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, place + _TAG // 2
        end = start + size
        if end > len(data):
            raise ValueError("it ends within a variable")
        yield kind, data[start:end]
        place = end if kind == _COMPRESSED else -(-end // _TAG) * _TAG  # others are filled up to whole tags


def _unpacked(packed: memoryview, most: int) -> memoryview:
    """The first bytes of a compressed variable, without its tag."""
    return memoryview(zlib.decompressobj().decompress(packed, most))[_TAG:]


def _numbers(variable: memoryview, shape: list[int]) -> np.ndarray:
    kind, numbers = next(islice(_elements(variable), 3, None))
    if min(shape) < 0:
        raise ValueError("a size below 0")
    return np.frombuffer(numbers, _TYPES[kind]).reshape(shape, order="F")


def has_classes(path: Path) -> bool:
    """Whether a file says of what class its nuclei are; errors are those of :func:`read_variables`."""
    return bool(read_variables(path, _CLASSES_BY_ID, _CLASSES_IN_ORDER))


def classes_of_nuclei(path: Path, nuclei: np.ndarray) -> np.ndarray:
    """The class numbers of the pixels, (H, W), of a file whose map of nuclei is known.

    ``class`` has a number for every ``id``, or ``inst_type`` one for every nucleus in the order of their numbers.

    Raises:
        InputError: the file has no classes, or not one for every nucleus.
    """
    numbers, places = np.unique(nuclei, return_inverse=True)
    found = read_variables(path, _IDS, _CLASSES_BY_ID, _CLASSES_IN_ORDER)
    classes = found.get(_CLASSES_BY_ID, found.get(_CLASSES_IN_ORDER, np.empty(0))).ravel()
    ids = found[_IDS].ravel() if {_IDS, _CLASSES_BY_ID} <= found.keys() else numbers[numbers > 0]
    class_of = {0: 0, **dict(zip(ids.tolist(), classes.tolist()))}
    if ids.size != classes.size or not class_of.keys() >= set(numbers.tolist()):
        raise InputError(
            f"{path} has no class for each of its {np.count_nonzero(numbers)} nuclei, but {classes.size} in all "
            f"({_CLASSES_BY_ID} with {_IDS}, or {_CLASSES_IN_ORDER}); give a file with them, or prepare cells alone."
        )
    return np.array([class_of[number] for number in numbers.tolist()])[places.reshape(nuclei.shape)]
