# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Packs of images for stage 1: what comes back of them, what is held out, and what is refused."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from coloured_images import COLOURS, write_images
from PIL import Image

from benchmarks.foundation import pack
from benchmarks.foundation.packed import load_images, load_pack, save_pack
from swinumamba_monai.errors import InputError


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
