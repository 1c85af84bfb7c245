# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The training of the shipped nuclei: crops and their flows, looks, and the whole command at toy size on a CPU."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from skimage.color import rgb2hed
from torch import nn

from benchmarks.nuclei import stains, train
from benchmarks.nuclei.crops import Atlas, RandomCrops, Views, make_sample
from benchmarks.nuclei.draws import Draws
from benchmarks.nuclei.looks import BRIGHTFIELD, CLIP, FLUORESCENCE, STAINED, RandomLooks
from benchmarks.nuclei.stains import DAB, EOSIN, HEMATOXYLIN, Stains
from swinumamba_monai.data import synthesize_microscopy
from swinumamba_monai.data.synthetic.microscopy import synthesize_image
from swinumamba_monai.instances.flows import FLOW_CHANNELS
from swinumamba_monai.networks import build_network
from swinumamba_monai.pretrained import load_pretrained

CPU = torch.device("cpu")
CENTRES = np.array([[20.0, 16.0], [24.0, 40.0], [46.0, 27.0]])  # of discs
SHAPE, RADIUS = (60, 54), 9


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    """Of one image: bright discs, the last two of which nearly touch, on a dark ramp."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    instances = np.zeros(SHAPE, np.int32)
    for number, (row, column) in enumerate(CENTRES, start=5):
        instances[(rows - row) ** 2 + (columns - column) ** 2 <= RADIUS**2] = number
    image = np.where(instances > 0, 200, 10 + columns / 2).astype(np.uint8)
    return Atlas([make_sample(image, instances)], CPU)


def one_view(angle: float, flip: int, scale: float, centre: tuple[float, float]) -> Views:
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[[cos, -sin * flip], [sin, cos * flip]]]) / scale
    return Views(torch.zeros(1, dtype=torch.long), matrix, torch.tensor([centre]))


UPRIGHT = one_view(0, 1, 1, ((SHAPE[0] - 1) / 2, (SHAPE[1] - 1) / 2))


class TestCrops:
    @pytest.mark.parametrize("angle", [0, math.pi / 2, 0.6, -2.2])
    @pytest.mark.parametrize("flip, scale", [(1, 1.0), (-1, 1.7)])
    def test_flows_point_to_the_centres(self, atlas, angle, flip, scale):
        view, side = one_view(angle, flip, scale, (30.0, 25.0)), 128
        instances, target = atlas.truth(view, side)
        assert set(instances.unique().tolist()) == {0, 5, 6, 7}
        for number, centre in enumerate(CENTRES, start=5):
            offset = torch.linalg.solve(view.matrix[0].double(), torch.tensor(centre) - view.centre[0])
            here = offset + (side - 1) / 2
            places = (instances[0] == number).nonzero()
            # the crop's own cell lies where the disc was brought to; half a pixel is what a grid can miss
            assert (places.double().mean(0) - here).abs().max() < 0.5
            way = here - places
            away = way.norm(dim=1) > 3 * scale
            flow = target[0, 1:3, places[away, 0], places[away, 1]].T.double()
            torch.testing.assert_close(flow.norm(dim=1), torch.ones(len(flow)).double(), rtol=1e-4, atol=0)
            cosine = (flow * way[away]).sum(1) / way[away].norm(dim=1)
            assert cosine.min() > 0.85, "a disc of few pixels has a rough edge"
            assert cosine.mean() > 0.98

    def test_outside_of_cells_there_is_no_flow(self, atlas):
        instances, target = atlas.truth(one_view(0.6, 1, 1.3, (30.0, 25.0)), 96)
        assert not target[0, 1:3, instances[0] == 0].any()
        assert target[0, 0, instances[0] > 0].min() > 0.2, "a quarter is the nearest pixel's least share"

    def test_known_is_the_image_and_no_pixel_more(self, atlas):
        side = 80
        for view, shape in ((UPRIGHT, SHAPE), (UPRIGHT._replace(matrix=UPRIGHT.matrix.flip(1)), SHAPE[::-1])):
            known = atlas.truth(view, side)[1][0, 3]
            expected = torch.zeros(side, side)
            top, left = ((side - length) // 2 for length in shape)
            expected[top : top + shape[0], left : left + shape[1]] = 1
            assert torch.equal(known, expected)

    def test_where_nothing_is_known_there_is_nothing(self, atlas):
        _, target = atlas.truth(one_view(0.6, 1, 2.0, (20.0, 0.0)), 96)
        outside = target[0, :, target[0, 3] == 0]
        assert outside.shape[1] > 1000
        assert not outside.any()

    def test_known_of_a_turned_crop(self, atlas):
        """The share of a large crop that the image covers is its area, whatever the angle."""
        for angle in (0.3, 1.1):
            known = atlas.truth(one_view(angle, 1, 2.0, (29.5, 26.5)), 200)[1][0, 3]
            assert known.sum().item() == pytest.approx(4 * SHAPE[0] * SHAPE[1], rel=0.01)

    def test_an_upright_crop_is_the_image(self, atlas):
        crop = atlas.image(UPRIGHT, 80)[0]
        inner = crop[:, 10:70, 13:67]
        instances, _ = atlas.truth(UPRIGHT, 80)
        cells = instances[0, 10:70, 13:67] > 0
        torch.testing.assert_close(inner[:, cells], torch.ones(3, int(cells.sum())), atol=0.01, rtol=0)
        ground = (10 + torch.arange(SHAPE[1]) / 2).floor()  # from 10 to 36, and 200 is the bright end
        expected = ((ground - 10) / 190).expand(SHAPE)[~cells].expand(3, -1)
        torch.testing.assert_close(inner[:, ~cells], expected, atol=0.01, rtol=0)  # bytes are 1 / 170 apart
        assert torch.equal(crop[:, 9], crop[:, 11]), "outside it is mirrored"

    def test_a_small_crop_is_taken_from_a_small_level(self, atlas):
        """At a quarter of the size a fine pattern is its mean, as one who looks from afar sees it."""
        pattern = np.indices((64, 64)).sum(0) % 2 * 255
        instances = np.zeros((64, 64), np.int32)
        instances[:10, :10] = 1
        fine = Atlas([make_sample(pattern.astype(np.uint8), instances)], CPU)
        crop = fine.image(one_view(0.2, 1, 0.25, (32.0, 32.0)), 12)
        torch.testing.assert_close(crop, torch.full_like(crop, 0.5), atol=0.01, rtol=0)

    def test_levels_lie_on_each_other(self):
        """The mean over a crop of a ramp is the ramp's value at the crop's middle, whatever level it comes from."""
        ramp = Atlas([make_sample(np.indices((64, 64))[1] * 4, np.eye(64, dtype=np.int32))], CPU)
        means = [ramp.image(one_view(0, 1, scale, (30.0, 34.0)), 10).mean().item() for scale in (1.0, 0.5, 0.25)]
        assert means[1:] == pytest.approx([means[0]] * 2, abs=0.006)  # bytes are 1 / 170 apart, a pixel is 1 / 64

    def test_random_batches(self, atlas):
        image, target = RandomCrops(atlas, 64, seed=0).batch(16)
        assert image.shape == (16, 3, 64, 64)
        assert target.shape == (16, 4, 64, 64)
        length = target[:, 1:3].norm(dim=1)
        assert ((length < 1e-6) | ((length - 1).abs() < 1e-3)).all()
        assert target[:, 3].mean() > 0.5, "most of a crop is image"
        again = RandomCrops(atlas, 64, seed=0).batch(16)
        assert torch.equal(image, again[0]) and torch.equal(target, again[1])
        assert not torch.equal(image, RandomCrops(atlas, 64, seed=1).batch(16)[0])

    def test_an_image_without_cells_beside_another(self):
        """It comes first and last, so that looking for a cell of it would find none or one of the other's."""
        side = np.arange(40)
        image, none, one = (
            np.outer(side, side).astype(np.uint16),
            np.zeros((40, 40), np.int32),
            np.eye(40, dtype=np.int32),
        )
        samples = [make_sample(image, instances) for instances in (none, one, none)]
        assert samples[0].centres.shape == (0, 2)
        crops = RandomCrops(Atlas(samples, CPU), 32, seed=0)
        views = crops.draw_views(64)
        _, target = crops.atlas.truth(views, 32)
        assert set(views.sample.tolist()) == {0, 1, 2}
        assert not target[views.sample != 1, :3].any()
        assert target[views.sample == 1, 0].any()


