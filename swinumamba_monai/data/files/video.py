# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Video files as numbered frames, so that datasets and writers see a frame as they see an image file.

A :class:`FrameReader` keeps its decoder open, so reading the frames in order decodes each once, also when several
workers of a ``DataLoader`` share them out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from monai.config import PathLike
from monai.utils import ImageMetaKey, optional_import

from swinumamba_monai.data.files.images import IMAGE_SUFFIXES, ImageFileReader
from swinumamba_monai.data.files.limits import check_file
from swinumamba_monai.data.files.numbered import file_and_number, name_part
from swinumamba_monai.errors import InputError, explained, quoted

av, _has_av = optional_import("av")
VideoReformatter, _ = optional_import("av.video.reformatter", name="VideoReformatter")

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".wmv", ".asf", ".gif")
VIDEO_SUFFIXES += (".divx", ".flv", ".f4v", ".mxf")  # other names of these, and what recorders write
VIDEO_SUFFIXES += (".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts")  # MPEG program and transport streams

_EARLY = 1.0  # seconds; the last frame is shown for a part of one

# FFmpeg knows formats that are lists of other files, anywhere on the disk or the network, and takes a file for one
# whatever its name is. These hold their own pictures, and of protocols there is that of files alone.
_ALONE = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegvideo,mpegts,asf,m4v,h264,hevc,gif,flv,mxf",
    "protocol_whitelist": "file",
}


def read_frames(path: PathLike) -> Iterator[np.ndarray]:
    """Decode a video, frame by frame; frames are what decodes.

    A file may have packets without a frame that is shown (cut before a key frame, hidden references, damage), and its
    stream may end early: what decodes is given all the same. Frames are turned as the file says they are to be seen.

    Args:
        path: a file with one of ``VIDEO_SUFFIXES``.

    Yields:
        (H, W, 3) uint8, RGB; videos of 10 and 12 bits are reduced to 8.

    Raises:
        InputError: PyAV is not installed; the file is missing, has no video in it, or frames that cannot be converted
            or stand askew.
    """
    path = Path(path)
    for frame in _decode(path, []):
        yield _to_rgb(frame, path)


def count_frames(path: PathLike) -> int:
    """The number of frames of :func:`read_frames`, one at least; a warning says where some did not decode."""
    path = Path(path)
    lost: list[str] = []
    count = 0
    for frame in _decode(path, lost):
        if count == 0:
            _to_rgb(frame, path)
        count += 1
    if count == 0:
        raise InputError(f"{path} is a video without frames that can be decoded; replace it.")
    if lost:
        logger.warning("%s has %d frames that decode; %d parts do not, the first: %s", path, count, len(lost), lost[0])
    return count


def _decode(path: Path, lost: list[str]) -> Iterator[av.VideoFrame]:
    """The frames of a file; for every part that does not decode the reason is put into ``lost``."""
    with _open(path) as container:
        stream = container.streams.best("video")  # no cover, of which the first stream may be the picture
        if stream.codec_context is None:
            raise InputError(f"{path} has pictures of a kind that cannot be decoded; convert or replace it.")
        # A worker that is forked while threads of FFmpeg wait for work waits for them for ever when it frees what they
        # belong to. So the decoder has none, and the converter, whose threads PyAV leaves no choice about, ends with
        # each frame (frame.to_ndarray would keep one in the frame, which the suspended decoder holds).
        stream.codec_context.thread_count = 1
        packets, seen, last = container.demux(stream), 0, 0.0
        ended = False
        while not ended:
            packet, frames = None, []
            try:
                packet = next(packets, None)  # the last one is empty, and asks for the frames that are still held
            except av.FFmpegError as error:
                lost.append(quoted(error))
            ended = packet is None
            seen += packet is not None and packet.size > 0
            try:
                frames = stream.codec_context.decode(packet)
            except EOFError:
                pass
            except av.FFmpegError as error:
                lost.append(quoted(error))
            for frame in frames:
                last = frame.time or last
                if frame.is_corrupt:  # it is given, with what the decoder put in the place of what it lacks
                    lost.append(f"a piece of the picture at {last:.1f} seconds")
                yield frame
        # What the header says: packets, which Matroska does not count, or how long all streams are.
        seconds = ((container.start_time or 0) + (container.duration or 0)) / av.time_base
        if seen < stream.frames:
            lost.append(f"it ends after {seen} of {stream.frames} packets")
        elif stream.frames == 0 and len(container.streams) == 1 and seconds - last > _EARLY:
            lost.append(f"it ends after {last:.1f} of {seconds:.1f} seconds")


