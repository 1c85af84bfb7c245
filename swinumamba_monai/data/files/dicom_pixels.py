# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""One DICOM file: its header, and the values of its pixels as its header means them."""

from __future__ import annotations

import logging
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
from monai.utils import optional_import

from swinumamba_monai.data.files.limits import check_unfolding
from swinumamba_monai.errors import InputError, explained, log_once, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pydicom

logger = logging.getLogger(__name__)

dcmread, has_pydicom = optional_import("pydicom", name="dcmread")
_read_dataset, _ = optional_import("pydicom.filereader", name="read_dataset")
_apply_modality_lut, _ = optional_import("pydicom.pixel_data_handlers.util", name="apply_modality_lut")
# pydicom 3 gave the function a new name, and pydicom 4 will not have the old one.
_generate_frames, _is_pydicom_3 = optional_import("pydicom.encaps", name="generate_frames")
_generate_frames_2, _ = optional_import("pydicom.encaps", name="generate_pixel_data_frame")

_MAX_SAMPLES, _MAX_BITS = 4, 64  # numbers of samples and of bits of a pixel
_MAX_WHOLE_BITS = 32
# The one syntax whose whole file is compressed, so that reading its header reads all of it, how large such a file may
# be, and to what it may unfold, which pydicom holds twice.
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MAX_DEFLATED_BYTES, _MAX_INFLATED_BYTES = 1 << 21, 1 << 28
_PREAMBLE, _MARK = 128, b"DICM"
# Old programs write neither; such a file begins with an element of its header, by the group of its tag.
_GROUPS = (b"\x02\0", b"\x08\0")
_MAX_FIRST_LENGTH = 64  # bytes of its value
_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", _DEFLATED)  # not compressed, lowest byte first
_GRAY = ("MONOCHROME1", "MONOCHROME2")

# What decodes a frame of a compressed file, by the end of its transfer syntax. pydicom decodes the others, which are
# not compressed, deflated or run-length encoded; for these it needs plugins, and before version 3 it fails on signed
# JPEG 2000.
DECODERS = {
    f"1.2.840.10008.1.2.4.{end}": decode
    for decode, ends in (
        (imagecodecs.jpeg_decode, (50, 51)),
        (imagecodecs.ljpeg_decode, (57, 70)),
        (imagecodecs.jpegls_decode, (80, 81)),
        (imagecodecs.jpeg2k_decode, (90, 91, 201, 202, 203)),
    )
    for end in ends
}


def is_dicom_file(file: Path) -> bool:
    """Whether a file is DICOM by its suffix, or by how it begins."""
    if not file.is_file() or file.name.startswith("."):
        return False
    if file.suffix.lower() in (".dcm", ".dicom", ".ima"):
        return True
    return _has_mark(file) or _begins_with_element(file)