def test_modalities_of_images():
    random = np.random.default_rng(0)
    fluorescence, instances = synthesize_image(random, (96, 96), stained=False)
    stained, other = synthesize_image(random, (96, 96), stained=True)
    assert make_sample(fluorescence, instances).modality == FLUORESCENCE
    assert make_sample(255 - fluorescence, instances).modality == BRIGHTFIELD
    assert make_sample(stained, other).modality == STAINED


class TestLooks:
    def looks(self, seed: int, modality: int, number: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
        """Many looks of one image with a cell, and where the cell is."""
        rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        cell = (rows - 30) ** 2 + (columns - 36) ** 2 <= 12**2
        bright = modality == FLUORESCENCE
        image = torch.where(cell, 0.8 if bright else 0.2, 0.1 if bright else 0.9).expand(number, 3, -1, -1)
        instances = cell.int().expand(number, -1, -1)
        looks = RandomLooks(Draws(CPU, seed))
        return looks(image, instances, torch.full((number,), modality)), cell

    @pytest.mark.parametrize("modality", [FLUORESCENCE, STAINED, BRIGHTFIELD])
    def test_the_cell_stays_in_its_place(self, modality):
        looks, cell = self.looks(0, modality)
        assert looks.isfinite().all()
        assert looks.abs().max() <= CLIP
        contrast = (looks[:, :, cell].mean((1, 2)) - looks[:, :, ~cell].mean((1, 2))).abs()
        assert (contrast > 0.15).float().mean() > 0.95, "of a range of 2"

    def test_no_two_are_equal_and_a_seed_decides(self):
        looks, _ = self.looks(0, FLUORESCENCE)
        assert len({look.sum().item() for look in looks}) == len(looks)
        assert torch.equal(looks, self.looks(0, FLUORESCENCE)[0])
        assert not torch.equal(looks, self.looks(1, FLUORESCENCE)[0])

    def test_some_fluorescence_becomes_stained_or_inverted(self):
        """Colours come from synthetic stains alone; dark cells from these and from inversion."""
        looks, cell = self.looks(0, FLUORESCENCE, 300)
        coloured = (looks[:, 0] - looks[:, 2]).abs().flatten(1).mean(1) > 0.02
        darker = looks[:, :, cell].mean((1, 2)) < looks[:, :, ~cell].mean((1, 2))
        # 22 % are stained, of which 15 % become gray and 6 % inverted; of 300 a standard deviation is 2.4 %
        assert 0.10 < coloured.float().mean() < 0.28
        assert darker[coloured].float().mean() > 0.8
        assert 0.09 < darker[~coloured].float().mean() < 0.3


class TestStains:
    def absorb(self, amounts: torch.Tensor, *dyes: tuple[float, float, float]) -> torch.Tensor:
        """Tissue with two dyes by Beer and Lambert: amounts (b, 2, s, s), the largest 1, with black at 0."""
        colours = nn.functional.normalize(torch.tensor(dyes), dim=1)
        light = torch.exp(-torch.einsum("bdhw,dc->bchw", amounts, colours))
        return (light - stains.DARKEST) / (1 - stains.DARKEST)

    def redye(self, monkeypatch, antibody: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Amounts of hematoxylin and eosin, and the tissue in which others have taken their place."""
        for name, value in (("ANTIBODY", antibody), ("DYE_SPREAD", 0.0), ("AMOUNT_SPREAD", (0.0, 0.0, 0.0))):
            monkeypatch.setattr(stains, name, value)
        amounts = torch.rand(5, 2, 16, 16, generator=torch.Generator().manual_seed(0)) * 1.2
        none = torch.zeros(5, 16, 16, dtype=torch.int32)
        return amounts, Stains(Draws(CPU, 0)).redye(self.absorb(amounts, HEMATOXYLIN, EOSIN), none)

    def test_the_same_dyes_and_amounts_give_the_same_image(self, monkeypatch):
        amounts, image = self.redye(monkeypatch, antibody=0)
        torch.testing.assert_close(image, self.absorb(amounts, HEMATOXYLIN, EOSIN), atol=1e-4, rtol=0)

    def test_brown_takes_the_place_of_eosin(self, monkeypatch):
        """All that light loses is explained by hematoxylin, a share of what was there, and DAB."""
        amounts, image = self.redye(monkeypatch, antibody=1)
        colours = nn.functional.normalize(torch.tensor([HEMATOXYLIN, DAB]), dim=1)
        absorbed = -torch.log(stains.DARKEST + (1 - stains.DARKEST) * image)
        found = torch.einsum("bchw,cd->bdhw", absorbed, torch.linalg.pinv(colours))
        torch.testing.assert_close(absorbed, torch.einsum("bdhw,dc->bchw", found, colours), atol=1e-3, rtol=0)
        shares = found[:, 0] / amounts[:, 0].clamp_min(0.1)
        there = amounts[:, 0] > 0.1
        for share, where in zip(shares, there):
            assert share[where].std() < 0.01
            low, high = stains.COUNTERSTAIN
            assert low <= share[where].mean() <= high
        assert found[:, 1].min() > -1e-3
        assert found[:, 1].amax() > 0.3

    def test_other_dyes_keep_nuclei_darker_in_red(self, monkeypatch):
        """Eosin lets red through, so that it is red light that shows nuclei."""
        monkeypatch.setattr(stains, "ANTIBODY", 0.0)
        amounts = torch.zeros(64, 2, 8, 8)
        amounts[:, 0, 2:6, 2:6], amounts[:, 1] = 1.5, 0.4
        image = Stains(Draws(CPU, 0)).redye(self.absorb(amounts, HEMATOXYLIN, EOSIN), torch.zeros(64, 8, 8).int())
        assert image.isfinite().all()
        red = image[:, 0]
        assert (red[:, 2:6, 2:6].amax((1, 2)) < red[:, 0].amin(1)).all()
        assert len(image.mean((2, 3)).round(decimals=3).unique(dim=0)) == 64

    def test_painted_nuclei_hold_the_hematoxylin(self, monkeypatch):
        """As scikit-image takes colours apart; an antibody's brown may hide it."""
        monkeypatch.setattr(stains, "ANTIBODY", 0.0)
        instances = torch.zeros(32, 96, 96, dtype=torch.int32)
        for number, (row, column) in enumerate(((10, 12), (40, 60), (70, 20)), start=1):
            instances[:, row : row + 16, column : column + 20] = number
        image = Stains(Draws(CPU, 1)).paint((instances[:, None] > 0).float() * 0.8, instances)
        assert image.shape == (32, 3, 96, 96)
        assert image.min() > 0 and image.max() <= 1
        hematoxylin = torch.from_numpy(rgb2hed(image.movedim(1, -1).numpy())[..., 0])
        inside = instances[0] > 0
        more = hematoxylin[:, inside].mean(1) > hematoxylin[:, ~inside].mean(1)
        assert more.float().mean() > 0.9


class TestTraining:
    def test_quick_run_writes_weights_that_fit(self, tmp_path, capsys):
        data, out = tmp_path / "data", tmp_path / "out"
        synthesize_microscopy(data, num_train=4, num_validation=1, num_test=1, image_size=(96, 96))
        options = ["--dataset_dir", str(data), "--output_dir", str(out), "--quick", "--device", "cpu"]
        assert train.main(options) == 0
        network = build_network("SwinUMambaD", in_channels=3, out_channels=FLOW_CHANNELS, roi_size=64, **train.TOY)
        before = {name: weight.clone() for name, weight in network.state_dict().items()}
        report = load_pretrained(network, out / "model.safetensors", strict=True)
        assert not report.skipped and not report.missing
        assert any(not torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
        half = safetensors.torch.load_file(out / "model.safetensors")
        assert {weight.dtype for weight in half.values()} == {torch.float16}
        log = (out / "log.txt").read_text()
        assert "step 6: loss" in log
        assert "] 4 images with" in log

    def test_more_datasets(self, tmp_path):
        folders = [tmp_path / name for name in ("first", "second")]
        for number, folder in enumerate(folders):
            synthesize_microscopy(folder, num_train=2 + number, num_validation=1, num_test=1, image_size=(64, 64))
        options = ["--dataset_dir", str(folders[0]), "--extra_dir", str(folders[1]), "--output_dir", str(tmp_path)]
        assert train.main([*options, "--quick", "--steps", "1", "--device", "cpu"]) == 0
        assert "] 5 images with" in (tmp_path / "log.txt").read_text()

    def test_classes_are_refused(self, tmp_path, capsys):
        content = {"name": "endoscopy", "labels": {"0": "background", "1": "shaft"}, "training": []}
        (tmp_path / "datalist.json").write_text(json.dumps(content))
        options = ["--dataset_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--quick", "--device", "cpu"]
        assert train.main(options) == 1
        assert "cells are needed" in capsys.readouterr().err

    def test_learning_rate(self):
        factors = [train.rate_factor(step, 6400) for step in range(6400)]
        assert factors[0] == pytest.approx(1 / 200)
        assert max(factors) == pytest.approx(1, abs=0.01)
        assert 190 <= int(np.argmax(factors)) <= 200
        assert factors[3200] == pytest.approx(0.505)
        assert factors[-1] == pytest.approx(0.01, rel=0.01)

    def test_a_network_learns_and_a_batch_that_is_not_finite_does_no_harm(self, atlas):
        """A convolution can tell bright cells from dark ground; every fourth batch holds NaN."""

        class SomeBroken(RandomCrops):
            count = 0

            def batch(self, size):
                image, target = super().batch(size)
                self.count += 1
                return (image if self.count % 4 else image * torch.nan), target

        torch.manual_seed(0)
        network, lines = nn.Conv2d(3, FLOW_CHANNELS, 3, padding=1), []
        train.train(network, SomeBroken(atlas, 32, seed=0), 40, 2, 0.05, lines.append)
        assert all(weight.isfinite().all() for weight in network.parameters())
        assert "10 steps left out" in lines[-1]
        image, target = RandomCrops(atlas, 64, seed=9).batch(8)
        loss = train.FlowLoss()
        torch.manual_seed(0)
        assert loss(network(image), target) < loss(nn.Conv2d(3, FLOW_CHANNELS, 3, padding=1)(image), target)
