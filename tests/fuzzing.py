# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Damaged files of every format, given to what reads them, until the time is over and ``LEAST`` of each were tried.

    python tests/fuzzing.py SECONDS FOLDER [FIRST]

A process of its own. Case ``i`` of a format is always the same file, so a failure can be looked at again: it stays in
FOLDER. FIRST is the number to begin with. One line of JSON tells how often each format was read and refused, and how
much memory it took. ``make fuzz SECONDS=3600`` is an hour of it. Anything but a result or one sentence ends the
process; so does a case of more than ``HANG`` seconds, and one that wants more memory than there is.
:mod:`fuzzed_formats` says what is damaged and what reads it; :mod:`fuzzed_structures` has files that are damaged inside
alone.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import resource
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from fuzzed_formats import Format, formats
from fuzzed_structures import change_insides, strange_value

from swinumamba_monai.errors import InputError

HANG = 20.0  # seconds; the slowest case takes a tenth of one on an idle machine
LEAST = 100  # cases of each format; of the first 95 of CVAT's none is read, and a busy machine is slow
LONGEST_SENTENCE = 800  # characters, with the paths of this machine
ADDRESS_SPACE = 8 << 30  # beyond what the libraries map themselves
NUMBERS = (
    0,
    1,
    2,
    3,
    5,
    16,
    127,
    128,
    255,
    32767,
    32768,
    65535,
    100_000,
    2**31 - 1,
    2**31,
    2**32 - 1,
    10**12,
    2**63 - 1,
)


def damage(data: bytes, header: int, random: np.random.Generator) -> bytes:
    """A few changes, most of them in the header."""
    result = bytearray(data)
    for _ in range(random.integers(1, 4)):
        within = min(header, len(result)) if random.random() < 0.8 else len(result)
        position = int(random.integers(0, max(within, 1)))
        width = int(random.choice([1, 2, 4, 8]))
        match random.integers(0, 7):
            case 0 | 1:
                result[position : position + 1] = random.bytes(1)
            case 2 | 3:
                number = NUMBERS[random.integers(len(NUMBERS))] % (1 << 8 * width)
                position -= position % min(width, 4)
                result[position : position + width] = number.to_bytes(width, random.choice(["little", "big"]))
            case 4:
                del result[int(random.integers(0, len(result) + 1)) :]
            case 5:
                del result[position : position + width]
            case 6:
                result[position:position] = bytes(result[position : position + 16])
    return bytes(result)


def damage_json(data: bytes, random: np.random.Generator) -> bytes:
    """Text whose values, at any depth, are not what they should be."""
    if random.random() < 0.02:
        return b'{"training": ' + b"[" * 200_000
    return json.dumps(change_insides(json.loads(data), random, lambda: strange_value(random))).encode()


def case(fmt: Format, number: int) -> bytes:
    """The damaged file; it depends on the arguments alone."""
    random = np.random.default_rng([zlib.crc32(fmt.name.encode()), number])
    data = fmt.seeds[number % len(fmt.seeds)]
    if fmt.name.endswith("json") and not fmt.alter and random.random() < 0.7:
        return damage_json(data, random)
    if fmt.alter and random.random() < 0.9:
        return fmt.alter(random)
    data = damage(data, fmt.header, random)
    return fmt.repair(data) if random.random() < 0.7 or fmt.name == "b.nii.gz" else data


def try_one(fmt: Format, folder: Path, data: bytes) -> str:
    """ "read" or "refused"; every other outcome is raised."""
    (folder / fmt.name).write_bytes(data)
    before = sorted(folder.rglob("*"))
    faulthandler.dump_traceback_later(HANG, exit=True)
    try:
        fmt.read(folder / fmt.name)
        outcome = "read"
    except InputError as error:
        sentence = str(error)
        one_line = sentence.isprintable() and sentence.endswith(".") and len(sentence) < LONGEST_SENTENCE
        assert one_line, f"no sentence: {sentence[:2000]!r}"
        outcome = "refused"
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert sorted(folder.rglob("*")) == before, "something was left behind"
    return outcome


def main(seconds: float, folder: Path, first: int = 0) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    all_formats = list(formats(folder))
    for fmt in all_formats:
        place = folder / fmt.name.replace(".", "_")
        for name, content in {**(fmt.others or {}), fmt.name: b""}.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE, resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = {fmt.name: {"read": 0, "refused": 0} for fmt in all_formats}
    slowest = (0.0, "")
    number, end = first, time.monotonic() + seconds
    while time.monotonic() < end or number - first < LEAST:
        for fmt in all_formats:
            data, start = case(fmt, number), time.monotonic()
            try:
                counts[fmt.name][try_one(fmt, folder / fmt.name.replace(".", "_"), data)] += 1
            except BaseException as error:
                raise RuntimeError(f"case {number} of {fmt.name}") from error
            slowest = max(slowest, (time.monotonic() - start, f"case {number} of {fmt.name}"))
        number += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    inputs = (number - first) * len(all_formats)
    print(json.dumps({"inputs": inputs, "counts": counts, "grown_mb": grown // 1024, "slowest": slowest}))


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
