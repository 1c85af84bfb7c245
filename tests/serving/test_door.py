# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Whom the annotation server answers; with a real server in test_monai_label.py."""

from __future__ import annotations

import asyncio

import pytest

from swinumamba_monai.serving.door import MAX_BODY, Doorkeeper, is_local

FORM = {"content-type": "multipart/form-data; boundary=b"}


def ask(path: str = "/info/", headers: dict | None = None, method: str = "GET", local: bool = True) -> int:
    """The status, which is 200 where the application behind the door is asked."""
    said = []

    async def app(scope: dict, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: dict) -> None:
        said.append(message)

    given = {"host": "127.0.0.1:8000", **(headers or {})}
    pairs = [(name.encode(), str(value).encode()) for name, value in given.items()]
    scope = {"type": "http", "path": path, "method": method, "headers": pairs}
    asyncio.run(Doorkeeper(app, {"http://viewer.example"}, local)(scope, None, send))
    return said[0]["status"]


@pytest.mark.parametrize(
    ("length", "path", "more", "status"),
    [
        (MAX_BODY, "/train/microscopy", {}, 200),
        (MAX_BODY + 1, "/train/microscopy", {}, 413),
        (MAX_BODY + 1, "/train/microscopy", FORM, 413),  # FastAPI takes it into memory all the same
        (MAX_BODY + 1, "/infer/wsi/microscopy", FORM, 413),
        (MAX_BODY + 1, "/datastore/image/info", {"content-type": "application/x-www-form-urlencoded"}, 413),
        (10**12, "/infer/microscopy", FORM, 200),  # its files go to the disk
        (10**12, "/infer/wsi_v2/microscopy", FORM, 200),
        (10**12, "/datastore/image", FORM, 200),
        (10**12, "/session/", FORM, 200),
    ],
)
def test_what_goes_into_memory_is_bounded(length: int, path: str, more: dict, status: int) -> None:
    assert ask(path, {"content-length": length, **more}, "POST") == status


def test_a_body_says_how_long_it_is() -> None:
    assert ask("/train/microscopy", {"transfer-encoding": "chunked"}, "POST") == 411
    assert ask("/datastore/image", {"transfer-encoding": "chunked", **FORM}, "PUT") == 200


def test_hosts_and_origins() -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert ask(headers={"host": host}) == 200, host
    for host in ("evil.example", "", "0.0.0.0:8000", "127.0.0.1.evil", "localhost:8000@evil", "127.1", "192.168.0.1"):
        assert ask(headers={"host": host}) == 403, host
        assert ask(headers={"host": host}, local=False) == 200, host
    for origin in ("http://127.0.0.1:8000", "http://viewer.example"):
        assert ask(headers={"origin": origin}) == 200, origin
    for origin in ("null", "http://evil.example", "http://127.0.0.1:9000", "http://127.0.0.1", "file://", ""):
        assert ask(headers={"origin": origin}) == 403, origin
    assert not is_local("0.0.0.0") and is_local("::1")


def test_addresses_that_are_gone() -> None:
    for path in ("/proxy/dicom/a", "/ohif/", "/reload", "/logs/gpu"):
        assert ask(path) == 404, path
    assert [ask("/model/a", method=method) for method in ("GET", "HEAD", "PUT", "DELETE")] == [200, 200, 404, 404]


def test_websockets_are_closed() -> None:
    said = []

    async def send(message: dict) -> None:
        said.append(message)

    asyncio.run(
        Doorkeeper(None, set(), local=True)({"type": "websocket", "path": "/model/a", "headers": []}, None, send)
    )
    assert said == [{"type": "websocket.close"}]
