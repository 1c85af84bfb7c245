# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Files of weights that would take memory or hours, though torch and safetensors take them for safe."""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from swinumamba_monai.errors import InputError
from swinumamba_monai.weight_files import read_checkpoint


def text(content: str) -> bytes:
    encoded = content.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def name(module: str, function: str) -> bytes:
    return f"c{module}\n{function}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def whole_number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def nested_tuples(levels: int) -> bytes:
    """A tuple of twice the one before, which takes two bytes a level, and 2**levels steps to hash."""
    code = b"K\x01\x85q\x00"
    for level in range(levels):
        code += b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
    return code


def same_hash(count: int) -> bytes:
    """Keys of a dict that all have the hash 0."""
    numbers = (n * (2**61 - 1) for n in range(1, count + 1))
    return b"".join(b"\x8a\x0c" + n.to_bytes(12, "little") + b"K\x01" for n in numbers)


MASK = 2**64 - 1
PRIMES = 11400714785074694791, 14029467366897019727, 2870177450012600261  # of xxHash, by which Python hashes tuples


def same_hash_of_tuples(count: int) -> list[tuple[int, int]]:
    """Pairs of small numbers that all have one hash: the second follows from the first."""
    one, two, five = PRIMES
    last = pow(one, -1, 2**64) * -(2 ^ five ^ 3527539) & MASK
    last, inverse = last >> 31 | last << 33, pow(two, -1, 2**64)
    found, first = [], 0
    while len(found) < count:
        first += 1
        mixed = (five + first * two) & MASK
        mixed = ((mixed << 31 | mixed >> 33) * one) & MASK
        second = (last - mixed) * inverse & MASK
        if second < 2**59:
            found.append((first, second))
    return found


DTYPE, ENCODE = name("numpy", "dtype"), name("_codecs", "encode")
HIRAGANA = "".join(chr(0x4E00 + i % 20_000) for i in range(60_000))
LARGE = whole_number(6 * 10**9)
DTYPE_OF_TEXT = call(DTYPE, text("U400000000"), b"\x89", b"\x88")
LONG_DTYPE = call(DTYPE, text("f8"), b"\x89", b"\x88") + b"(K\x03" + text("<") + b"NNN" + LARGE + b"K\x01K\x3ftb"
CRAFTED = {
    "six billion zeros": call(name("builtins", "bytearray"), LARGE),
    "the same, as Python 2 says it": call(name("__builtin__", "bytearray"), LARGE),
    "a storage": call(name("torch.storage", "UntypedStorage"), LARGE),
    "a tensor": call(name("torch", "FloatTensor"), LARGE),
    "a text of numpy": call(name("numpy._core.multiarray", "scalar"), DTYPE_OF_TEXT),
    "a text of numpy 1": call(name("numpy.core.multiarray", "scalar"), DTYPE_OF_TEXT),
    "a long number of numpy": call(name("numpy._core.multiarray", "scalar"), LONG_DTYPE),
    "punycode": call(ENCODE, text(HIRAGANA), text("punycode")),
    "idna": call(ENCODE, text(HIRAGANA), text("idna")),
    "a complex": call(name("builtins", "complex"), b"K\x01", b"K\x02"),
}


def write(path: Path, content: bytes, archive: bool, record: str = "data.pkl") -> Path:
    """A torch file that holds a pickle, as torch has written them since 1.6, or before."""
    if not archive:
        start = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in start) + content + pickle.dumps([], 2))
        return path
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, stream)
    with zipfile.ZipFile(stream) as whole, zipfile.ZipFile(path, "w") as made:
        for entry in whole.namelist():
            folder, _, last = entry.rpartition("/")
            is_pickle = last == "data.pkl"
            made.writestr(f"{folder}/{record}" if is_pickle else entry, content if is_pickle else whole.read(entry))
    return path


def as_dict(value: bytes) -> bytes:
    return b"\x80\x02}" + text("a") + value + b"s."


def refuse(path: Path) -> None:
    began = time.process_time()
    with pytest.raises(
        InputError, match=r"corrupt, or holds Python objects|corrupt or truncated|an archive of other files"
    ):
        read_checkpoint(path)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("kind", CRAFTED)
def test_calls_of_no_file_of_weights(kind, archive, tmp_path):
    refuse(write(tmp_path / "a.pt", as_dict(CRAFTED[kind]), archive))


@pytest.mark.parametrize("archive", [True, False])
def test_what_is_slow_to_hash(archive, tmp_path):
    refuse(write(tmp_path / "a.pt", b"\x80\x02}" + nested_tuples(40) + b"K\x01s.", archive))
    refuse(write(tmp_path / "b.pt", b"\x80\x02}(" + same_hash(60_000) + b"u.", archive))


PAIRS = same_hash_of_tuples(20_000)  # which Python takes 5 s for, and five times as many two minutes
TUPLES = b"".join(whole_number(a) + whole_number(b) + b"\x86" for a, b in PAIRS)
KEYS = b"}(" + b"".join(whole_number(a) + whole_number(b) + b"\x86K\x01" for a, b in PAIRS) + b"u"
TWOS = b"](" + b"".join(whole_number(a) + whole_number(b) + b"\x86K\x01\x86" for a, b in PAIRS) + b"e"


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        KEYS,
        call(name("builtins", "set"), b"](" + TUPLES + b"e"),
        call(name("collections", "Counter"), b"](" + TUPLES + b"e"),
        call(name("collections", "OrderedDict"), TWOS),
        b"]q\x01h\x01(" + TUPLES + b"e0" + call(name("builtins", "set"), b"h\x01"),  # by way of the memo
    ],
)
def test_tuples_of_one_hash(value, archive, tmp_path):
    assert len({hash(pair) for pair in PAIRS[:100]}) == 1
    refuse(write(tmp_path / "a.pt", as_dict(value), archive))


