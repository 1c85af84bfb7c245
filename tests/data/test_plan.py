# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The proposals are those that nnU-Net's planner made for the three datasets of the paper."""

from __future__ import annotations

import json

import numpy as np
import pytest

from swinumamba_monai.data.prepare.fingerprint import describe_fingerprint, make_fingerprint, propose_2d
from swinumamba_monai.data.prepare.inspection import PairReport

MANY = 1e12  # pixels: the 5 % rule does not matter


@pytest.mark.parametrize(
    ("shape", "num_classes", "roi_size", "batch_size"),
    [
        # The crops of the paper; the batch sizes of the released plans (30 / 13 / 12).
        ((320, 320), 14, [320, 320], 30),
        ((1080, 1920), 8, [384, 640], 13),
        ((512, 512), 3, [512, 512], 12),
    ],
)
def test_the_three_datasets_of_the_paper(shape, num_classes, roi_size, batch_size):
    assert propose_2d(shape, num_classes, MANY) == {"roi_size": roi_size, "batch_size": batch_size}


def test_small_datasets_get_small_batches():
    pixels = 20 * 320 * 320
    assert propose_2d((320, 320), 14, pixels)["batch_size"] == 2  # 5 % of 20 images would be 1, but 2 is the least
    assert propose_2d((320, 320), 14, 10 * pixels)["batch_size"] == 10


def test_crops_fit_their_poolings():
    for shape in ((100, 77), (31, 500), (300, 280)):
        roi_size = np.array(propose_2d(shape, 4, MANY)["roi_size"])
        assert (roi_size >= shape).all() and (roi_size % 4 == 0).all()
    # Pixels that are four times as long along one axis: pooling begins with the other.
    assert propose_2d((64, 256), 4, MANY, spacing=(4.0, 1.0))["roi_size"] == [64, 256]


def volume_report(shape, spacing, classes, orientation="RAS"):
    sample = np.arange(10, dtype=np.float32)[:, None]
    return PairReport(None, None, shape, spacing, "int16", orientation, 0, classes, sample)


def test_fingerprint_of_volumes():
    reports = [
        volume_report((200, 100, 10), (1.0, 2.0, 8.0), {0: 90, 1: 10}),
        volume_report((100, 200, 12), (2.0, 1.0, 8.0), {0: 100}, "LPS"),
        volume_report((150, 150, 14), (1.5, 1.5, 9.0), {0: 80, 1: 10, 2: 10}),
    ]
    prints = make_fingerprint(reports, ["background", "liver", "spleen"])
    assert prints["spacing_median"] == [1.5, 1.5, 8.0] and prints["spacing_max"] == [2.0, 2.0, 9.0]
    assert prints["size_median"] == [150, 150, 12]
    assert prints["orientations"] == {"RAS": 2, "LPS": 1}
    assert prints["classes"]["liver"] == {"fraction": 20 / 300, "cases": 2}
    assert prints["classes"]["spleen"] == {"fraction": 10 / 300, "cases": 1}
    assert prints["intensities"][0]["mean"] == 4.5 and prints["intensities"][0]["max"] == 9
    # At 1.5 mm the sizes are 133 x 133, 133 x 133 and 150 x 150, and axial slices are across the thick axis.
    proposal = prints["proposal"]
    assert proposal["axcodes"] == "PLS" and proposal["spacing"] == [1.5, 1.5] and proposal["roi_size"] == [160, 160]
    assert json.loads(json.dumps(prints)) == prints
    text = describe_fingerprint(prints)
    for words in ("3 images", "median 1.5 x 1.5 x 8", "liver: 6.667%, 2", "axcodes"):
        assert words in text


def test_slices_are_across_the_thick_axis():
    for spacing, axcodes, roi_size in (
        ((1.0, 6.0, 1.0), "ILA", [128, 64]),
        ((6.0, 1.0, 1.0), "IPR", [128, 32]),
        ((1.0, 1.0, 1.0), "PLS", [32, 64]),
    ):
        prints = make_fingerprint([volume_report((64, 32, 128), spacing, {0: 1, 1: 1})] * 50, ["background", "liver"])
        assert prints["proposal"]["axcodes"] == axcodes and prints["proposal"]["roi_size"] == roi_size
