"""Who asks: a person is a random cookie of a browser, a name that an API client chose, or an address.

It says whose jobs are whose. It is no login: who may use the studio at all is decided by the token
(`inst.studio.guard`).
"""

from __future__ import annotations

import re
import secrets
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inst.studio.answers import problem

COOKIE = "inst_person"
HEADER = "X-Inst-Person"

# An address has dots or colons, so nobody can choose it as a name.
_NAME = re.compile(r"[A-Za-z0-9_-]{8,64}")
_COOKIE_SECONDS = 400 * 86400  # browsers keep none longer
_PAGES = frozenset({"/", "/en", "/en/", "/zh", "/zh/"})


def person_of(request: Any) -> str:
    """Return who asks, for a request of Starlette or of Gradio (`gradio.Request`)."""
    return str(request.state.person)


class People:
    """ASGI middleware that puts the person at `scope["state"]["person"]`, and gives visitors of the page a cookie."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        chosen = headers.get(HEADER)
        if chosen is not None and not _NAME.fullmatch(chosen):
            await problem(400, f"{HEADER} must be 8 to 64 letters, digits, - and _.")(scope, receive, send)
            return
        cookie = cookie_parser(headers.get("Cookie", "")).get(COOKIE)
        known = chosen or (cookie if cookie and _NAME.fullmatch(cookie) else None)
        new = None
        if known is None and scope["path"] in _PAGES:
            known = new = secrets.token_urlsafe(16)
        client = scope.get("client")
        scope.setdefault("state", {})["person"] = known or (client[0] if client else "local")

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"set-cookie", cookie_line(scope, COOKIE, new))]
            await send(message)

        await self._app(scope, receive, send if new is None else send_with_cookie)


def cookie_line(scope: Scope, name: str, value: str | None, *, same_site: str = "Lax") -> bytes:
    """Return the value of a Set-Cookie header that scripts cannot read.

    Lax sends the cookie when somebody follows a link to the page. Strict would not, and a visitor would then get a new
    one and lose sight of their jobs.
    """
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    line = f"{name}={value}; Path=/; Max-Age={_COOKIE_SECONDS}; HttpOnly; SameSite={same_site}{secure}"
    return line.encode("ascii")
