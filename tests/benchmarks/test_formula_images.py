# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures made by formulas, at toy size on a CPU: images, masks, training and going on, what `--pretrained` takes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from skimage.measure import points_in_poly
from torch import nn

from benchmarks.foundation import train_formula
from benchmarks.foundation.contours import CONTOURS, FAR, NUM_CLASSES, TEXTURES, draw_places, draw_shapes, paint
from benchmarks.foundation.formula import _noise, make_images
from benchmarks.foundation.train_formula import FormulaTraining
from benchmarks.nuclei.draws import Draws
from swinumamba_monai.networks import build_network
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.training import MaskedImageModel
from swinumamba_monai.weight_files import read_weights

CPU = torch.device("cpu")


def make(batch: int, size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return make_images(batch, size, torch.Generator().manual_seed(seed), CPU)


@pytest.fixture(scope="module")
def many() -> tuple[torch.Tensor, torch.Tensor]:
    return make(96, 64)


class TestImages:
    def test_a_seed_decides(self):
        generator = torch.Generator().manual_seed(3)
        image, mask = make_images(2, 32, generator, CPU)
        again, same_mask = make(2, 32, seed=3)
        assert torch.equal(image, again) and torch.equal(mask, same_mask)
        following, other_mask = make_images(2, 32, generator, CPU)
        assert not torch.equal(image, following) and not torch.equal(mask, other_mask)

    def test_shapes_and_types(self, many):
        image, mask = many
        assert (image.shape, image.dtype) == ((96, 3, 64, 64), torch.float32)
        assert (mask.shape, mask.dtype) == ((96, 1, 64, 64), torch.int64)
        torch.testing.assert_close(image.mean((2, 3)), torch.zeros(96, 3), atol=1e-4, rtol=0)
        torch.testing.assert_close(image.std((2, 3), correction=0), torch.ones(96, 3), atol=1e-4, rtol=0)

    def test_some_are_gray_and_more_are_not(self, many):
        image, _ = many
        gray = (image == image[:, :1]).all(3).all(2).all(1).float().mean()
        assert 0.2 < gray < 0.6

    def test_every_class_comes_and_none_prevails(self, many):
        _, mask = many
        share = torch.bincount(mask.flatten(), minlength=NUM_CLASSES) / mask.numel()
        assert len(share) == NUM_CLASSES == 17
        assert 0.4 < share[0] < 0.8
        assert share[1:].min() > 0.002 and share[1:].max() < 0.2 * share[1:].sum()
        assert all((mask == number).flatten(1).any(1).sum() >= 3 for number in range(NUM_CLASSES))

    def test_shapes_can_be_told_from_the_ground(self, many):
        """By the sum of colours that fits best, in part: neither everywhere by the colour alone, nor nowhere."""
        image, mask = many
        inside = (mask > 0).flatten(1).float()
        pixels = torch.cat([image.flatten(2), torch.ones(96, 1, 64 * 64)], 1).mT
        fit = torch.linalg.lstsq(pixels, inside[..., None], driver="gelsd").solution
        left = ((pixels @ fit)[..., 0] - inside).var(1) / inside.var(1)
        assert 0.3 < left[inside.var(1) > 0].median() < 0.95

    def test_a_generator_of_another_device_is_refused(self):
        with pytest.raises(ValueError, match="make one there"):
            make_images(1, 32, torch.Generator(), torch.device("meta"))

    def test_noise_has_the_spectrum(self):
        exponents = torch.tensor([[0.5, 2.0, 3.5]])
        noise = _noise(Draws(CPU, 0), exponents, 128)[0].double().numpy()
        frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128))
        some = (frequency > 0.02) & (frequency < 0.5)
        for image, exponent in zip(noise, exponents[0].tolist()):
            power = np.abs(np.fft.fft2(image)) ** 2
            slope, _ = np.polyfit(np.log(frequency[some]), np.log(power[some]), 1)
            assert slope == pytest.approx(-exponent, abs=0.1)


