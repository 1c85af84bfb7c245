# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Frames are what decodes: of cut and damaged videos, of every container; and they stand upright."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import LoadImage

from swinumamba_monai.data.files.video import VIDEO_SUFFIXES, FrameReader, count_frames, read_frames
from swinumamba_monai.data.listing import load_frames
from swinumamba_monai.errors import InputError

av = pytest.importorskip("av")

NUMBER, KEY = 40, 12  # frames, and the distance of key frames
BRIGHTER = 5  # a frame than the one before it


def pictures(number: int = NUMBER):
    """Frames of 64 x 96 pixels, each brighter than the one before; the left half is darker."""
    for index in range(number):
        picture = np.full((64, 96, 3), 40 + BRIGHTER * index, dtype=np.uint8)
        picture[:, :48] -= 30
        yield av.VideoFrame.from_ndarray(picture, format="rgb24")


def number_of(frame: np.ndarray) -> int:
    """Which frame this is, by its right upper quarter."""
    return round((float(frame[:32, 48:].mean()) - 40) / BRIGHTER)


def write(path: Path, codec: str, change=lambda number, packet: packet, muxer=None, key=KEY, pixels="yuv420p") -> Path:
    """Encode the pictures; ``change`` gives what becomes of a packet, or None."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = key, 0
        number = 0
        for frame in [*pictures(), None]:
            for packet in stream.encode(frame):
                if (changed := change(number, packet)) is not None:
                    container.mux(changed)
                number += 1
    return path


def packets_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def check(path: Path, expected: list[int]) -> None:
    """The frames are the expected ones, in order, from behind, and as items."""
    frames = list(read_frames(path))
    assert [number_of(frame) for frame in frames] == expected
    assert count_frames(path) == len(expected)
    names = [item["image"] for item in load_frames(path)]
    load = LoadImage(reader=FrameReader, image_only=True)
    assert len(names) == len(expected)
    for place in (len(names) - 1, 0):
        assert number_of(load(names[place]).numpy()) == expected[place]


def test_cut_without_encoding_again(tmp_path):
    """As ``ffmpeg -ss 1 -c copy`` does: packets before the cut stay in the file, and an edit list hides them."""

    def earlier(number, packet):
        packet.pts, packet.dts = packet.pts - 10, packet.dts - 10
        return packet

    path = write(tmp_path / "cut.mp4", "libx264", earlier, {"avoid_negative_ts": "disabled"}, key=NUMBER)
    assert packets_of(path) == NUMBER
    check(path, list(range(10, NUMBER)))


def test_hidden_frames(tmp_path):
    """VP8 has frames that only later ones refer to; here three are made ones by their bit in the header."""

    def hide(number, packet):
        if number not in (3, 7, 8):
            return packet
        data = bytearray(bytes(packet))
        data[0] &= ~0x10
        hidden = av.Packet(bytes(data))
        hidden.stream, hidden.pts, hidden.dts = packet.stream, packet.pts, packet.dts
        hidden.time_base, hidden.duration = packet.time_base, packet.duration
        return hidden

    path = write(tmp_path / "clip.webm", "libvpx", hide)
    assert packets_of(path) == NUMBER
    check(path, [number for number in range(NUMBER) if number not in (3, 7, 8)])


def test_cut_off_a_key_frame(tmp_path):
    path = write(tmp_path / "clip.avi", "libx264", lambda number, packet: packet if number >= 5 else None)
    assert packets_of(path) == NUMBER - 5
    check(path, list(range(KEY, NUMBER)))


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mjpeg"), ("a.mkv", "mjpeg"), ("a.ts", "mpeg2video")])
def test_a_stream_that_ends_early(name, codec, tmp_path, caplog):
    path = write(tmp_path / name, codec, pixels="yuvj420p" if codec == "mjpeg" else "yuv420p")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    frames = list(read_frames(path))
    assert NUMBER // 3 < len(frames) < NUMBER
    assert [number_of(frame) for frame in frames[:-1]] == list(range(len(frames) - 1))
    assert len(load_frames(tmp_path)) == len(frames)
    if name != "a.ts":  # whose header does not say how long it is
        assert f"{name} has {len(frames)} frames that decode" in caplog.text


def test_damage_within(tmp_path, caplog):
    path = write(tmp_path / "a.mp4", "libx264")
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat")
    (size,) = struct.unpack_from(">I", content, start - 4)
    for place in range(start + size // 2, start + size * 3 // 4, 3):
        content[place] ^= 0x55
    path.write_bytes(content)
    frames = list(read_frames(path))
    assert 0 < len(frames) == count_frames(path) <= NUMBER
    if len(frames) < NUMBER:
        assert "frames that decode" in caplog.text


def test_a_frame_that_is_made_up_in_part_is_named(tmp_path, caplog):
    """The decoder fills what is missing of a picture, and raises nothing."""

    def halved(number, packet):
        if number != 20:
            return packet
        half = av.Packet(bytes(packet)[: packet.size // 2])
        half.pts, half.dts, half.time_base, half.stream = packet.pts, packet.dts, packet.time_base, packet.stream
        return half

    assert count_frames(write(tmp_path / "a.mkv", "mpeg4")) == NUMBER and not caplog.text
    assert count_frames(write(tmp_path / "b.mkv", "mpeg4", halved)) == NUMBER
    assert "b.mkv has 40 frames that decode; 1 parts do not, the first: a piece of the picture at 2.0" in caplog.text


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".ts", "mpeg2video"),
        (".mts", "libx264"),
        (".m2ts", "libx264"),
        (".vob", "mpeg2video"),
        (".mpg", "mpeg1video"),
        (".gif", "gif"),
        (".mov", "mjpeg"),
        (".m4v", "mpeg4"),
        (".3gp", "mpeg4"),
        (".mkv", "libx264"),
        (".wmv", "wmv2"),
        (".asf", "mpeg4"),
        (".divx", "mpeg4"),
        (".flv", "flv"),
        (".f4v", "libx264"),
        (".mxf", "mpeg2video"),
    ],
)
def test_containers(suffix, codec, tmp_path):
    assert suffix in VIDEO_SUFFIXES
    pixels = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    formats = {".mts": "mpegts", ".m2ts": "mpegts", ".m4v": "mp4", ".asf": "asf", ".divx": "avi", ".f4v": "mp4"}
    path = tmp_path / f"clip{suffix}"
    with av.open(str(path), "w", format=formats.get(suffix)) as container:
        rate = 25 if codec.startswith(("mpeg1", "mpeg2")) else 10
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        for frame in [*pictures(8), None]:
            container.mux(stream.encode(frame))
    assert len(load_frames(tmp_path)) == len(list(read_frames(path))) == 8
    assert "left out" not in load_frames(tmp_path).summary()


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """An MP4 whose track header has the matrix a, b, c, d."""
    write(path, "mpeg4")
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44  # behind version, times, track, duration, layer, group and volume
    assert struct.unpack_from(">9i", content, start) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", content, start, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=["clockwise", "upside down", "counterclockwise"],
)
def test_rotation_is_applied(matrix, turns, tmp_path):
    upright = next(read_frames(write(tmp_path / "upright.mp4", "mpeg4")))
    frame = next(read_frames(turned(tmp_path / "turned.mp4", matrix)))
    np.testing.assert_array_equal(frame, np.rot90(upright, turns))
    assert frame.shape == ((96, 64, 3) if turns % 2 else (64, 96, 3))


def test_videos_without_a_frame_are_left_out(tmp_path):
    write(tmp_path / "good.mp4", "mpeg4")
    write(tmp_path / "bad.avi", "libx264", lambda number, packet: packet if 0 < number < KEY else None)
    (tmp_path / "text.ts").write_text("export const a = 1;")
    with pytest.raises(InputError, match=r"(?s)2 problem.*bad\.avi.*text\.ts"):
        load_frames(tmp_path)
    items = load_frames(tmp_path, skip_bad=True)
    assert len(items) == NUMBER and len(items.bad) == 2


def test_a_cover_is_not_the_video(tmp_path):
    """Recorders and editors put a picture before it, which is a stream of one frame."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        cover, video = container.add_stream("mjpeg", rate=1), container.add_stream("ffv1", rate=10)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        video.width, video.height, video.pix_fmt = 64, 48, "bgra"
        for stream, size, count in ((cover, (16, 16), 1), (video, (48, 64), NUMBER)):
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), number, np.uint8), "rgb24")
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    frames = list(read_frames(tmp_path / "a.mkv"))
    assert (
        [frame.shape for frame in frames] == [(48, 64, 3)] * NUMBER == [(48, 64, 3)] * count_frames(tmp_path / "a.mkv")
    )
    assert [int(frame[0, 0, 0]) for frame in frames] == list(range(NUMBER))
