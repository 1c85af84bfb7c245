# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the table of DICOM in docs/own_data.md is made, and read again as it says."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import partial
from pathlib import Path

import imagecodecs
import nibabel as nib
import numpy as np
import pytest
from doc_tables import rows
from own_volumes import AFFINE, FILES, SHAPE, VOXELS, check, mosaic, pydicom, refused, series

from swinumamba_monai.data.files.dicom_pixels import DECODERS
from swinumamba_monai.data.files.volumes import read_volume
from swinumamba_monai.data.listing import load_volumes
from swinumamba_monai.errors import InputError


def echoes(folder: Path) -> None:
    for number, echo in enumerate((2.3, 4.6)):
        series(folder / f"{number}", VOXELS + number, EchoTime=echo)
    (item,) = load_volumes(folder, "EchoTime 4.6")
    check(item["image"], VOXELS + 1)


def lone(folder: Path) -> None:
    for number in range(SHAPE[2]):
        place = [-40, 30, 7 + 1.25 * number]
        series(folder / f"{number}", VOXELS[..., [number]], SeriesInstanceUID=f"1.2.{number}", StudyInstanceUID="1.4",
               ImagePositionPatient=place, SOPInstanceUID=f"1.5.{number}")  # fmt: skip
    (item,) = load_volumes(folder)
    check(item["image"])


