# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import SaveImage
from PIL import Image

from swinumamba_monai.atomic import replacing
from swinumamba_monai.errors import InputError
from swinumamba_monai.inference import ClassWriter, InstanceWriter, MapWriter, PictureWriter, VolumeWriter

IDS = np.zeros((5, 9), np.int32)
IDS[0, 8], IDS[4, 0], IDS[2, 3:6] = 1, 300, 65535


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)) if path.suffix == ".png" else tifffile.imread(path)


def write(path: Path, ids: np.ndarray | torch.Tensor) -> None:
    writer = InstanceWriter()
    writer.set_data_array(ids)
    writer.set_metadata({}, resample=False)
    writer.write(path)


@pytest.mark.parametrize("extension", [".png", ".tif"])
def test_save_image_writes_exact_ids_rows_first_under_the_name_of_the_image(extension: str, tmp_path: Path) -> None:
    config = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": str(tmp_path),
        "output_ext": extension,
        "output_postfix": "cells",
        "separate_folder": False,
        "resample": False,
        "print_log": False,
        "writer": "swinumamba_monai.inference.InstanceWriter",
    }
    save = ConfigParser({"save": config}).get_parsed_content("save")
    meta = {"filename_or_obj": "/data/plate.7.png", "spatial_shape": np.array([5, 9])}
    save({"pred": MetaTensor(torch.tensor(IDS)[None], meta=meta)})
    assert [path.name for path in tmp_path.iterdir()] == [f"plate.7_cells{extension}"]
    ids = read(tmp_path / f"plate.7_cells{extension}")
    assert ids.dtype == np.uint16
    np.testing.assert_array_equal(ids, IDS)


@pytest.mark.parametrize("ids", [IDS, IDS[None].astype(np.float32), IDS[:, :3]], ids=["2-d", "float", "narrow"])
@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_what_was_written_is_read_back(ids: np.ndarray, name: str, tmp_path: Path) -> None:
    write(tmp_path / name, ids)
    np.testing.assert_array_equal(read(tmp_path / name), ids.reshape(ids.shape[-2:]))


def test_more_than_16_bits(tmp_path: Path) -> None:
    ids = IDS + (IDS == 300) * 70_000
    with pytest.raises(InputError, match=r"a\.png.* 70300.*\.tif"):
        write(tmp_path / "a.png", ids)
    assert not list(tmp_path.iterdir())
    write(tmp_path / "a.tif", ids)
    assert read(tmp_path / "a.tif").dtype == np.uint32
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), ids)


def test_save_image_passes_the_sentence_on(tmp_path: Path) -> None:
    save = SaveImage(tmp_path, output_ext=".png", writer=InstanceWriter, resample=False)
    with pytest.raises(RuntimeError, match=r"InputError: .*set output_ext to '\.tif'"):
        save(torch.tensor(IDS)[None] + 10)


def test_tiff_is_compressed(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", np.zeros((500, 400), np.int32))
    assert (tmp_path / "a.tif").stat().st_size < 10_000  # 400 kB without


@pytest.mark.parametrize(
    ("ids", "message"),
    [(IDS[None].repeat(3, 0), "shape"), (IDS - 1, "negative"), (IDS * 0.5, "fractional")],
    ids=["channels", "negative", "fractional"],
)
def test_what_is_no_instance_map_is_refused(ids: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write(tmp_path / "a.png", ids)


def test_options_that_would_change_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resample=False"):
        InstanceWriter().set_metadata({}, resample=True)
    with pytest.raises(InputError, match="scale"):
        InstanceWriter(scale=255)
    with pytest.raises(InputError, match=r"output_ext"):
        write(tmp_path / "a.jpg", IDS)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def save_all(writer: type, array: np.ndarray, path: Path) -> None:
    instance = writer()
    instance.set_data_array(array)
    instance.set_metadata({})
    instance.write(path)


def test_classes_are_8_bit_gray(tmp_path: Path) -> None:
    classes = np.zeros((1, 5, 9))
    classes[0, 0, 8], classes[0, 4, 0] = 7, 255
    for name in ("a.png", "a.tif"):
        save_all(ClassWriter, classes, tmp_path / name)
        assert read(tmp_path / name).dtype == np.uint8
        np.testing.assert_array_equal(read(tmp_path / name), classes[0])
    with pytest.raises(InputError, match="up to 255, but got 256"):
        save_all(ClassWriter, np.full((5, 9), 256), tmp_path / "b.png")
    with pytest.raises(InputError, match="fractional"):
        save_all(ClassWriter, np.full((5, 9), 0.5), tmp_path / "b.png")


def test_pictures_are_rgb(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (3, 5, 9), dtype=np.uint8)
    save_all(PictureWriter, picture, tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.moveaxis(picture, 0, -1))
    with pytest.raises(InputError, match=r"\(3, H, W\)"):
        save_all(PictureWriter, picture[:2], tmp_path / "b.png")


def test_maps_are_float_pages(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).random((4, 5, 9), dtype=np.float32)
    save_all(MapWriter, maps, tmp_path / "a.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), maps)
    save_all(MapWriter, maps[:1], tmp_path / "b.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), maps[0])
    with pytest.raises(InputError, match=r"output_ext to '\.tif'"):
        save_all(MapWriter, maps, tmp_path / "a.png")


@pytest.mark.parametrize("axes", permutations(range(3)), ids=str)
def test_volumes_keep_voxels_and_affine_in_every_orientation(axes: tuple[int, ...], tmp_path: Path) -> None:
    """Also where the first two axes of the file are not those of the body, as in a coronal or sagittal volume."""
    volume = np.random.default_rng(0).integers(0, 14, (1, 5, 4, 3)).astype(np.uint8)
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) * [2.0, -3.0, 4.0])[list(axes)]
    affine[:3, 3] = 10, -20, 30
    meta = {"affine": torch.from_numpy(affine), "filename_or_obj": "a.nii.gz", "spatial_shape": volume.shape[1:]}
    save = SaveImage(tmp_path, "x", ".nii.gz", writer=VolumeWriter, resample=False, separate_folder=False)
    save(MetaTensor(volume, meta=meta))
    written = nib.load(tmp_path / "a_x.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), volume[0])
    np.testing.assert_allclose(written.affine, affine)
