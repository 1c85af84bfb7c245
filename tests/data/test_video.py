# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of a video are read like images, in any order and in workers, and bad videos get one sentence."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from monai.data import DataLoader, Dataset
from monai.transforms import LoadImage, LoadImaged, SaveImage
from PIL import Image

from swinumamba_monai.data.files import video as video_module
from swinumamba_monai.data.files.numbered import name_part
from swinumamba_monai.data.files.video import FrameReader, count_frames, read_frames
from swinumamba_monai.data.listing import load_frames
from swinumamba_monai.errors import InputError

NUMBER = 9


@pytest.fixture
def clip(tmp_path):
    """A video of nine gray frames of 32 x 48 pixels, from dark to bright."""
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(NUMBER):
            pixels = np.full((32, 48, 3), 20 * number + 20, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def number_of(frame):
    """Which frame of the clip this is, by its brightness."""
    return round((float(frame.mean()) - 20) / 20)


def test_frames_are_decoded_in_order(clip):
    frames = list(read_frames(clip))
    assert count_frames(clip) == len(frames) == NUMBER
    assert frames[0].shape == (32, 48, 3) and frames[0].dtype == np.uint8
    assert [number_of(frame) for frame in frames] == list(range(NUMBER))


def test_frames_are_items(clip, tmp_path):
    Image.fromarray(np.full((32, 48), 20, dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("")
    items = load_frames(tmp_path)
    assert [Path(item["image"]).name for item in items] == ["a.png"] + [f"clip#00000{n}.mp4" for n in range(NUMBER)]
    assert load_frames(clip) == items[1:]
    reader = pickle.loads(pickle.dumps(FrameReader()))
    load = LoadImage(reader=reader, ensure_channel_first=True)
    for number in (3, 4, 8, 0, 5):  # forward and back
        image = load(name_part(clip, number))
        assert image.shape == (3, 32, 48) and number_of(image) == number
    SaveImage(tmp_path / "out", output_ext=".png", output_postfix="seg", separate_folder=False, print_log=False)(
        load(name_part(clip, 7))[:1]
    )
    assert (tmp_path / "out" / "clip#000007_seg.png").is_file()


def test_frames_in_workers(clip):
    dataset = Dataset(load_frames(clip), LoadImaged("image", reader=FrameReader))
    assert number_of(dataset[2]["image"]) == 2  # the decoder that is open when the workers start is not theirs
    loader = DataLoader(dataset, num_workers=2, batch_size=1)
    assert [number_of(batch["image"]) for batch in loader] == list(range(NUMBER))


def test_bad_videos_get_a_sentence(clip, tmp_path):
    av = pytest.importorskip("av")
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 50)
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
    with av.open(str(tmp_path / "empty.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.start_encoding()
    for name, words in {
        "junk.mp4": "cannot be opened as a video",
        "sound.mkv": "video without frames",
        "empty.avi": "without frames|cannot be opened",
        "no.mp4": "does not exist",
    }.items():
        with pytest.raises(InputError, match=words) as error:
            count_frames(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"is a video, and one frame of it is wanted, such as .*#000000\.\w+; "):
        FrameReader().get_data([clip])
    with pytest.raises(InputError, match=f"ends after {NUMBER} frames, before frame {NUMBER + 5}"):
        FrameReader().get_data([Path(name_part(clip, NUMBER + 5))])


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(InputError, match="no frame that can be read"):
        (tmp_path / "bare").mkdir()
        load_frames(tmp_path / "bare")
    monkeypatch.setattr(video_module, "_has_av", False)
    with pytest.raises(InputError, match=r"install swinumamba-monai\[video\]"):
        load_frames(tmp_path)
