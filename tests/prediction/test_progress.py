# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""As many windows are announced as the network then sees."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from monai.inferers import SliceInferer, SlidingWindowInferer

from swinumamba_monai.inference import MirrorInferer
from swinumamba_monai.prediction.progress import bar_of, count_windows, counting


@pytest.mark.parametrize("shape", [(10, 10), (64, 64), (65, 64), (100, 230), (40, 70, 5)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("mirror_axes", [[], [0, 1]])
def test_windows_are_counted(shape, overlap, mirror_axes):
    options = {"roi_size": (32, 64), "sw_batch_size": 3, "overlap": overlap}
    volume = len(shape) == 3
    window = SliceInferer(spatial_dim=2, **options) if volume else SlidingWindowInferer(**options)
    inferer, seen = MirrorInferer(window, mirror_axes), []

    def network(batch):
        seen.append(len(batch))
        return batch

    for _ in range(2):  # SliceInferer changes its roi_size when it is first called
        seen.clear()
        announced = count_windows(inferer, shape)
        with counting(network, announced, shown=False) as counted:
            inferer(torch.zeros(1, 1, *shape), counted)
        assert sum(seen) == announced


def test_a_bar_appears_when_an_image_takes_long(monkeypatch, capsys):
    for seconds in ("PATIENCE", "SECONDS_IN_A_FILE"):
        monkeypatch.setattr(f"swinumamba_monai.prediction.progress.{seconds}", 0)
    with counting(torch.nn.Identity(), 4, shown=True) as counted:
        for _ in range(2):
            counted(torch.zeros(2, 1, 1, 1))
    assert "4/4" in capsys.readouterr().err


def test_what_is_logged_has_lines_of_its_own(monkeypatch, capsys):
    """On a terminal, where a carriage return begins the line anew; in the end the bar stands below all of it."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stderr)])
    with bar_of(2, "image") as bar:
        for number in range(2):
            logging.getLogger("swinumamba_monai").warning("image %d is dim", number)
            bar.update()
    lines = [line.split("\r")[-1].rstrip() for line in capsys.readouterr().err.rstrip("\n").split("\n")]
    assert lines[:2] == ["image 0 is dim", "image 1 is dim"] and "2/2" in lines[2] and len(lines) == 3