class TestContours:
    def test_a_pixel_is_of_the_last_contour_that_contains_it(self):
        """Against polygons in the image's plane and scikit-image; with the plane bent, at the bent places."""
        size, draws = 48, Draws(CPU, 5)
        shapes, places = draw_shapes(draws, 6, size), draw_places(draws, 6, size)
        owner = paint(shapes, places)
        expected = np.zeros(owner.shape, np.int64)
        for image in range(6):
            for number in range(1, shapes.kind.shape[1]):
                count = shapes.count[image, number].item()
                angle = 2 * np.pi * np.arange(count) / count
                radii = shapes.radii[image, number, :count].double().numpy()
                vertices = radii * np.stack([np.cos(angle), np.sin(angle)])
                matrix = shapes.matrix[image, number].double().numpy()
                polygon = np.linalg.solve(matrix, vertices).T + shapes.centre[image, number].double().numpy()
                inside = points_in_poly(places[image].reshape(-1, 2).double().numpy(), polygon).reshape(size, size)
                expected[image][inside] = number
        assert len(np.unique(expected)) > 15
        assert (owner.numpy() == expected).mean() > 0.9999  # but for pixels on a contour, by rounding

    def test_the_mask_is_the_class_of_what_is_seen(self):
        draws = Draws(CPU, 0)
        shapes, places = draw_shapes(draws, 4, 32), draw_places(draws, 4, 32)
        owner = paint(shapes, places)
        _, mask = make(4, 32)
        for image, row, column in np.ndindex(4, 32, 32):
            kind = shapes.kind[image, owner[image, row, column]]
            expected = 1 + shapes.style[image, kind] if kind else 0
            assert mask[image, 0, row, column] == expected

    def test_the_class_names_the_form_of_the_contour(self):
        shapes = draw_shapes(Draws(CPU, 1), 40, 64)
        form = (shapes.classes[:, 1:] - 1) // len(TEXTURES)
        count, radii = shapes.count[:, 1:], shapes.radii[:, 1:]
        assert form.min() == 0 and form.max() == 3
        for number, contour in enumerate(CONTOURS.values()):
            found = count[form == number]
            assert (found.min(), found.max()) == (contour.fewest, contour.most)
        rough = [(radii[form == n, 1:12] - radii[form == n, :11]).abs().mean() for n in (1, 2, 3)]
        assert rough[0] < rough[1] < rough[2]  # smooth, lobed, jagged

    def test_some_lie_within_others_and_some_images_lack_some(self):
        shapes = draw_shapes(Draws(CPU, 2), 40, 64)
        there = shapes.centre[:, 1:, 0] > FAR * 64 / 2
        assert 0 < there.sum(1).min() < 10 and there.sum(1).max() == 24
        assert (shapes.radius[:, 1:] / 64).min() >= 0.0149
        assert (shapes.radius[:, 1:] / 64).median() == pytest.approx(0.08, abs=0.03)
        assert (shapes.kind[:, 0] == 0).all() and (shapes.kind[:, 1:] > 0).all()


def arguments(*more: str):
    return train_formula.make_parser().parse_args(["--output_dir", "o", "--device", "cpu", *more])


def toy(encoder: str = "vmamba_tiny_s1l8", channels: int = 3, classes: int = NUM_CLASSES) -> nn.Module:
    return build_network(
        "SwinUMambaD", in_channels=channels, out_channels=classes, roi_size=32, deep_supervision=True, encoder=encoder,
        **train_formula.TOY,
    )  # fmt: skip


def run(out, *more: str) -> int:
    return train_formula.main(["--output_dir", str(out), "--device", "cpu", "--quick", *more])