def _to_rgb(frame: av.VideoFrame, path: Path) -> np.ndarray:
    """The pixels of a frame (H, W, 3), as they are to be seen."""
    with explained(f"{path} cannot be converted to RGB", "convert or replace it"):
        pixels = VideoReformatter().reformat(frame, format="rgb24").to_ndarray()
    turns, rest = divmod(round(frame.rotation), 90)
    if rest:
        raise InputError(f"{path} is to be turned by {frame.rotation} degrees; save it upright.")
    return np.ascontiguousarray(np.rot90(pixels, turns))  # both count against the clock


def frame_names(video: Path) -> list[str]:
    """What the frames of a video file are called, in their order; of another or a hidden file there are none."""
    if video.suffix.lower() not in VIDEO_SUFFIXES or video.name.startswith("."):
        return []
    return [name_part(video, number) for number in range(count_frames(video))]


class FrameReader(ImageFileReader):
    """:class:`~swinumamba_monai.data.files.images.ImageFileReader` that also reads frames of videos by their names."""

    suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES

    def __init__(self) -> None:
        super().__init__()
        self._video: Path | None = None
        self._frames: Iterator[np.ndarray] = iter(())
        self._next = 0
        self._process = os.getpid()

    def __getstate__(self) -> dict:
        """Without the open decoder, which cannot be sent to a worker."""
        return {**self.__dict__, "_video": None, "_frames": None, "_next": 0}

    def get_data(self, img: Sequence[Path]) -> tuple[np.ndarray, dict]:
        """Decode what :meth:`read` returned: one frame, or image files as the parent class does.

        Raises:
            InputError: As for :func:`read_frames` and the parent class, and when a video ends before the frame.
        """
        file, number = file_and_number(img[0])
        if number is None and file.suffix.lower() in VIDEO_SUFFIXES:
            raise InputError(
                f"{file} is a video, and one frame of it is wanted, such as {name_part(file, 0)}; a Predictor takes "
                "all of them with stack=True."
            )
        if number is None or file.suffix.lower() in IMAGE_SUFFIXES:
            return super().get_data(img)
        image = self._frame(file, number)
        return image, {**self.metadata(image), ImageMetaKey.FILENAME_OR_OBJ: str(img[0])}

    def _frame(self, video: Path, number: int) -> np.ndarray:
        # A forked worker must not go on with the file that its parent has open.
        if video != self._video or number < self._next or os.getpid() != self._process:
            self._video, self._frames, self._next, self._process = video, read_frames(video), 0, os.getpid()
        for frame in self._frames:
            self._next += 1
            if self._next > number:
                return frame
        raise InputError(
            f"{video} ends after {self._next} frames, before frame {number}; it is truncated, so replace it."
        )


def _open(path: Path):
    """The opened container of a file that holds a video."""
    check_file(path)
    if not _has_av:
        raise InputError(f"{path} is a video, which needs PyAV; install swinumamba-monai[video].")
    with explained(f"{path} cannot be opened as a video", "it is damaged or of another kind, so replace it"):
        container = av.open(f"file:{path.absolute()}", options=_ALONE)
    if not container.streams.video:
        container.close()
        raise InputError(f"{path} is a video without frames (it has no picture stream); replace it.")
    return container