def test_an_ordered_dict_of_python_2(tmp_path):
    pairs = b"](](" + text("b") + b"K\x02ee"
    path = write(tmp_path / "a.pt", as_dict(call(name("collections", "OrderedDict"), pairs)), archive=True)
    assert read_checkpoint(path) == {"a": OrderedDict(b=2)}


def two_directories(path: Path, seen: bytes, other: bytes) -> Path:
    """A torch file whose end names the directory with the other pickle; zipfile takes the one right before the end."""
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, stream)
    with zipfile.ZipFile(stream) as whole, zipfile.ZipFile(path, "w") as made:
        for pickled in (other + bytes(1000), seen):
            for entry in whole.namelist():
                made.writestr(zipfile.ZipInfo(entry), pickled if entry.endswith("data.pkl") else whole.read(entry))
        count = len(whole.namelist())
        size = sum(46 + len(entry) for entry in whole.namelist())
        for entry in made.filelist[count:]:  # zipfile adds what lies between the two places
            entry.header_offset -= size
    content = path.read_bytes()
    place = int.from_bytes(content[-6:-2], "little")
    path.write_bytes(content[:-22] + struct.pack("<4s4xHHLLH", b"PK\x05\x06", count, count, size, place, 0))
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_directories(tmp_path):
    path = two_directories(tmp_path / "a.pt", as_dict(b"K\x01"), as_dict(b"K\x02"))
    with zipfile.ZipFile(path) as archive:
        assert b"K\x01" in archive.read("archive/data.pkl")
    assert torch.load(path, weights_only=True) == {"a": 2}
    with pytest.raises(InputError, match=r"does not end as an archive of torch\.save does; it is not opened\."):
        read_checkpoint(path)


def test_names_of_records_in_any_case(tmp_path):
    """Torch finds them so."""
    refuse(write(tmp_path / "a.pt", as_dict(CRAFTED["six billion zeros"]), True, record="DATA.pkl"))


def test_an_old_file_that_ends_as_an_archive(tmp_path):
    """What torch reads is looked through, and not the archive that Python's zipfile finds at the end."""
    path = write(tmp_path / "a.pt", as_dict(CRAFTED["six billion zeros"]), False)
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, stream)
    path.write_bytes(path.read_bytes() + stream.getvalue())
    assert zipfile.is_zipfile(path)
    refuse(path)


@pytest.mark.parametrize("archive", [True, False])
def test_what_tools_keep_beside_weights_is_read(archive, tmp_path):
    numbers = [np.float64(1.5), np.float32(2.5), np.int64(-3), np.int32(4), np.bool_(True)]
    content = {
        "network_weights": OrderedDict(a=torch.zeros(3), b=torch.nn.Parameter(torch.ones(2, 3).t())),
        "logging": {"losses": numbers, "seen": {1, 2}, "milestones": Counter([3, 3, 4]), "raw": b"abc\xff"},
        "random": {"state": 2**127, "has_gauss": 0},
        "kind": (torch.float32, torch.Size([2, 3]), torch.device("cpu")),
    }
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=archive)
    read = read_checkpoint(tmp_path / "a.pt")
    assert read["logging"] == content["logging"] and read["kind"] == content["kind"]
    assert read["random"] == content["random"] and read["network_weights"].keys() == {"a", "b"}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(100).as_strided((10, 10), (0, 0), 99),
        torch.zeros(100).as_strided((10, 10), (9, 1)),
        torch.zeros(100).as_strided((50, 2), (1, 50), 0)[:, :1].expand(50, 2),
        torch.zeros(4).to(torch.float8_e4m3fn),
        torch.zeros(4, dtype=torch.complex64),
        torch.zeros(4, dtype=torch.uint8).view(torch.bits8),
    ],
)
def test_tensors_that_no_network_has(tensor, tmp_path):
    torch.save({"a": tensor}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="holds what no checkpoint has"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", ["F8_E4M3", "C64", "F4"])
def test_safetensors_of_kinds_that_no_network_has(kind, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(
        safetensors_file({"a": (kind, [2], [0, {"C64": 16, "F4": 1}.get(kind, 2)])})
    )
    with pytest.raises(InputError, match="holds what no checkpoint has"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_safetensors_of_a_million_tensors_are_not_waited_for(tmp_path):
    names = {f"w{number}": ("F32", [0], [0, 0]) for number in range(100_000)}
    (tmp_path / "a.safetensors").write_bytes(safetensors_file(names))
    with pytest.raises(InputError, match="more than any network needs"):
        read_checkpoint(tmp_path / "a.safetensors")


def safetensors_file(tensors: dict) -> bytes:
    entries = {name: dict(zip(("dtype", "shape", "data_offsets"), value)) for name, value in tensors.items()}
    header = json.dumps(entries).encode()
    end = max(offsets[1] for *_, offsets in tensors.values())
    return struct.pack("<Q", len(header)) + header + bytes(end)


def test_tensors_in_another_order(tmp_path):
    whole = torch.arange(120.0).reshape(2, 3, 4, 5)
    content = {
        "channels_last": whole.to(memory_format=torch.channels_last),
        "turned": whole[0, 0].t(),
        "a row": whole[0, :, 1],
        "every other": whole[..., ::2],
        "one": torch.ones(1).expand(1, 1),
        "none": torch.zeros(0, 3).expand(0, 3),
    }
    torch.save(content, tmp_path / "a.pt")
    for key, tensor in read_checkpoint(tmp_path / "a.pt").items():
        torch.testing.assert_close(tensor, content[key])
