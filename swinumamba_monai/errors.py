# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""One clear sentence for input that cannot be used, instead of a stack trace from five layers down."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from traceback import walk_tb
from types import TracebackType


class InputError(ValueError):
    """Something the user gave (a file, a folder, an option) cannot be used; the message is one sentence for them.

    Args:
        sentence: what is printed, with a question mark for every character that could do more to a terminal.
    """

    def __init__(self, sentence: object) -> None:
        super().__init__("".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in str(sentence)))


MAX_QUOTED = 100  # characters

# Of a file's place: a full disk, a file beyond what is allowed, no permission, no folder or a file where one should be,
# a name that no file can have.
_NOT_WRITABLE = {errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}
_NOT_WRITABLE |= {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP}
_NOT_WRITABLE |= {getattr(errno, "EDQUOT", errno.ENOSPC)}  # a full quota; Windows has none


def shown(text: object) -> str:
    """What a stranger's file says, as part of a sentence: on one line, printable, at most ``MAX_QUOTED`` characters."""
    line = " ".join(str(text)[: 10 * MAX_QUOTED].split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= MAX_QUOTED else line[: MAX_QUOTED - 3] + "..."


def quoted(error: BaseException) -> str:
    """An error of a library as part of a sentence: its class and its message, as :func:`shown`."""
    return f"{type(error).__name__}: {shown(error)}"


def listed(names: Iterable[object], most: int = 3) -> str:
    """The first of some names, each as :func:`shown`, and how many more there are.

    Args:
        names: names in their order.
        most: number of names that are listed at the most.

    >>> listed("abcde")
    'a, b, c and 2 more'
    """
    names = list(names)
    return ", ".join(map(shown, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_known(kind: str, names: Iterable[object], known: Iterable[str]) -> None:
    """Refuse, by an :class:`InputError` that lists the known ones, a name that is not among them.

    Args:
        kind: kind of what is named, for the sentence.
        names: names that were given.
        known: names that there are.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise InputError(f"there is no {kind} '{shown(name)}'; choose from {', '.join(known)}.")


@cache
def log_once(logger: logging.Logger, level: int, sentence: str) -> None:
    """Write a sentence into a log, the first time that a process has it.

    Args:
        logger: log of the module that has something to say.
        level: level of :mod:`logging`.
        sentence: the sentence.
    """
    logger.log(level, "%s", sentence)


# What is left of the error after a DataLoader's worker or MONAI's SaveImage has turned its traceback into text.
_AS_TEXT = re.compile(rf"^{re.escape(InputError.__module__)}\.InputError: (.+)$", re.MULTILINE)

# What torch says of it, for a CPU and a GPU.
_NO_MEMORY = re.compile("can't allocate memory|out of memory")


def find_input_error(error: BaseException | None) -> InputError | None:
    """The :class:`InputError` in the chain of causes of ``error``, or None.

    An output that cannot be written is one too, wherever it is noticed, and so is memory that does not suffice.
    """
    while error is not None:
        if isinstance(error, InputError):
            return error
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
            place = error.filename2 or error.filename or _file_of_tensorboard(error)  # of a copy, where it goes
            return InputError(f"{shown(place or 'an output')} cannot be written or opened: {error.strerror}.")
        if found := _AS_TEXT.search(str(error)):
            return InputError(found[1])
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            return InputError(
                f"the memory is not enough ({quoted(error)}); take a smaller batch_size, sw_batch_size or roi_size."
            )
        error = error.__cause__ or error.__context__
    return None


def _file_of_tensorboard(error: OSError) -> str | None:
    """The file that TensorBoard was writing, which the system does not tell of one that it has opened already."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    writing = [frame for frame in frames if frame.f_globals.get("__name__", "").startswith("tensorboard.")]
    return next((os.fsdecode(frame.f_locals["filename"]) for frame in writing if "filename" in frame.f_locals), None)


@contextmanager
def explained(problem: str, advice: str, *kinds: type[Exception]) -> Iterator[None]:
    """Make one sentence of what a library raises in a block on bad input: "PROBLEM (its error); ADVICE."

    Args:
        problem: words that say what cannot be used, and why as far as it is known.
        advice: words that say what to do about it.
        kinds: errors that bad input causes; all, where a library has no common class for them. An :class:`InputError`
            always comes out as it is.

    Raises:
        InputError: the sentence.
    """
    kinds = kinds or (Exception,)
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(f"{problem} ({quoted(error)}); {advice}.") from error


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let the :class:`InputError` alone come out of a block, without what MONAI has wrapped it in."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (cause := find_input_error(error)) is None:
            raise
        raise cause from error


def is_bundle_command() -> bool:
    """Whether this process was started as ``python -m monai.bundle``, not by a Python program that runs a bundle."""
    return os.path.normpath(sys.argv[0]).split(os.sep)[-3:] == ["monai", "bundle", "__main__.py"]


def hush_unasked_reader() -> None:
    """Keep MONAI from saying, in three lines for each ``LoadImage``, that it cannot read DICOM on a GPU."""
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")


def _make_record(*parts: object, **more: object) -> logging.LogRecord:
    """A record of any log: of an error that is an :class:`InputError`, the sentence alone.

    MONAI's handlers have loggers with outputs of their own, which are made later, so no filter would reach them all.
    """
    record = logging.LogRecord(*parts, **more)
    if record.levelno >= logging.ERROR:
        cause = find_input_error(record.exc_info[1]) if record.exc_info else None
        if found := None if cause else _AS_TEXT.search(record.getMessage()):
            cause = found[1]
        if cause is not None:
            record.msg, record.args, record.exc_info, record.exc_text = f"ended: {cause}", (), None, None
    return record


def _thread_hook(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread hands its error on to the main one, which says the sentence."""
    if find_input_error(args.exc_value) is None:
        threading.__excepthook__(args)


def report_plainly(explain: Callable[[BaseException], InputError | None] = lambda error: None) -> None:
    """Let ``python -m monai.bundle`` end with the sentence alone when an :class:`InputError` is the cause.

    In any other process ``sys.excepthook`` belongs to the program that runs the bundle, and stays as it is.

    A MONAI bundle evaluates its config several calls deep and wraps every error on the way up, so the sentence that
    matters would be printed in the middle of a long traceback; ignite and MONAI's handlers log that traceback besides,
    where the sentence takes its place. Every other error is shown as before.

    Args:
        explain: gives the sentence for what no :class:`InputError` is behind, or None.
    """
    if not is_bundle_command():
        return
    hush_unasked_reader()
    logging.setLogRecordFactory(_make_record)
    threading.excepthook = _thread_hook
    show_traceback = sys.__excepthook__

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause = find_input_error(error) or explain(error)
        if cause is None:
            show_traceback(kind, error, traceback)
        else:
            sys.stderr.write(f"error: {cause}\n")

    sys.excepthook = hook
