# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Who the annotation server answers, by what a request says before anything looks into it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

REMOVED = ("/proxy", "/ohif", "/reload", "/logs/gpu")  # addresses that begin so
LOCAL_NAMES = {"localhost"}
SAME_SITE = {"same-origin", "none"}  # the latter for an address that a person has typed
# A form's files go to the disk, and its fields are bounded; every other body is taken into memory, as a whole.
FORMS, NO_FORMS = ("/infer/", "/datastore", "/session"), "/infer/wsi/"
MAX_BODY = 1 << 22  # bytes; several times what the checks of a request's values let through


class Doorkeeper:
    """Refuse what a page of a foreign web site has a browser send, and what the server has no use for.

    A browser says whose page it is in ``Origin``, which has to be the server's own or one of ``origins``. While the
    server is for this machine alone, ``Host`` has to name this machine: a foreign name that its owner lets point here
    (DNS rebinding) would count as the server's own.

    Args:
        app: the application behind it.
        origins: origins that are allowed beside the server's own.
        local: whether the server answers this machine alone.
    """

    def __init__(self, app: Callable, origins: set[str], local: bool) -> None:
        self.app, self.origins, self.local = app, origins, local

    async def __call__(self, scope: Mapping, receive: Callable, send: Callable) -> None:
        if scope["type"] == "websocket":  # there is nothing to say by it
            await send({"type": "websocket.close"})
            return
        if scope["type"] == "lifespan" or not (refusal := self._refusal(scope)):
            await self.app(scope, receive, send)
            return
        status, reason = refusal
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": reason.encode()})

    def _refusal(self, scope: Mapping) -> tuple[int, str] | None:
        """The status and the sentence of a refusal, or None."""

        def given(name: bytes) -> list[str]:
            return [value.decode("latin-1").lower() for key, value in scope["headers"] if key == name]

        hosts = given(b"host") or [""]
        if self.local and not all(map(is_local, hosts)):
            return 403, "this server answers under the names of its own machine alone."
        if self._is_foreign(hosts, given(b"origin"), given(b"sec-fetch-site")):
            return 403, "pages of other sites may not use this server; MONAI_LABEL_CORS_ORIGINS names those that may."
        path = scope["path"]
        if path.startswith(REMOVED) or (path.startswith("/model/") and scope["method"] not in ("GET", "HEAD")):
            return 404, "this server has no such address."
        kind = given(b"content-type") or [""]
        if path.startswith(FORMS) and not path.startswith(NO_FORMS) and kind[0].startswith("multipart/form-data"):
            return None
        if given(b"transfer-encoding"):
            return 411, "say how long the request is, in Content-Length."
        if any(int(length) > MAX_BODY for length in given(b"content-length")):  # which uvicorn has read as a number
            return 413, f"the request must have at most {MAX_BODY} bytes, or be a form with files."
        return None

    def _is_foreign(self, hosts: Sequence[str], origins: Sequence[str], sites: Sequence[str]) -> bool:
        known = self.origins.union(*({f"http://{host}", f"https://{host}"} for host in hosts))
        # What is asked without an origin, as pictures are, browsers mark as of another site.
        return not known.issuperset(origins) or (not origins and not SAME_SITE.issuperset(sites))


def is_local(host: str) -> bool:
    """Whether an address, or what a request calls ``Host``, means this machine alone."""
    name, _, port = host.rpartition(":")
    for address in (host, name) if port.isdigit() else (host,):  # "::1" ends like one with a port
        if address in LOCAL_NAMES:
            return True
        with suppress(ValueError):
            return ipaddress.ip_address(address.strip("[]")).is_loopback
    return False