class TestTraining:
    def test_thirty_steps_lower_the_loss(self):
        torch.manual_seed(0)
        given = "--steps", "30", "--batch_size", "4", "--image_size", "32", "--learning_rate", "0.005"
        training = FormulaTraining(toy(), arguments(*given))
        losses = [training._learn() for _ in range(30)]
        assert all(is_finite for _, is_finite in losses)
        values = torch.cat([loss for loss, _ in losses])
        assert values[-8:].mean() < 0.8 * values[:8].mean()

    def test_scores(self, monkeypatch):
        training = FormulaTraining(toy(), arguments("--batch_size", "2", "--image_size", "32"))
        mask = torch.zeros(1, 1, 2, 4, dtype=torch.int64)
        mask[..., 1:] = torch.tensor([[1, 1, 2], [1, 1, 2]])
        answer = torch.tensor([[[0, 1, 1, 1], [2, 1, 1, 2]]])
        logits = nn.functional.one_hot(answer, NUM_CLASSES).movedim(-1, 1).float()
        monkeypatch.setattr(training, "make", lambda seed, side: (torch.zeros(1, 3, 2, 4), mask))
        monkeypatch.setattr(training, "average", lambda image: logits)
        scores = training.validate()
        assert scores["Dice of shapes"] == pytest.approx(2 * 6 / (6 + 7))
        assert scores["of classes"] == pytest.approx((2 * 4 / (4 + 5) + 2 * 1 / (2 + 2)) / 2)

    def test_a_stopped_run_goes_on_to_the_same_end(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(train_formula, "HELD_OUT", 1)
        assert run(tmp_path / "whole", "--save_seconds", "0") == 0
        learn = FormulaTraining._learn

        def stop_at_the_third(self):
            if self.step == 2:
                raise KeyboardInterrupt
            return learn(self)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(FormulaTraining, "_learn", stop_at_the_third)
            run(tmp_path / "stopped", "--save_seconds", "0")
        assert run(tmp_path / "stopped") == 0
        assert "going on after step 2" in (tmp_path / "stopped" / "log.txt").read_text()
        whole, stopped = (read_weights(tmp_path / name / "network.pt") for name in ("whole", "stopped"))
        for name, weight in whole.items():
            torch.testing.assert_close(stopped[name], weight, msg=name)
        result = json.loads((tmp_path / "whole" / "result.json").read_text())
        assert result["steps"] == 4 and 0 <= result["scores"]["Dice of shapes"] <= 1
        assert run(tmp_path / "stopped", "--seed", "1") == 1
        assert "other settings (seed)" in capsys.readouterr().err

    @pytest.mark.parametrize("encoder", ["vmamba_tiny_v0", "vmamba_tiny_s1l8"])
    def test_what_it_writes_is_taken(self, tmp_path, monkeypatch, encoder):
        monkeypatch.setattr(train_formula, "HELD_OUT", 1)
        assert run(tmp_path, "--encoder", encoder) == 0
        written = read_weights(tmp_path / "network.pt")
        network = toy(encoder, classes=3)
        heads = {name: weight.clone() for name, weight in network.state_dict().items() if "seg_layers" in name}
        report = load_pretrained(network, tmp_path / "network.safetensors")
        assert set(report.missing) == heads.keys() and "8 left as they were" in str(report)
        for name, weight in network.state_dict().items():
            if name in heads:
                assert torch.equal(weight, heads[name])
            else:
                torch.testing.assert_close(weight, written[name], atol=1e-3, rtol=1e-3, msg=name)

        report = load_pretrained(toy(encoder, channels=1, classes=4), tmp_path / "network.pt")
        assert sum("vssm_encoder" in name for name in report.missing) == 1  # the first convolution
        model = MaskedImageModel(toy(encoder))
        assert load_pretrained(model, tmp_path / "encoder.safetensors").kind == "pretrained encoder"

    def test_sizes_are_multiples_of_32(self, tmp_path, capsys):
        options = ["--output_dir", str(tmp_path), "--device", "cpu", "--image_size", "100"]
        assert train_formula.main(options) == 1
        assert "multiples of 32, got 100" in capsys.readouterr().err
