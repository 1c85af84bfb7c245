# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""One clear sentence for input that cannot be used, instead of a stack trace from five layers down."""

from __future__ import annotations

import re
import sys
from types import TracebackType


class InputError(ValueError):
    """Something the user gave (a file, a folder, an option) cannot be used; the message is one sentence for them."""


def quoted(error: BaseException) -> str:
    """An error of a library as part of a sentence: its class and its message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# What is left of the error after a DataLoader's worker or MONAI's SaveImage has turned its traceback into text.
_AS_TEXT = re.compile(rf"^{re.escape(InputError.__module__)}\.InputError: (.+)$", re.MULTILINE)


def find_input_error(error: BaseException | None) -> InputError | None:
    """The :class:`InputError` in the chain of causes of ``error``, or None."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        if found := _AS_TEXT.search(str(error)):
            return InputError(found[1])
        error = error.__cause__ or error.__context__
    return None


def report_plainly() -> None:
    """Let the interpreter end with the sentence alone when an :class:`InputError` is the cause.

    A MONAI bundle evaluates its config several calls deep and wraps every error on the way up, so the sentence that
    matters would be printed in the middle of a long traceback. Every other error is shown as before.
    """
    show_traceback = sys.__excepthook__

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause = find_input_error(error)
        if cause is None:
            show_traceback(kind, error, traceback)
        else:
            sys.stderr.write(f"error: {cause}\n")

    sys.excepthook = hook
