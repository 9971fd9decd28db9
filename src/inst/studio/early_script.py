"""A script at the very beginning of the page. Gradio itself adds scripts only after it has begun."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PAGE = re.compile(r"/(en|zh)/?\Z")


class EarlyScript:
    """ASGI middleware that puts a script first into the page's HTML.

    Args:
        app: what answers.
        scripts: the script by language, "en" and "zh".
    """

    def __init__(self, app: ASGIApp, scripts: Mapping[str, str]) -> None:
        self._app = app
        self._scripts = scripts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _PAGE.match(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        if found is None or found[1] not in self._scripts:
            await self._app(scope, receive, send)
            return
        script = f"<head><script>{self._scripts[found[1]]}</script>".encode()
        start: Message = {}
        body = b""

        async def send_page(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body", False):
                return
            headers = MutableHeaders(raw=start["headers"])
            if headers.get("Content-Type", "").startswith("text/html"):
                body = body.replace(b"<head>", script, 1)
                headers["Content-Length"] = str(len(body))
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self._app(scope, receive, send_page)
