# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

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
from swinumamba_monai.inference import InstanceWriter

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
