"""What a request is addressed to: paths and host names that nothing here has are refused before anybody reads them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from inst.studio.answers import problem

_log = logging.getLogger(__name__)

# Patterns of routes disagree about a newline at the end, and servers about // and \.
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\\\\]|//")
_HOST = re.compile(r"([\w.\-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{0,5})?", re.ASCII)


class Addresses:
    """ASGI middleware that answers 400 to a path or a host name of an odd form.

    Args:
        app: what it guards.
        refused: called with the reason of each refusal: "path" or "host".
    """

    def __init__(self, app: ASGIApp, refused: Callable[[str], None]) -> None:
        self._app = app
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reason = None
        if _ODD.search(scope["path"]):
            reason, line = "path", "The address has a character that no address here has."
        elif not all(map(_is_host, Headers(scope=scope).getlist("Host"))):
            reason, line = "host", "The request is addressed to no host name."
        if reason is None:
            await self._app(scope, receive, send)
            return
        self._refused(reason)
        _log.warning("request refused", extra={"reason": reason, "status": 400})
        await problem(400, line)(scope, receive, send)


def _is_host(text: str) -> bool:
    try:
        return not text or (_HOST.fullmatch(text) is not None and (urlsplit(f"//{text}").port or 0) >= 0)
    except ValueError:
        return False