def directions(folder: Path) -> None:
    """A coronal stack of three slices, then its first alone, in the series and at the place of the axial one."""
    series(folder / "one")
    series(folder / "other", VOXELS[..., :3] + 1, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    for number in range(3):
        dataset = pydicom.dcmread(folder / "other" / f"{number}.dcm")
        dataset.ImagePositionPatient = [-40, 30 - 1.25 * number, 7]
        dataset.save_as(folder / "one" / f"coronal{number}.dcm")
    with pytest.raises(InputError, match=r"2 series: .*'axial' .*'coronal'.*choose with --series"):
        load_volumes(folder / "one")
    (item,) = load_volumes(folder / "one", "axial")
    check(item["image"])
    (item,) = load_volumes(folder / "one", "coronal")
    voxels, affine = read_volume(item["image"])
    np.testing.assert_array_equal(voxels, VOXELS[..., 2::-1] + 1)  # the normal leads to the back
    np.testing.assert_allclose(affine[:3, 2], [0, -1.25, 0], atol=1e-9)
    for number in (1, 2):
        (folder / "one" / f"coronal{number}.dcm").unlink()
    check(folder / "one")


def monochrome1(folder: Path) -> None:
    check(series(folder, 4095 - VOXELS, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11))


def overlays(folder: Path) -> None:
    check(series(folder, VOXELS | 0x7000, BitsStored=12, HighBit=11))


def rescaled(folder: Path) -> None:
    check(series(folder, RescaleSlope=2, RescaleIntercept=-3), VOXELS * 2.0 - 3)
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    table = Dataset()
    table.add_new("LUTDescriptor", "US", [256, 0, 16])
    table.add_new("LUTData", "US", [3 * number for number in range(256)])
    check(series(folder, ModalityLUTSequence=Sequence([table])), VOXELS * 3)


def enhanced(folder: Path) -> None:
    source = Path(nib.__file__).parent / "nicom" / "tests" / "data" / "philips_mprage.dcm.gz"
    (folder / "a.dcm").write_bytes(gzip.decompress(source.read_bytes()))
    assert read_volume(folder)[0].shape == (256, 256, 176)


def tilted(folder: Path) -> None:
    voxels, affine = read_volume(series(folder, ImageOrientationPatient=[1, 0, 0, 0, 0.96, -0.28]))
    np.testing.assert_array_equal(voxels, VOXELS)
    expected = AFFINE.copy()
    expected[:3, 1] = 2 * np.array([0, -0.96, -0.28])
    np.testing.assert_allclose(affine, expected, atol=1e-9)


def uneven(folder: Path) -> None:
    series(folder)
    (folder / "2.dcm").unlink()
    refused("misses slices", lambda folder: folder, folder)
    late = pydicom.dcmread(folder / "4.dcm")
    late.ImagePositionPatient = [-40, 30, 13.7]
    late.save_as(folder / "4.dcm")
    (folder / "1.dcm").unlink()
    refused("misses slices|uneven distances", lambda folder: folder, folder)


def lossy(encode: Callable, scale: int, dtype: type, folder: Path, syntax: str) -> None:
    """Near to the voxels, which are smooth."""
    smooth = (np.add.outer(np.add.outer(np.arange(16), np.arange(16)), np.arange(3)) * scale).astype(dtype)
    voxels, _ = read_volume(series(folder, smooth, encode, syntax))
    assert np.abs(voxels.astype(int) - smooth).max() <= 4 * scale and voxels.shape == smooth.shape


def of_pydicom(name: str, folder: Path, syntax: str) -> None:
    from swinumamba_monai.data.files.dicom_pixels import read_pixels

    if not (FILES / name).exists():
        pytest.skip("this pydicom has no such file")
    dataset, frames = read_pixels(FILES / name, 1 << 24)
    assert dataset.file_meta.TransferSyntaxUID == syntax and len(np.unique(frames)) > 20


def exact(encode: Callable | None, folder: Path, syntax: str) -> None:
    check(series(folder, VOXELS.astype(np.uint16), encode, syntax))


jpeg2000 = partial(imagecodecs.jpeg2k_encode, level=0, codecformat="j2k")
lossless = partial(imagecodecs.ljpeg_encode, bitspersample=16)
SYNTAXES: dict[str, Callable[..., None]] = {
    "1.2.840.10008.1.2": partial(exact, None),
    "1.2.840.10008.1.2.1": partial(exact, None),
    "1.2.840.10008.1.2.1.99": partial(of_pydicom, "image_dfl.dcm"),
    "1.2.840.10008.1.2.2": partial(of_pydicom, "MR_small_bigendian.dcm"),
    "1.2.840.10008.1.2.5": partial(of_pydicom, "MR_small_RLE.dcm"),
    "1.2.840.10008.1.2.4.50": partial(lossy, partial(imagecodecs.jpeg8_encode, level=95), 5, np.uint8),
    "1.2.840.10008.1.2.4.51": partial(of_pydicom, "JPGExtended.dcm"),
    "1.2.840.10008.1.2.4.57": partial(exact, lossless),
    "1.2.840.10008.1.2.4.70": partial(exact, lossless),
    "1.2.840.10008.1.2.4.80": partial(exact, imagecodecs.jpegls_encode),
    "1.2.840.10008.1.2.4.81": partial(lossy, partial(imagecodecs.jpegls_encode, level=3), 5, np.uint16),
    "1.2.840.10008.1.2.4.90": partial(exact, jpeg2000),
    "1.2.840.10008.1.2.4.91": partial(of_pydicom, "JPEG2000.dcm"),
}
THROUGHPUT = {f"1.2.840.10008.1.2.4.{end}" for end in (201, 202, 203)}
PIXEL_ROWS: dict[str, Callable[[Path], None]] = {
    "MONOCHROME1": monochrome1,
    "fewer bits stored than allocated": overlays,
    "a rescale slope or a table": rescaled,
    "frames of an enhanced file": enhanced,
    "slices of several echoes, times or kinds at one place in a series": echoes,
    "stacks in several directions in a series": directions,
    "slices with a SeriesInstanceUID each": lone,
    "Siemens MOSAIC": mosaic,
    "slices that lean, of a tilted gantry": tilted,
    "slices at uneven distances, with one missing, or one beside the others": uneven,
    "in colour": partial(refused, "in colour", partial(series, PhotometricInterpretation="RGB")),
}


@pytest.mark.parametrize("row", rows("DICOM"))
def test_dicom(row, tmp_path):
    if row in PIXEL_ROWS:
        PIXEL_ROWS[row](tmp_path)
    elif row in THROUGHPUT:  # nothing here writes it
        assert DECODERS[row] is DECODERS["1.2.840.10008.1.2.4.90"]
    else:
        SYNTAXES[row](tmp_path, row)


def test_every_syntax_is_in_the_table():
    assert {row for row in rows("DICOM") if row.startswith("1.2.840.10008.1.2.4.")} == set(DECODERS)
