# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""NRRD and MetaImage files, read and written by SimpleITK."""

from __future__ import annotations

import logging
import math
import re
import zlib
from pathlib import Path

import numpy as np
from monai.data.utils import orientation_ras_lps
from monai.utils import optional_import

from swinumamba_monai.data.files.limits import MAX_DEFLATE, MAX_VOXELS
from swinumamba_monai.errors import InputError, explained, log_once, shown

sitk, _has_sitk = optional_import("SimpleITK")

logger = logging.getLogger(__name__)

_NRRD_SUFFIXES = (".nrrd", ".nhdr")
ITK_SUFFIXES = (*_NRRD_SUFFIXES, ".mha", ".mhd")
_MAX_HEADER = 1 << 22  # bytes; 3D Slicer writes a kilobyte for every segment
# Where a header ends, and where it names the file of its voxels.
_NRRD_END = re.compile(rb"\r?\n\r?\n")
_META_END = re.compile(rb"^ElementDataFile[^\n]*\n", re.MULTILINE | re.IGNORECASE)
_DATA_FILE = re.compile(
    rb"^(?:ElementDataFile[ \t]*=|data ?file:)[ \t]*([^\r\n]*?)[ \t]*\r?$", re.MULTILINE | re.IGNORECASE
)
_BZIP2 = re.compile(rb"^encoding:[ \t]*bz", re.MULTILINE | re.IGNORECASE)
_PACKED = re.compile(rb"^(?:CompressedData[ \t]*=[ \t]*True|encoding:[ \t]*gz)", re.MULTILINE | re.IGNORECASE)
# Something that is not packed lies before what is, which is left to ITK.
_SKIPPED = re.compile(rb"^(?:line ?skip:|HeaderSize[ \t]*=)[ \t]*[1-9]", re.MULTILINE | re.IGNORECASE)
_PIECE = 1 << 16  # packed bytes, which unpack to a thousand times as many at the most
_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS  # as zlib is told to find out which it is
# The units of places, which ITK passes over; other words than these, and none, are mm, as every program takes them.
_UNIT = re.compile(rb"^(?:(?:space )?units:|DistanceUnits[ \t]*=)(.*)$", re.MULTILINE | re.IGNORECASE)
_UNITS = {"m": 1000.0, "meter": 1000.0, "cm": 10.0, "mm": 1.0, "um": 0.001, "\u00b5m": 0.001, "micron": 0.001}
_SPACE = re.compile(rb"^space:[ \t]*(?:[lr][ap]s|(?:left|right)-(?:anterior|posterior)-superior)", re.M | re.I)
_NO_SPACE = (
    "{} has volumes that do not say where their axes lead (no anatomical space); they are taken to lead left, "
    "posterior and superior, as ITK takes them: correct their headers"
)
# What 3D Slicer says of the segments of a label.
_SEGMENT = re.compile(rb"^Segment(\d+)_(Name|LabelValue):=(.*?)\r?$", re.MULTILINE)
_FEW_DIMENSIONS = re.compile(rb"^NDims[ \t]*=[ \t]*[1-5][ \t]*\r?$", re.MULTILINE)


def check_itk(path: Path | str) -> None:
    """Refuse a file that only SimpleITK reads and writes when it is not installed."""
    if not _has_sitk:
        raise InputError(f"{path} needs SimpleITK; install swinumamba-monai[itk].")


