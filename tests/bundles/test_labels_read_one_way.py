# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Training, validation and evaluation read a label as ``prepare`` does: the same whole numbers."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from bundle_runs import config_files
from monai.bundle import ConfigParser
from monai.transforms import Compose
from PIL import Image

from swinumamba_monai.data import read_classes, read_instances
from swinumamba_monai.data.files.volumes import read_volume_label

NUMBERS = np.arange(24).reshape(4, 6) % 5


def load(bundle: str, image: Path, label: Path, *names: str, part: str = "load_transforms") -> np.ndarray:
    """What a config of the bundle makes of the label's file."""
    parser = ConfigParser()
    parser.read_config(config_files(bundle, *names))
    transforms = parser.get_parsed_content(part)
    transforms = Compose(transforms) if isinstance(transforms, list) else transforms
    return np.asarray(transforms({"image": str(image), "label": str(label)})["label"])[0]


def gray_png(path: Path, values: np.ndarray, bits: int) -> Path:
    """A gray PNG of 1, 2 or 4 bits a pixel, which Pillow does not write; chunk by chunk as the standard has them."""
    rows = b""
    for row in values:
        bit_row = "".join(f"{value:0{bits}b}" for value in row)
        bit_row += "0" * (-len(bit_row) % 8)
        rows += b"\0" + int(bit_row, 2).to_bytes(len(bit_row) // 8, "big")
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(file)
    return path


def volume(path: Path, voxels: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 2.0, 1.0])), path)
    return path


def scaled_volume(path: Path, numbers: np.ndarray) -> Path:
    """Stored as 60 times the number with the slope 1/60, which float32 holds a little too small."""
    image = nib.Nifti1Image((numbers * 60).astype(np.int16), np.diag([-1.0, -1.0, 2.0, 1.0]))
    image.header.set_slope_inter(1 / 60, 0)
    image.header["scl_slope"] = 1 / 60
    raw = bytearray(image.to_bytes())
    raw[112:116] = struct.pack("<f", np.nextafter(np.float32(1 / 60), np.float32(0)))
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("form", ["just below", "slope"])
@pytest.mark.parametrize(
    ("names", "part"), [(["train"], "load_transforms"), (["train", "evaluate"], "validate#preprocessing")]
)
def test_volumes(form, names, part, tmp_path):
    numbers = np.repeat(NUMBERS[..., None], 3, axis=-1)
    image = volume(tmp_path / "image.nii.gz", np.random.default_rng(0).random(numbers.shape, np.float32))
    if form == "slope":
        label = scaled_volume(tmp_path / "label.nii", numbers)
    else:
        label = volume(tmp_path / "label.nii", np.float32(0.9999) * numbers.astype(np.float32))
    assert (np.asarray(nib.load(label).dataobj)[numbers > 0] < numbers[numbers > 0]).any(), "not whole in the file"
    checked = read_volume_label(label)[0]
    np.testing.assert_array_equal(checked, numbers)
    loaded = load("abdomen_mri", image, label, *names, part=part)
    np.testing.assert_array_equal(np.unique(loaded), np.arange(5))
    if part != "load_transforms":  # evaluation keeps the axes of the file
        np.testing.assert_array_equal(loaded, numbers)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize(("bundle", "read"), [("endoscopy", read_classes), ("microscopy", read_instances)])
def test_gray_png_of_few_bits(bundle, read, bits, tmp_path):
    numbers = NUMBERS % 2**bits
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "image.png")
    label = gray_png(tmp_path / "label.png", numbers, bits)
    expected = numbers * (255 if bits == 1 else 1)  # one bit is said to be 0 and 255
    np.testing.assert_array_equal(read(label), expected)
    np.testing.assert_array_equal(load(bundle, tmp_path / "image.png", label, "train"), expected)


@pytest.mark.parametrize("background", [0, None])
def test_cell_numbers_that_float32_does_not_tell_apart(background, tmp_path):
    cells = np.arange(24).reshape(4, 6) + (1 << 25)
    assert np.unique(cells.astype(np.float32)).size < 24
    if background == 0:
        cells[0, 0] = 0
    tifffile.imwrite(tmp_path / "label.tif", cells.astype(np.uint32))
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "image.png")
    assert np.unique(read_instances(tmp_path / "label.tif")).size == 24
    loaded = load("microscopy", tmp_path / "image.png", tmp_path / "label.tif", "train")
    assert np.unique(loaded).size == 24
    np.testing.assert_array_equal(loaded == 0, cells == 0)


def test_small_cell_numbers_stay(tmp_path):
    Image.fromarray((NUMBERS * 50).astype(np.uint8)).save(tmp_path / "label.png")
    loaded = load("microscopy", tmp_path / "label.png", tmp_path / "label.png", "train")
    np.testing.assert_array_equal(loaded, NUMBERS * 50)
