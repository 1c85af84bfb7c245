# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What a run takes, what it does not take and why, and which files turned out to be bad: said first and last."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from swinumamba_monai.data.files.walk import is_hidden
from swinumamba_monai.errors import InputError, listed, shown

logger = logging.getLogger(__name__)

MAX_THREADS = 4  # number of threads that decode at a time: each holds a whole file


class Inputs(list):
    """The items of a run, with what was found beside them and is not used.

    Args:
        items: dictionaries with paths, as MONAI's datasets take them.
        source: the path that was asked for, or words for it.
        not_taken: names of what is passed over, by the reason.

    Attributes:
        large: items that are not in the list, because they are too large to go the way of the others.
        bad: a sentence on each that was left out.
    """

    def __init__(
        self, items: Iterable[Mapping[str, str]], source: object, not_taken: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(items)
        self.source = source
        self.not_taken = dict(not_taken or {})
        self.large: list[Mapping[str, str]] = []
        self.bad: list[str] = []

    @property
    def all(self) -> list[Mapping[str, str]]:
        """The items, and those that are large."""
        return [*self, *self.large]

    def log(self) -> None:
        """Say what is taken and what is not; a warning where something is not, so that it is seen in every set-up."""
        level = logging.WARNING if self.not_taken or self.bad else logging.INFO
        logger.log(level, "%s", self.summary())

    def summary(self) -> str:
        """One line: how many are taken, and how many are not, by reason."""
        return f"{len(self.all)} taken from {self.source}; not taken: {self.reasons or 'none'}"

    @property
    def reasons(self) -> str:
        """What is not taken, by reason, with the first names; empty where all is."""
        reasons = [f"{len(names)} {reason} ({listed(names)})" for reason, names in self.not_taken.items()]
        return ", ".join([*reasons, *([f"{len(self.bad)} bad"] if self.bad else [])])

    def leave_out(self, problems: Sequence[str | None], skip_bad: bool) -> None:
        """Drop the items that have a problem, a sentence for each, or None.

        Raises:
            InputError: there is a problem and not ``skip_bad``, or there is nothing without.
        """
        good = [item for item, problem in zip(self, problems, strict=True) if problem is None]
        self.bad += refuse_or_leave_out([problem for problem in problems if problem], skip_bad, self.source)
        if not good:
            raise InputError(f"{self.source} has nothing that can be used:\n" + "\n".join(self.bad))
        self[:] = good

    def check(self, read: Callable[[str], object], skip_bad: bool) -> None:
        """Read every image once by its name and :meth:`leave_out` bad ones, before there is work to lose.

        Args:
            read: function that reads a name, and raises an ``InputError`` for a bad image.
            skip_bad: whether bad ones are left out, instead of refusing all.
        """

        def problem_of(item: Mapping[str, str]) -> str | None:
            try:
                read(item["image"])
            except InputError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
            self.leave_out(list(pool.map(problem_of, self)), skip_bad)

    def finish(self, *others: Inputs) -> None:
        """Say it all again, with what the same run took besides, ``others``.

        What was left out because it was bad is an InputError, now that everything else is done.
        """
        parts = (self, *others)
        for part in parts:
            part.log()
        if bad := list(dict.fromkeys(sentence for part in parts for sentence in part.bad)):
            raise InputError(f"all but {len(bad)} are done; these were left out:\n" + "\n".join(bad))


@contextmanager
def noting(problems: list[str] | None) -> Iterator[None]:
    """Put the sentence of an :class:`InputError` that ends the block among the problems, and go on behind it.

    Without a list of problems, None, the error comes out.
    """
    try:
        yield
    except InputError as error:
        if problems is None:
            raise
        problems.append(str(error))


def refuse_or_leave_out(problems: Sequence[str], skip_bad: bool, source: object) -> list[str]:
    """The problems again, when what they concern may be left out.

    Args:
        problems: sentences, one for each image that cannot be used.
        skip_bad: whether these images may be left out.
        source: folder or section that they are of, for the sentence.

    Raises:
        InputError: there are some and not ``skip_bad``; all are listed, one a line.
    """
    problems = [str(InputError(problem)) for problem in problems]  # names of files may hold what steers a terminal
    if problems and not skip_bad:
        lines = "\n".join(problems)
        raise InputError(
            f"{source} has {len(problems)} problem(s); correct them, or use skip_bad to leave out what they concern:\n"
            f"{lines}"
        )
    return list(problems)


def not_taken_of(paths: Iterable[Path]) -> dict[str, list[str]]:
    """Names by the reason for which none of these paths is taken: hidden, a folder, no file, or a kind of one."""
    reasons: dict[str, list[str]] = {}
    for path in sorted(paths):
        if is_hidden(path.name):
            reason = "hidden"
        elif path.is_dir():
            reason = "subfolders"
        elif path.exists() and not path.is_file():
            reason = "pipes, sockets or devices"
        else:
            reason = f"{shown(path.suffix.lower())} files" if path.suffix else "files without a suffix"
        reasons.setdefault(reason, []).append(path.name)
    return reasons
