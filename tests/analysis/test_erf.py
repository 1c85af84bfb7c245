# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Effective receptive fields of networks whose field is known, and the command."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from swinumamba_monai.analysis import effective_receptive_field, energy_within, load_inputs, write_erf
from swinumamba_monai.cli import main
from swinumamba_monai.networks import build_network


def test_field_of_a_convolution():
    """Two channels, two classes: the sum over classes of the kernel, its absolute values summed over channels."""
    network = nn.Conv2d(2, 2, 3, padding=1)
    field = effective_receptive_field(network, [torch.randn(2, 9, 8), torch.randn(2, 9, 8)])
    kernel = network.weight.detach().sum(0).abs().sum(0).numpy()
    expected = np.zeros((9, 8))
    expected[3:6, 3:6] = kernel
    np.testing.assert_allclose(field, expected, rtol=1e-5)


def test_energy():
    field = np.zeros((5, 5))
    field[2, 2], field[2, 4], field[0, 0] = 2, 1, 1
    shares = dict(energy_within(field, 4))
    assert list(shares.values()) == pytest.approx([0.5, 0.5, 0.75, 1.0])
    assert max(shares) == pytest.approx(8**0.5)


def test_inputs(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 40), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 40, 3), np.uint8)).save(tmp_path / "b.png")
    for channels in (1, 3):
        inputs = load_inputs(tmp_path, 5, channels, (32, 32))
        assert [tuple(x.shape) for x in inputs] == [(channels, 32, 32)] * 2
        assert all(x.isfinite().all() for x in inputs)
    first, again = (load_inputs(None, 1, 2, (4, 4), seed=1)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_titles_are_within_the_pictures(tmp_path, monkeypatch):
    within = []

    def savefig(figure: Figure, path: object, dpi: int) -> None:
        figure.draw_without_rendering()
        title, whole = figure._suptitle.get_window_extent(), figure.bbox
        within.append(whole.x0 <= title.x0 and title.x1 <= whole.x1)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", savefig)
    write_erf(tmp_path, {"SwinUMambaD": np.eye(64)}, "100 images of microscopy_test, weights of ckpt_path")
    assert within == [True, True]


def test_command(tmp_path, capsys):
    small = ["--roi_size", "32", "32", "--num_images", "1", "--device", "cpu", "--in_channels", "1"]
    torch.manual_seed(0)
    network = build_network("SegResNet", in_channels=1, out_channels=3, roi_size=(32, 32))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    out = tmp_path / "out"
    weights = ["--ckpt_path", str(tmp_path / "model.pt")]
    command = ["erf", "--network_name", "SegResNet", *weights, *small, "--output_dir", str(out)]
    assert main(command) == 0
    assert {path.name for path in out.iterdir()} == {"SegResNet_erf.png", "erf.png", "erf.csv"}
    lines = (out / "erf.csv").read_text().splitlines()
    assert lines[0] == "network,radius,share" and float(lines[-1].split(",")[2]) == pytest.approx(1)
    capsys.readouterr()
    for wrong, words in (
        (["erf", "--network_name", "UNet"], "there is no network 'UNet'"),
        (["erf", "--network_name", "SegResNet", "nnUNet", *weights], "2 networks need as many files"),
        (["erf", "--network_name", "nnUNet", *weights], "not of this network"),
        (["erf", "--network_name", "SegResNet", "nnUNet", *weights, weights[1]], "not of this network"),
        (["erf", "--network_name", "UNETR", "--roi_size", "30", "30"], "multiples of 16"),
        (["erf", "--images", str(tmp_path / "nowhere")], "does not exist"),
    ):
        assert main([*wrong[:1], *small, "--output_dir", str(out), *wrong[1:]]) == 1
        error = capsys.readouterr().err
        assert "computed over" not in error  # no work is lost
        assert words in error and error.splitlines()[-1].startswith("error: "), error
