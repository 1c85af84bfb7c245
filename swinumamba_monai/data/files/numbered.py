# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Names for the parts of one file: the frame 7 of ``clip.mp4`` is ``clip#000007.mp4``, a plane of a stack likewise.

Writers name a result after what is before the last dot, so every part gets one of its own. Names are texts, because
MONAI's ``LoadImage`` makes one of whatever a reader is to open.
"""

from __future__ import annotations

import re
from pathlib import Path

from monai.config import PathLike

_NUMBERED = re.compile(r"^(?P<stem>.+)#(?P<number>\d+)(?P<suffix>\.\w+)$")
_NUMBER = re.compile(r"#\d{6,}")


def name_part(file: Path, number: int) -> str:
    """What part ``number`` of a file, a frame of a video or a plane of a stack, is called: ``FILE#000007.SUFFIX``."""
    return str(file.with_name(f"{file.stem}#{number:06d}{file.suffix}"))


def without_number(name: str) -> str:
    """A name without the number of a part.

    >>> without_number("clip#000007_classes")
    'clip_classes'
    """
    return _NUMBER.sub("", name)


def file_and_number(name: PathLike) -> tuple[Path, int | None]:
    """The file that a name is of, and the number of the part of it; None for the whole file.

    A file that has the very name is itself, and no part of another.
    """
    path = Path(name)
    found = _NUMBERED.match(str(path))
    if found is None or path.exists():
        return path, None
    return Path(found["stem"] + found["suffix"]), int(found["number"])
