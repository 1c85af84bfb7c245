# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Which rows of earlier runs still say something."""

from __future__ import annotations

import shutil

import pytest

from swinumamba_monai.prediction.summary import COLUMNS, is_there, rows_that_count


def row(name: str, image: object, error: str = "") -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | {"name": name, "image": str(image), "error": error}


@pytest.mark.parametrize(
    "image, there",
    [
        ("clip.mp4", True),
        ("clip#000007.mp4", True),
        ("other#000007.mp4", False),
        ("study", True),
        ("study.dicom", True),
        ("study/{uid}.dicom", True),
        ("study/study.dicom", True),
        ("other.dicom", False),
        ("study/1.2.3.dicom", False),
        ("other/{uid}.dicom", False),
    ],
)
def test_a_part_of_a_file_and_a_dicom_series_are_there_by_their_names(image, there, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "study").mkdir()
    file = shutil.copy(pydicom.data.get_testdata_file("MR_small.dcm"), tmp_path / "study")
    uid = pydicom.dcmread(file).SeriesInstanceUID
    assert is_there(str(tmp_path / image.format(uid=uid))) == there


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_has_one_row_when_the_image_gets_another_name(overwrite, tmp_path):
    """Beside the images of another folder it is called after its own, too."""
    image, other = tmp_path / "x.png", tmp_path / "y.png"
    image.touch()
    other.touch()
    rows = {"x": row("x", image, "x.png: bad"), "y": row("y", other, "y.png: bad")}
    assert rows_that_count(rows, {"a/x": str(image)}, overwrite) == {"y": rows["y"]}
