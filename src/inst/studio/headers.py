"""Headers of all answers: what a browser may do with them."""

from __future__ import annotations

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PAGE = re.compile(r"/(en|zh)(/.*)?", re.DOTALL)
_ASSETS = re.compile(r"/(en|zh)/(assets|static|svelte)/.*", re.DOTALL)

_CONTENT = "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; style-src 'unsafe-inline'"
# Gradio starts from inline scripts, and makes functions of the page's own JavaScript. Nothing comes from or goes to
# another host.
_PAGE_CONTENT = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; manifest-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), microphone=(), payment=(), usb=()",  # the page may use the camera
    "X-Robots-Tag": "noindex",
}


class SecurityHeaders:
    """ASGI middleware that adds the headers to every answer. What an answer says itself stays."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                headers["Content-Security-Policy"] = _PAGE_CONTENT if _PAGE.fullmatch(path) else _CONTENT
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                # Names of Gradio's own files change with their content.
                is_asset = _ASSETS.fullmatch(path) and message["status"] == 200
                headers.setdefault("Cache-Control", "private, max-age=604800" if is_asset else "no-store")
                message["headers"] = headers.raw
            await send(message)

        await self._app(scope, receive, send_with_headers)