def read_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a file with one of ``ITK_SUFFIXES``.

    Args:
        path: the file; of a header with its voxels in another file, which is in the same folder, the header.

    Returns:
        The voxels (X, Y, Z), or (X, Y, Z, C) where each has several numbers, and the affine (4, 4) to mm, RAS+.

    Raises:
        InputError: SimpleITK is not installed; the file is damaged, leads elsewhere, or claims more than it can hold.
    """
    check_itk(path)
    header = _header(path)
    data_file, unit = _data_file(path, header), _unit(path, header)
    if path.suffix.lower() in _NRRD_SUFFIXES and _BZIP2.search(header):
        raise InputError(f"{path} is packed with bzip2, which ITK does not read; save it with gzip.")
    if path.suffix.lower() in _NRRD_SUFFIXES and not _SPACE.search(header):
        log_once(logger, logging.WARNING, _NO_SPACE.format(path.parent))
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    # What is in the file would choose among ITK's decoders, and HDF5 leads to other files.
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in _NRRD_SUFFIXES else "MetaImageIO")
    with explained(f"{path} cannot be decoded", "it is damaged, so replace it"):
        reader.ReadImageInformation()
        shape, channels = reader.GetSize(), reader.GetNumberOfComponents()
        # The bytes of a number are not known before it is read: one at least.
        claimed = math.prod(shape) * channels
        if not 0 < claimed <= MAX_VOXELS:
            raise InputError(f"{path} has the size {tuple(shape)}, but 1 to {MAX_VOXELS} voxels can be read.")
        if claimed > data_file.stat().st_size * MAX_DEFLATE:
            raise InputError(f"{path} claims {claimed} bytes of voxels, which no file of its size holds; replace it.")
        if _PACKED.search(header) and not _SKIPPED.search(header):
            _check_packed(path, data_file)
        image = reader.Execute()
        voxels = sitk.GetArrayFromImage(image)
    voxels = np.moveaxis(voxels, -1, 0).T if channels > 1 else voxels.T
    return voxels, np.diag([unit, unit, unit, 1.0]) @ _affine(image)


def named_numbers(path: Path) -> dict[int, str]:
    """The names of the numbers of a label, as 3D Slicer writes them into an NRRD header; empty where there are none."""
    if path.suffix.lower() not in _NRRD_SUFFIXES:
        return {}
    segments: dict[bytes, dict[bytes, str]] = {}
    for segment, key, value in _SEGMENT.findall(_header(path)):
        segments.setdefault(segment, {})[key] = value.decode(errors="replace").strip()
    return {
        int(keys[b"LabelValue"]): keys[b"Name"]
        for keys in segments.values()
        if keys.get(b"Name") and re.fullmatch(r"\d{1,9}", keys.get(b"LabelValue", ""))
    }


def write_itk(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume (X, Y, Z), or (X, Y, Z, C) of several numbers each, compressed, header and voxels in one file.

    The suffix says the format; the affine (4, 4), to mm, RAS+, has axes at right angles.
    """
    check_itk(path)
    image = sitk.GetImageFromArray(np.moveaxis(voxels.T, 0, -1) if voxels.ndim == 4 else voxels.T, voxels.ndim == 4)
    affine = orientation_ras_lps(affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=True)


def _header(path: Path) -> bytes:
    """The text that a file begins with; of a MetaImage file voxels may follow it."""
    with path.open("rb") as file:
        beginning = file.read(_MAX_HEADER)
    return _NRRD_END.split(beginning, maxsplit=1)[0] if path.suffix.lower() in _NRRD_SUFFIXES else beginning


def _data_file(path: Path, header: bytes) -> Path:
    """The file of the voxels: itself, or the one beside it that the header names; a header leads nowhere else."""
    names = _DATA_FILE.findall(header)
    if path.suffix.lower() in _NRRD_SUFFIXES:
        is_whole = len(header) < _MAX_HEADER
    else:
        names = names[:1]  # it ends a header
        # ITK writes beyond its memory where there are more than ten dimensions.
        is_whole = bool(names) and header.count(b"NDims") == len(_FEW_DIMENSIONS.findall(header)) == 1
    name = names[-1].decode(errors="replace") if names else "LOCAL"
    name = name.removeprefix("./")
    target = path if name.upper() == "LOCAL" else path.with_name(name) if name and Path(name).name == name else None
    inside = target is not None and target.resolve().parent == path.resolve().parent
    if not is_whole or len(names) > 1 or not inside or not target.is_file():
        raise InputError(
            f"{path} cannot be decoded: its header is damaged, or names voxels that are not in one file beside it "
            f"({shown(name)}); save it as a single file."
        )
    return target


def _check_packed(path: Path, data_file: Path) -> None:
    """Raise an error where packed voxels are damaged: ITK prints a line then, and gives others than there were."""
    unpacking = zlib.decompressobj(_ZLIB_OR_GZIP)
    with data_file.open("rb") as file:
        if data_file == path:
            end = _NRRD_END if path.suffix.lower() in _NRRD_SUFFIXES else _META_END
            file.seek(end.search(file.read(_MAX_HEADER)).end())
        while not unpacking.eof:
            if not (piece := file.read(_PIECE)):
                raise EOFError("its voxels end early")
            unpacking.decompress(piece)


def _unit(path: Path, header: bytes) -> float:
    """The mm of the unit that a header measures places in."""
    words = " ".join(text.decode(errors="replace") for text in _UNIT.findall(header)[:1])
    units = {_UNITS[word] for word in re.split(r'[\s"]+', words.lower()) if word in _UNITS}
    if len(units) > 1:
        raise InputError(f"{path} has several units ({shown(words)}); correct its header.")
    return units.pop() if units else 1.0


def _affine(image: sitk.Image) -> np.ndarray:
    dimensions = image.GetDimension()
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (dimensions, dimensions))
    steps = direction * image.GetSpacing()
    kept = min(dimensions, 3)
    affine[:kept, :kept] = steps[:kept, :kept]
    affine[:kept, 3] = image.GetOrigin()[:kept]
    return orientation_ras_lps(affine)
