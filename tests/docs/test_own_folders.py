# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the table of folders of pictures in docs/own_data.md is made, and read again as it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from doc_tables import rows
from own_pictures import NAMES, check, image_of, numbers_of, one_coco_file, same_cells, save

from swinumamba_monai.data import load_datalist
from swinumamba_monai.data.files.images import read_classes, read_image, read_instances
from swinumamba_monai.tasks.endoscopy import prepare_endoscopy
from swinumamba_monai.tasks.microscopy import prepare_microscopy


def fill(pattern: str, name: str, source: Path, is_label: bool) -> None:
    """Write the file of a layout for another image than the one that the page names."""
    stem = re.compile(r"(?<![a-z])[ab](?![a-z])")
    save(source / stem.sub(name, pattern), numbers_of(name) if is_label else image_of(name))


@pytest.mark.parametrize("row", rows("Folders of pictures"))
def test_folders(row, tmp_path):
    source = tmp_path / "source"
    patterns = re.findall(r"`([^`]+)`", row)
    endoscopy = "video" in row
    if "instances.json" in row:
        for name in NAMES:
            save(source / "images" / f"{name}.png", image_of(name))
        (source / "annotations").mkdir()
        one_coco_file(source / "annotations")
    elif row.startswith("`s1/"):
        for name in NAMES:
            save(source / name / "images" / f"{name}.png", image_of(name))
            if len(patterns) == 2:
                save(source / name / "masks" / "labels.tif", numbers_of(name))
            else:
                for number in (1, 2, 3):
                    save(source / name / "masks" / f"{number}.png", (numbers_of(name) == number) * np.uint8(255))
    elif "frame_80" in row:
        for video, name in enumerate(NAMES):
            for pattern in patterns:
                path = pattern.replace("video01", f"video{video:02d}")
                save(source / path, np.dstack([numbers_of(name)] * 3) if "mask" in path else image_of(name))
            save(source / path.replace("watershed", "color"), image_of("x"))
    elif len(patterns) == 4:
        for name in NAMES:
            first = 2 if name == "d" else 0
            for number, pattern in enumerate(patterns[first : first + 2]):
                fill(pattern, name, source, bool(number))
    else:
        for video, name in enumerate(NAMES):
            for number, pattern in enumerate(patterns):
                fill(
                    pattern.replace("video01", f"video{video:02d}"),
                    name if not endoscopy else "a",
                    source,
                    bool(number),
                )
                if endoscopy:
                    path = source / pattern.replace("video01", f"video{video:02d}")
                    save(path, numbers_of(name) if number else image_of(name))
    if endoscopy:
        (tmp_path / "classes.json").write_text(json.dumps({"background": 0, "x": 1, "y": 2, "z": 3}))
        prepare_endoscopy(source, tmp_path / "out", None, tmp_path / "classes.json")
        check(tmp_path / "out", {name: numbers_of(name) for name in NAMES}, read_classes, np.array_equal)
        return
    prepare_microscopy(source, tmp_path / "out")
    if len(patterns) == 4:
        (test,) = load_datalist(tmp_path / "out", "test")
        assert np.array_equal(read_image(test["image"]), image_of("d")), "the folder is the section"
    check(tmp_path / "out", {name: numbers_of(name) for name in NAMES}, read_instances, same_cells)
