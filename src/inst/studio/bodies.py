"""The bodies of requests: how large they may be, and how slowly they may come."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inst.studio.answers import problem
from inst.studio.limits import Limits

_log = logging.getLogger(__name__)

_JSON_BYTES = 2**20
_FORM_BYTES = 64 * 1024  # what a form adds to its file
FILES_AT_ONCE = 16
"""Number of files of one request of the page, such as the paintings of one style."""
_SILENCE = 60.0  # seconds
_FIRST = 60.0  # seconds that every body may take
_SLOWEST = 2 * 1024  # bytes a second after that: a phone with a poor connection
_DRAINED, _DRAIN_SECONDS = 64 * 2**20, 5.0
"""How much of a body is still read after its request was refused. A client that is cut off sees no answer."""

_ONE_FILE = re.compile(r"/api/(uploads|styles)|/(en|zh)/gradio_api/component_server")
_FILES = re.compile(r"/(en|zh)/gradio_api/upload")


class _Refused(Exception):
    pass


class Bodies:
    """ASGI middleware that answers 413 to a body that is too large, and 408 to one that comes too slowly.

    Args:
        app: what it guards.
        limits: uploads may have `upload_bytes`; everything else 1 MiB.
        refused: called with the reason of each refusal: "too_large" or "slow".
    """

    def __init__(self, app: ASGIApp, limits: Limits, refused: Callable[[str], None]) -> None:
        self._app = app
        self._limits = limits
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._most(scope["path"])
        refusal: tuple[int, str] | None = None
        started = False
        size, complete, begin = 0, False, time.monotonic()

        async def receive_some() -> Message:
            nonlocal refusal, size, complete
            if complete:  # from now on, it waits for the end of the connection
                return await receive()
            left = min(_SILENCE, begin + _FIRST + size / _SLOWEST - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.0))
            except TimeoutError:
                refusal = 408, "The request came too slowly."
                raise _Refused from None
            size += len(message.get("body", b""))
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            if size > most:
                refusal = 413, _too_large(most)
                raise _Refused
            return message

        async def drain() -> None:
            nonlocal complete
            left = _DRAINED
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_SECONDS):
                    while not complete and left > 0:
                        message = await receive()
                        left -= len(message.get("body", b""))
                        complete = message["type"] != "http.request" or not message.get("more_body", False)

        async def send_unless_refused(message: Message) -> None:
            nonlocal started
            # Whoever reads a body may make an answer of its own from the exception.
            if refusal is not None and not started:
                raise _Refused
            if not started and message["status"] >= 400:
                await drain()
            started = True
            await send(message)

        headers = Headers(scope=scope)
        declared = headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) > most:
            refusal = 413, _too_large(most)
        else:
            try:
                await self._app(scope, receive_some, send_unless_refused)
            except ClientDisconnect:  # it has left in the middle of its request, and reads no answer
                return
            except Exception:
                if refusal is None:
                    raise
        if refusal is not None and not started:
            status, line = refusal
            reason = "too_large" if status == 413 else "slow"
            self._refused(reason)
            _log.warning("request refused", extra={"reason": reason, "status": status})
            if status == 413 and "Expect" not in headers:
                await drain()
            await problem(status, line, {"Connection": "close"})(scope, receive, send)

    def _most(self, path: str) -> int:
        if _ONE_FILE.fullmatch(path):
            return self._limits.upload_bytes + _FORM_BYTES
        if _FILES.fullmatch(path):
            return FILES_AT_ONCE * (self._limits.upload_bytes + _FORM_BYTES)
        return _JSON_BYTES


def _too_large(most: int) -> str:
    return f"The request is larger than {most / 2**20:.0f} MB: make it smaller."