def _has_mark(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(_PREAMBLE + len(_MARK))[_PREAMBLE:] == _MARK


def _begins_with_element(file: Path) -> bool:
    """Whether a file without preamble begins with a low tag of the first groups, with a VR or with a short length."""
    with file.open("rb") as stream:
        beginning = stream.read(8)
    if len(beginning) < 8 or beginning[:2] not in _GROUPS or beginning[3] != 0:
        return False
    has_vr = beginning[4:6].isalpha() and beginning[4:6].isupper()
    return has_vr or int.from_bytes(beginning[4:], "little") <= _MAX_FIRST_LENGTH


def read_header(file: Path, tags: Sequence[str] | None = None) -> pydicom.Dataset:
    """The header of a DICOM file.

    Args:
        file: path of the file.
        tags: names of the elements that are wanted, without pixels; None for all of the file.

    Raises:
        InputError: The file unfolds to more than it may. Whatever pydicom raises for a broken file comes out of here.
    """
    syntax, begin = _transfer_syntax(file)
    if syntax == _DEFLATED:
        _check_deflated(file, begin)
    force = not _has_mark(file) and _begins_with_element(file)
    if tags is None:
        return dcmread(file, force=force)
    return dcmread(file, force=force, stop_before_pixels=True, specific_tags=list(tags))


def _check_deflated(file: Path, begin: int) -> None:
    """Refuse a file, deflated from ``begin`` on, that is large or unfolds to much, and keep nothing of it."""
    if file.stat().st_size > _MAX_DEFLATED_BYTES:
        raise InputError(f"{file} is a deflated file of over {_MAX_DEFLATED_BYTES} bytes; store it uncompressed.")
    content, inflate, size = file.read_bytes()[begin:], zlib.decompressobj(-zlib.MAX_WBITS), 0
    while part := inflate.decompress(content, 1 << 20):
        content, size = inflate.unconsumed_tail, size + len(part)
        if size > _MAX_INFLATED_BYTES:
            raise InputError(f"{file} is deflated, and unfolds to over {_MAX_INFLATED_BYTES} bytes; replace it.")


def _transfer_syntax(file: Path) -> tuple[str | None, int]:
    """What the file says of how it is written, None where it does not say it, and where that ends."""
    with file.open("rb") as stream:
        stream.seek(_PREAMBLE + len(_MARK) if _has_mark(file) else 0)
        meta = _read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        return getattr(meta, "TransferSyntaxUID", None), stream.tell()


def read_pixels(file: Path, max_pixels: int) -> tuple[pydicom.Dataset, np.ndarray]:
    """The header of a file and its pixels; what the header claims is checked before they are read.

    Bits beyond those that are stored (overlays are kept there) are cleared, and of MONOCHROME1, where the highest
    value is black, the opposite is returned: bright is bright. The rescaling is left to the caller.

    Args:
        file: a file with gray pixels.
        max_pixels: largest number of pixels that is read.

    Returns:
        The header and the pixels (frames, rows, columns).

    Raises:
        InputError: The file cannot be decoded, has colours, or claims too much.
    """
    with explained(f"{file} is a slice that cannot be decoded", "replace it, or convert the series to NIfTI"):
        dataset = read_header(file)
        if "DirectoryRecordSequence" in dataset:
            raise InputError(f"{file} lists the files of a CD; give the folder that it lies in.")
        frames = int(getattr(dataset, "NumberOfFrames", None) or 1)
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        claimed = rows * columns * frames
        if claimed > max_pixels:
            raise InputError(f"{file} claims {claimed} pixels, but {max_pixels} is the limit here; replace it.")
        samples, bits = int(getattr(dataset, "SamplesPerPixel", 1)), int(dataset.BitsAllocated)
        if not (0 < samples <= _MAX_SAMPLES and 0 < bits <= _MAX_BITS):
            raise InputError(f"{file} claims {samples} samples of {bits} bits in a pixel; replace it.")
        check_unfolding(file, claimed * samples * -(-bits // 8))
        kind = str(getattr(dataset, "PhotometricInterpretation", "MONOCHROME2"))
        if samples > 1 or kind not in _GRAY:
            raise InputError(f"{file} is in colour ({shown(kind)}), but a gray slice is needed; take its series out.")
        syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
        decode = DECODERS.get(syntax)
        if decode is None:
            # From version 3 on pydicom moves the bits itself.
            has_size = len(dataset.get("PixelData") or b"") - claimed * (bits // 8) in (0, 1)
            is_plain = (syntax in _PLAIN or (syntax is None and has_size)) and "PixelData" in dataset
            is_plain = is_plain and bits in (8, 16, 32)
            pixels = np.frombuffer(dataset.PixelData, f"<u{bits // 8}", claimed) if is_plain else dataset.pixel_array
        else:
            parts = (
                _generate_frames(dataset.PixelData, number_of_frames=frames)
                if _is_pydicom_3
                else _generate_frames_2(dataset.PixelData, frames)
            )
            pixels = np.stack([decode(part) for part in parts])
        pixels = pixels.reshape(frames, rows, columns)
        return dataset, _meant_values(pixels, dataset, kind == "MONOCHROME1", decode is not None)


def rescale(pixels: np.ndarray, dataset: pydicom.Dataset, slope: object, intercept: object, file: Path) -> np.ndarray:
    """Pixels in the unit of the device: by the table of the file where it has one, else by slope and intercept.

    Args:
        pixels: numbers as they are stored, (frames, rows, columns).
        dataset: header of the file.
        slope: factor of the header; None for 1, and so is 0, which the log says.
        intercept: offset of the header; None for 0.
        file: path of the file, for the sentence.

    Raises:
        InputError: The slope or the intercept is no number, or the table is broken.
    """
    with explained(f"{file} has a rescale slope or intercept that is no number", "replace it"):
        if getattr(dataset, "ModalityLUTSequence", None):
            return _apply_modality_lut(pixels, dataset).astype(np.float32)
        slope, intercept = float(1 if slope is None else slope), float(0 if intercept is None else intercept)
        if not np.isfinite([slope, intercept]).all():
            raise ValueError("not finite")
    if slope == 0 and pixels.any():  # every voxel would be the intercept
        slope = 1.0
        log_once(logger, logging.WARNING, f"{file.parent}: a rescale slope of 0 is taken for 1, as ITK and dcm2niix do")
    if (slope, intercept) == (1, 0):
        return pixels
    return pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _meant_values(pixels: np.ndarray, dataset: pydicom.Dataset, inverted: bool, is_compressed: bool) -> np.ndarray:
    """What is stored in the bits that the header names, with its sign."""
    if pixels.dtype.kind == "f":
        return -pixels if inverted else pixels
    allocated = int(dataset.BitsAllocated)
    stored = int(getattr(dataset, "BitsStored", None) or allocated)
    highest = int(getattr(dataset, "HighBit", None) or stored - 1)
    if not stored <= highest + 1 <= allocated <= _MAX_WHOLE_BITS:
        raise ValueError(f"{stored} bits up to bit {highest} of {allocated}")
    is_signed = bool(getattr(dataset, "PixelRepresentation", 0))
    # A codec knows no position of its bits.
    values = pixels.astype(np.int64) >> (0 if is_compressed else highest + 1 - stored)
    values &= (1 << stored) - 1
    if is_signed:
        sign = 1 << (stored - 1)
        values = (values ^ sign) - sign
    if inverted:
        values = (-1 if is_signed else (1 << stored) - 1) - values
    return values.astype(f"{'i' if is_signed else 'u'}{1 << max(allocated - 1, 7).bit_length() - 3}")
