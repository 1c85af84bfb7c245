# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The pickle in a torch file, looked through before torch makes anything of it.

With ``weights_only=True`` torch runs no code of a file, but makes what the file asks for: a bytearray of any length, a
text in Punycode that takes hours, tuples in tuples whose hash takes years, each from a few hundred bytes. So what the
pickle would call, and how, is followed here without doing it, and must be what files of weights call.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path

MAX_TUPLE = 1000  # parts of a tuple, with those of the tuples in it, which its hash runs over each time
MAX_LONG = 1000  # numbers of over 60 bits, of which any may have the same hash; as any tuples may, which are no keys
# Number of pickles before the numbers in a torch file that is no archive: three of its version, content, names.
LEGACY_PICKLES = 5

_CALLED = {
    "torch Size", "torch device", "torch.nn.parameter Parameter", "torch.serialization _get_layout",
    "torch._tensor _rebuild_from_type_v2",
}  # fmt: skip
_ORDERED, _SETS = "collections OrderedDict", ("builtins set", "__builtin__ set")
_HASHING = (_ORDERED, "collections Counter", *_SETS)
_REBUILD = "torch._utils _rebuild_"
_DTYPE, _ENCODE = "numpy dtype", "_codecs encode"
_SCALAR = ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")
_KINDS = ("f8", "f4", "i8", "i4", "b1")  # kinds of numpy's numbers that a log holds
_STATES = tuple((3, order, None, None, None, -1, -1, 0) for order in "<|")  # states of their dtypes
_ENCODINGS = ("latin1", "latin-1")  # encodings by which bytes are kept as text

_PUTS, _GETS = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
# Kinds of what they make; a bool's value does not matter.
_MADE = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "NEWFALSE": bool, "NEWTRUE": bool}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUSHED = {
    "NONE", "EMPTY_SET", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1", "GLOBAL",
}  # fmt: skip


def is_archive(path: Path) -> bool:
    """Whether torch reads a file as a zip archive; else it is one of before torch 1.6, a row of pickles."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def check_pickles(path: Path) -> None:
    """Look through every pickle that torch would load of a file.

    Raises:
        pickle.UnpicklingError: one calls what no file of weights calls.
        Exception: one is damaged: whatever ``pickletools`` and ``zipfile`` raise.
    """
    if is_archive(path):
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.filename.lower().endswith(".pkl"):  # torch finds names in any case
                    _Follower().follow(archive.read(record))
        return
    with path.open("rb") as file:
        for _ in range(LEGACY_PICKLES):
            _Follower().follow(file)


class _Follower:
    """Goes through a pickle's instructions, of those that torch knows, with what is known of the things they make.

    On the stack lie pairs: how many parts a thing's hash runs over, and what it is as far as that matters: a number, a
    text, the name of a function, a tuple or list of such, an empty dict for any; None for all else.
    """

    def __init__(self) -> None:
        self.stack: list[tuple[int, object]] = []
        self.marks: list[int] = []
        self.memo: dict[int, tuple[int, object]] = {}
        self.long = 0

    def follow(self, source: object) -> None:
        for opcode, value, _ in pickletools.genops(source):
            self._step(opcode.name, value)

    def _step(self, name: str, value: object) -> None:
        stack = self.stack
        if name in _PUTS:
            self.memo[value] = stack[-1]
        elif name in _GETS:
            stack.append(self.memo[value])
        elif name in _PUSHED:
            self._count_long(value)
            stack.append((1, value))
        elif name in _MADE:
            stack.append((1, _MADE[name]()))
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            self._push_tuple(self._pop(len(stack) - self.marks.pop()))
        elif name in ("APPEND", "APPENDS"):
            parts = self._pop(1 if name == "APPEND" else len(stack) - self.marks.pop())
            if isinstance(content := stack[-1][1], list):
                content += [value for _, value in parts]
        elif name in ("SETITEM", "SETITEMS"):
            parts = self._pop(2 if name == "SETITEM" else len(stack) - self.marks.pop())
            _check_keys([value for _, value in parts[::2]])
        elif name in _TUPLES:
            self._push_tuple(self._pop(_TUPLES[name]))
        elif name in ("REDUCE", "NEWOBJ"):
            (_, function), (_, arguments) = self._pop(2)
            _check_call(function, arguments)
            stack.append((1, _DTYPE if function == _DTYPE else None))
        elif name == "BUILD":
            _, state = self._pop(1)[0]
            if stack[-1][1] == _DTYPE and state not in _STATES:
                raise pickle.UnpicklingError("a data type of another kind")
        elif name == "BINPERSID":
            stack[-1] = (1, None)
        elif name not in ("PROTO", "STOP"):
            raise pickle.UnpicklingError(f"the instruction {name}")

    def _pop(self, count: int) -> list[tuple[int, object]]:
        start = len(self.stack) - count
        if start < 0:
            raise pickle.UnpicklingError("an instruction without what it needs")
        parts = self.stack[start:]
        del self.stack[start:]
        return parts

    def _push_tuple(self, parts: list[tuple[int, object]]) -> None:
        size = 1 + sum(size for size, _ in parts)
        if size > MAX_TUPLE:
            raise pickle.UnpicklingError(f"a tuple of more than {MAX_TUPLE} parts")
        self.stack.append((size, tuple(value for _, value in parts)))

    def _count_long(self, value: object) -> None:
        self.long += isinstance(value, int) and abs(value) >= 1 << 60
        if self.long > MAX_LONG:
            raise pickle.UnpicklingError(f"more than {MAX_LONG} numbers of over 60 bits")


def _check_call(function: object, arguments: object) -> None:
    if function == _ENCODE:
        known = len(arguments) == 2 and arguments[1] in _ENCODINGS
    elif function == _DTYPE:
        known = len(arguments) == 3 and arguments[0] in _KINDS
    elif function in _SCALAR:
        known = len(arguments) == 2 and arguments[0] == _DTYPE
    elif function in _HASHING:
        known = arguments == () or (len(arguments) == 1 and isinstance(arguments[0], (list, dict)))
        for content in arguments if known else ():
            in_pairs = function == _ORDERED and isinstance(content, list)  # as Python 2 writes them
            _check_keys([key for key, _ in content] if in_pairs else content)
    else:
        known = function in _CALLED or str(function).startswith(_REBUILD)
    if not known:
        raise pickle.UnpicklingError(f"a call of {function}")


def _check_keys(keys: Iterable[object]) -> None:
    """Refuse what may have the hash of other keys: those of texts are not known before, those of numbers spread."""
    if not all(isinstance(key, (str, int, float)) for key in keys):
        raise pickle.UnpicklingError("a key that is neither a text nor a number")
