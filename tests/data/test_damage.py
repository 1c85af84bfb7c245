# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A bit that turned over in a packed file: what the file's check sums are there for, and no other numbers."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from swinumamba_monai.data.files.images import read_classes
from swinumamba_monai.data.files.volume_writing import write_volume
from swinumamba_monai.data.files.volumes import read_volume_label
from swinumamba_monai.errors import InputError

_TRIES = 60
LABELS = np.random.default_rng(0).integers(0, 4, (40, 30, 1)).repeat(5, axis=2).astype(np.uint8)
AFFINE = np.diag([-1.5, -1.25, 2, 1])


def write_pair(path):
    nib.save(nib.Nifti1Pair(LABELS, AFFINE), path)
    voxels = path.with_suffix(".img")
    path.with_suffix(".img.gz").write_bytes(gzip.compress(voxels.read_bytes()))
    voxels.unlink()


def write_itk_pair(path):
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.GetImageFromArray(LABELS.T), str(path), useCompression=True)


WRITE = {
    "a.hdr a.img.gz": write_pair,
    "a.mhd a.zraw": write_itk_pair,
    "a.nhdr a.raw.gz": write_itk_pair,
    "a.png": lambda path: Image.fromarray(LABELS[..., 0]).save(path),
}


@pytest.mark.parametrize("names", ["a.nii.gz", "a.mgz", "a.nrrd", "a.mha", *WRITE])
def test_damage_is_noticed(names, tmp_path):
    name, *others = names.split()
    if name.endswith((".nrrd", ".mha")):
        pytest.importorskip("SimpleITK")
    path, packed = tmp_path / name, tmp_path / (others or [name])[0]
    WRITE.get(names, lambda path: write_volume(path, LABELS, AFFINE))(path)
    read = read_classes if name == "a.png" else lambda path: read_volume_label(path)[0]
    truth, content = read(path), packed.read_bytes()
    assert set(np.unique(truth)) == {0, 1, 2, 3}
    rng, noticed = np.random.default_rng(0), 0
    for place in rng.integers(len(content) // 2, len(content), _TRIES):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        packed.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read(path), truth)
        except InputError as error:
            assert "cannot be decoded" in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > _TRIES // 2
    packed.write_bytes(content[:-6])
    with pytest.raises(InputError, match="cannot be decoded"):
        read(path)


def test_lines_before_packed_voxels_are_no_damage(tmp_path):
    pytest.importorskip("SimpleITK")
    write_volume(tmp_path / "a.nrrd", LABELS, AFFINE)
    header, voxels = (tmp_path / "a.nrrd").read_bytes().split(b"\n\n", 1)
    (tmp_path / "b.raw.gz").write_bytes(b"two\nlines\n" + voxels)
    (tmp_path / "b.nhdr").write_bytes(header + b"\nline skip: 2\ndata file: b.raw.gz\n\n")
    np.testing.assert_array_equal(read_volume_label(tmp_path / "b.nhdr")[0], LABELS)
