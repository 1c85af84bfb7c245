# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Copies of the bundles with a small network and weights for it, and a server to fetch things from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from small_bundles import copy_bundle


@pytest.fixture
def small_bundle(tmp_path) -> Callable[..., Path]:
    """Make a copy of a bundle; its network is small, its weights are random."""
    return partial(_copy, tmp_path / "bundles")


def _copy(folder: Path, name: str = "microscopy", weights: bool = True) -> Path:
    return copy_bundle(name, folder, weights)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Tests print nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serve a folder on this machine; the address is returned."""
    servers = []

    def start(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
