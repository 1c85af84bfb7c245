# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""One clear sentence for input that cannot be used, instead of a stack trace from five layers down."""

from __future__ import annotations

import sys
from types import TracebackType


class InputError(ValueError):
    """Something the user gave (a file, a folder, an option) cannot be used; the message is one sentence for them."""


def find_input_error(error: BaseException | None) -> InputError | None:
    """The :class:`InputError` in the chain of causes of ``error``, or None."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


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
