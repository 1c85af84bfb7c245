# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Numba's compiled loops, kept for the next process. Importing this module imports Numba.

Numba's own cache unpickles whatever lies in a folder beside the sources or in the home folder, and does not survive a
damaged file. Here each loop, for each type of arguments and processor, is one file of :mod:`swinumamba_monai.owned`.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import llvmlite
import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from swinumamba_monai.errors import log_once
from swinumamba_monai.owned import CACHE, keep, load_kept

logger = logging.getLogger(__name__)

_TAKES_A_WHILE = (
    "the loops of the scan are compiled, once for each dtype: a quarter of a minute, half a minute for training"
)


class LoopCache(NullCache):
    """What Numba asks for the compiled forms of one function, and gives them to.

    Args:
        function: the function before it is compiled.
    """

    def __init__(self, function: Callable) -> None:
        self.function = function

    def load_overload(self, signature: object, target_context: object) -> CompileResult | None:
        """The form for a signature that an earlier process has compiled, or None, upon which Numba compiles it."""
        target_context.refresh()
        try:
            kept = load_kept(self._path(signature, target_context.codegen()))
        except (OSError, RuntimeError):  # RuntimeError: there is no home
            kept = None
        if kept is None:
            log_once(logger, logging.INFO, _TAKES_A_WHILE)
            return None
        return CompileResult._rebuild(target_context, *pickle.loads(kept))

    def save_overload(self, signature: object, result: CompileResult) -> None:
        """Keep what was compiled for a signature."""
        try:
            keep(self._path(signature, result.library.codegen), dumps(result._reduce()))
        except (OSError, RuntimeError) as error:
            consequence = "every process compiles its loops anew, set NUMBA_CACHE_DIR to keep them"
            log_once(logger, logging.WARNING, f"{consequence} ({getattr(error, 'strerror', None) or error})")

    def _path(self, signature: object, codegen: object) -> Path:
        """The file, whose name changes with all that the compiled form depends on."""
        versions = (sys.version, numba.__version__, llvmlite.__version__, _sources())
        parts = (versions, self.function.__module__, signature, codegen.magic_tuple())
        key = hashlib.sha256(repr(parts).encode()).hexdigest()
        folder = Path(numba.config.CACHE_DIR or CACHE / "loops").expanduser()
        return folder / f"{self.function.__name__}-{key[:32]}.loop"


@cache
def _sources() -> str:
    """A hash of all loops: the small ones are compiled into the others."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
