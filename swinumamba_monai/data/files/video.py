# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Video files as numbered frames, so that datasets and writers see a frame as they see an image file.

The frame 7 of ``clip.mp4`` is called ``clip#000007.mp4``: writers name a result after what is before the last dot. A
:class:`FrameReader` keeps its decoder open, so reading the frames in order decodes each once, also when several workers
of a ``DataLoader`` share them out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from monai.config import PathLike
from monai.utils import ImageMetaKey, ensure_tuple, optional_import

from swinumamba_monai.data.files.images import ImageFileReader
from swinumamba_monai.errors import InputError, quoted

av, _has_av = optional_import("av")
VideoReformatter, _ = optional_import("av.video.reformatter", name="VideoReformatter")

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".mpg", ".mpeg", ".webm", ".wmv")

# FFmpeg knows formats that are lists of other files, anywhere on the disk or the network, and takes a file for one
# whatever its name is. These hold their own pictures, and of protocols there is that of files alone.
_ALONE = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegvideo,mpegts,asf,m4v,h264,hevc,gif",
    "protocol_whitelist": "file",
}

_FRAME = re.compile(r"^(?P<stem>.+)#(?P<number>\d+)(?P<suffix>\.\w+)$")


def read_frames(path: PathLike) -> Iterator[np.ndarray]:
    """Decode a video, frame by frame.

    Args:
        path: a file with one of ``VIDEO_SUFFIXES``.

    Yields:
        (H, W, 3) uint8, RGB; videos of 10 and 12 bits are reduced to 8.

    Raises:
        InputError: PyAV is not installed; the file is missing, damaged, or has no video in it.
    """
    path = Path(path)
    with _open(path) as container:
        # A worker that is forked while threads of FFmpeg wait for work waits for them for ever when it frees what they
        # belong to. So the decoder has none, and the converter, whose threads PyAV leaves no choice about, ends with
        # each frame (frame.to_ndarray would keep one in the frame, which the suspended decoder holds).
        container.streams.video[0].codec_context.thread_count = 1
        try:
            for frame in container.decode(video=0):
                yield VideoReformatter().reformat(frame, format="rgb24").to_ndarray()
        except Exception as error:  # FFmpeg's own errors, and those of PyAV on what it cannot convert
            raise InputError(
                f"{path} cannot be decoded to its end ({quoted(error)}); it is damaged, so replace it."
            ) from error


def count_frames(path: PathLike) -> int:
    """The number of frames in a video, by its packets; nothing is decoded.

    Raises:
        InputError: As for :func:`read_frames`, and when there is no frame.
    """
    path = Path(path)
    with _open(path) as container:
        try:
            frames = sum(packet.size > 0 for packet in container.demux(video=0))
        except Exception as error:
            raise InputError(
                f"{path} cannot be read to its end ({quoted(error)}); it is damaged, so replace it."
            ) from error
    if frames == 0:
        raise InputError(f"{path} is a video without frames; replace it.")
    return frames


def frame_names(video: Path) -> list[str]:
    """What the frames of a video file are called, in their order; of another or a hidden file there are none.

    They are texts, because MONAI's ``LoadImage`` makes one of whatever a reader is to open.

    Raises:
        InputError: As for :func:`count_frames`.
    """
    if video.suffix.lower() not in VIDEO_SUFFIXES or video.name.startswith("."):
        return []
    return [frame_name(video, number) for number in range(count_frames(video))]


def frame_name(video: Path, number: int) -> str:
    """What a frame of a video is called."""
    return str(video.with_name(f"{video.stem}#{number:06d}{video.suffix}"))


class FrameReader(ImageFileReader):
    """:class:`~swinumamba_monai.data.files.images.ImageFileReader` that also reads frames of videos by their names."""

    def __init__(self) -> None:
        super().__init__()
        self._video: Path | None = None
        self._frames: Iterator[np.ndarray] = iter(())
        self._next = 0
        self._process = os.getpid()

    def __getstate__(self) -> dict:
        """Without the open decoder, which cannot be sent to a worker."""
        return {**self.__dict__, "_video": None, "_frames": None, "_next": 0}

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether every name is that of an image file or of a frame."""
        names = [str(name) for name in ensure_tuple(filename)]
        return all(_FRAME.match(name) is not None or super(FrameReader, self).verify_suffix(name) for name in names)

    def get_data(self, img: Sequence[Path]) -> tuple[np.ndarray, dict]:
        """Decode what :meth:`read` returned: one frame, or image files as the parent class does.

        Raises:
            InputError: As for :func:`read_frames` and the parent class, and when a video ends before the frame.
        """
        found = _FRAME.match(str(img[0]))
        if found is None or img[0].exists():
            return super().get_data(img)
        image = self._frame(Path(found["stem"] + found["suffix"]), int(found["number"]))
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
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path.")
    if not _has_av:
        raise InputError(f"{path} is a video, which needs PyAV; install swinumamba-monai[video].")
    try:
        container = av.open(f"file:{path.absolute()}", options=_ALONE)
    except Exception as error:
        raise InputError(
            f"{path} cannot be opened as a video ({quoted(error)}); it is damaged or of another kind, so replace it."
        ) from error
    if not container.streams.video:
        container.close()
        raise InputError(f"{path} is a video without frames (it has no picture stream); replace it.")
    return container
