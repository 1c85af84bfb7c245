# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.peers import score, train_stardist


@pytest.fixture
def dataset(tmp_path):
    ids = np.zeros((40, 40), np.uint16)
    ids[:10, :10], ids[20:30, 20:30] = 1, 2
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            Image.fromarray(ids).save(tmp_path / folder / f"{name}.png")
    items = [{"image": f"images/{name}.png", "label": f"labels/{name}.png"} for name in ("a", "b")]
    lists = {"name": "microscopy", "training": items, "validation": items, "test": items}
    (tmp_path / "datalist.json").write_text(json.dumps(lists))
    return tmp_path, ids


def test_every_nucleus_of_every_image_counts(dataset, tmp_path):
    folder, ids = dataset
    out = tmp_path / "out"
    out.mkdir()
    Image.fromarray(ids).save(out / "a_instances.png")
    half = np.where(ids == 1, 0, ids)  # the one on the border is missed
    half[30:33, 20:30] = 2  # IoU 0.77
    Image.fromarray(half).save(out / "b_instances.png")
    counts = score.score_folder(folder, out)
    assert score.summary(list(counts.values())) == "2 images: F1 0.833 0.833, AP 0.750, found 3, false 0, missed 1"
    score.write_scores(counts, out / "scores.csv")
    rows = (out / "scores.csv").read_text().split()
    assert rows[1:] == ["a,2,0,0,1.0000,2,0,0,1.0000", "b,1,0,1,0.6667,1,0,1,0.6667"]
    (out / "a_instances.png").unlink()
    with pytest.raises(FileNotFoundError, match="a_instances"):
        score.score_folder(folder, out)


def test_stardist_sees_the_map_of_its_image():
    """Turned and flipped alike: the image, whatever its brightness, is bright where the cell is."""
    np.random.seed(0)
    ids = np.zeros((20, 20), np.uint16)
    ids[2:9, 3:15] = 1
    seen = set()
    for _ in range(40):
        image, label = train_stardist.augment(ids.astype(np.float32), ids)
        assert np.array_equal(image > (image.min() + image.max()) / 2, label > 0)
        seen.add(label.tobytes())
    assert len(seen) == 8  # all turns and flips
