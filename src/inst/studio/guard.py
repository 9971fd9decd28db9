"""Who may use the studio, and from where: host names, other web pages, and the token.

A server on this computer alone needs no token, but any page in the browser can send requests to it. So requests that
were addressed to another host name (DNS rebinding) or come from another page are refused.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from html import escape
from importlib.resources import files
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from inst.studio.answers import problem
from inst.studio.people import cookie_line

COOKIE = "inst_token"
SHORTEST_TOKEN = 16
"""Smallest number of characters of a token, because it can be guessed over the network."""

_log = logging.getLogger(__name__)

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_OPEN = frozenset({"/healthz", "/favicon.ico", "/manifest.json"})  # browsers fetch some without cookies
_LOGIN = "/login"
_FAILURES, _PERIOD = 10, 60.0
"""Wrong tokens that one address may try in this number of seconds."""
_MOST_ADDRESSES = 1000
_LONGEST_FORM = 4096
_SALT = secrets.token_bytes(16)


class Guard:
    """ASGI middleware that lets only those requests through that may use the studio.

    Args:
        app: what it guards.
        token: what a request must know; None lets every request through that is addressed to this computer.
        refused: called with the reason of each refusal: "host", "origin", "token" or "no_token".
    """

    def __init__(self, app: ASGIApp, token: str | None, refused: Callable[[str], None]) -> None:
        self._app = app
        self._token = token
        self._refused = refused
        self._failures: OrderedDict[str, list[float]] = OrderedDict()  # address -> times of wrong tokens
        self._page = files("inst.studio").joinpath("login.html").read_text(encoding="utf-8")
        # The cookie is made from the token, so that a browser's files do not hold the token itself.
        self._cookie = "" if token is None else hmac.digest(token.encode(), b"inst studio", "sha256").hex()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            answer = await self._check(Request(scope, receive))
            await (self._app if answer is None else answer)(scope, receive, send)
        else:  # nothing here speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})

    async def _check(self, request: Request) -> Response | None:
        """Return the answer to a request that must not go on."""
        if self._token is None and _host_name(request.headers) not in _LOCAL_NAMES:
            self._note(request, "host")
            return problem(421, "This studio is for this computer only: open it at localhost or 127.0.0.1.")
        if _is_foreign(request):
            self._note(request, "origin")
            return problem(403, "Another web page sent this request.")
        if self._token is None or _path(request) in _OPEN:
            return None
        return await self._check_token(request)

    async def _check_token(self, request: Request) -> Response | None:
        cookie = cookie_parser(request.headers.get("Cookie", "")).get(COOKIE, "")
        if secrets.compare_digest(cookie.encode(), self._cookie.encode()):
            if _path(request) == _LOGIN:
                return self._logged_in(request, "/")
            # An address is seen by others: on a screen, in a history.
            return self._logged_in(request, _address_of(request)) if "token" in request.query_params else None
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        form = await _form(request) if _path(request) == _LOGIN and request.method == "POST" else {}
        given = bearer if scheme.lower() == "bearer" else form.get("token", request.query_params.get("token", ""))
        if not given:
            if _wants_page(request):
                # After a link on another page, a browser sends no cookie. It does when our own page sends it on.
                return _sent_on(_address_of(request)) if _came_by_link(request) else self._login_page()
            self._note(request, "no_token")
            return self._no_token()
        if not secrets.compare_digest(given.strip().encode(), (self._token or "").encode()):
            self._note(request, "token")
            if not self._may_try(request):
                line = "Too many wrong tokens: try again in a minute."
                return problem(429, line, {"Retry-After": str(int(_PERIOD))})
            self._count_failure(request)
            return self._login_page(wrong=True) if _wants_page(request) or form else self._no_token()
        if bearer:
            return None
        return self._logged_in(request, "/" if _path(request) == _LOGIN else _address_of(request))

    def _logged_in(self, request: Request, address: str) -> Response:
        """Send a browser on, with its cookie, to an address without the token."""
        answer = _sent_on(address) if _came_by_link(request) else RedirectResponse(address, 303)
        answer.raw_headers.append((b"set-cookie", cookie_line(request.scope, COOKIE, self._cookie, same_site="Strict")))
        return answer

    def _login_page(self, *, wrong: bool = False) -> Response:
        # With "no-referrer", the browser would not say that the form is ours.
        headers = {"Referrer-Policy": "same-origin", "WWW-Authenticate": "Bearer"}
        return HTMLResponse(self._page.replace("<body>", '<body class="wrong">' if wrong else "<body>"), 401, headers)

    def _no_token(self) -> Response:
        line = "A token is needed: send the header Authorization: Bearer TOKEN."
        return problem(401, line, {"WWW-Authenticate": "Bearer"})

    def _may_try(self, request: Request) -> bool:
        now = time.monotonic()
        recent = [one for one in self._failures.get(_address(request), []) if now - one < _PERIOD]
        return len(recent) < _FAILURES

    def _count_failure(self, request: Request) -> None:
        times = self._failures.setdefault(_address(request), [])
        times[:] = [*times[1 - _FAILURES :], time.monotonic()]
        self._failures.move_to_end(_address(request))
        if len(self._failures) > _MOST_ADDRESSES:
            self._failures.popitem(last=False)

    def _note(self, request: Request, reason: str) -> None:
        self._refused(reason)
        _log.warning("request refused", extra={"reason": reason, "address": _address(request)})


def _path(request: Request) -> str:
    """Return the path as the routes see it. The path of `request.url` depends on the header Host."""
    return str(request.scope["path"])


def _host_name(headers: Headers) -> str:
    """Return the host that a request is addressed to, without its port."""
    host = headers.get("Host", "").lower()
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _is_foreign(request: Request) -> bool:
    """Whether another web page sent a request. Browsers say so; programs send none of these headers."""
    headers, method = request.headers, request.method
    site, mode = headers.get("Sec-Fetch-Site"), headers.get("Sec-Fetch-Mode")
    if site in ("cross-site", "same-site") and not (mode == "navigate" and method in ("GET", "HEAD")):
        return True  # anybody may link to the page
    host = headers.get("Host", "").lower()
    origin = headers.get("Origin")
    if origin is not None:
        return _host_of(origin) != host
    referer = headers.get("Referer")
    changes = method not in ("GET", "HEAD", "OPTIONS")
    return changes and site is None and referer is not None and _host_of(referer) != host


def _host_of(address: str) -> str | None:
    try:
        return urlsplit(address.lower()).netloc
    except ValueError:  # such as http://[
        return None


def _came_by_link(request: Request) -> bool:
    return request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")


def _address_of(request: Request) -> str:
    """Return the path and the query of a request, without the token."""
    query = urlencode(
        [(name, value) for name, value in parse_qsl(request.scope["query_string"].decode("latin-1")) if name != "token"]
    )
    path = "/" + _path(request).lstrip("/\\")  # //other.example would be another host
    return f"{path}?{query}" if query else path


def _sent_on(address: str) -> Response:
    """Return a page that opens an address: to the browser, the next request comes from this page."""
    page = f'<!doctype html><meta http-equiv="refresh" content="0;url={escape(address)}"><title>InST</title>'
    return HTMLResponse(page)


def _wants_page(request: Request) -> bool:
    return request.method in ("GET", "HEAD") and "text/html" in request.headers.get("Accept", "")


def _address(request: Request) -> str:
    """Return the address of the other side, and of an IPv6 address the network, of which one computer has many."""
    host = request.client.host if request.client else ""
    return ":".join(host.split(":")[:4]) if ":" in host else host


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST_FORM:
            return {}
    return dict(parse_qsl(body.decode(errors="replace")))


def hidden(text: str) -> str:
    """Return 8 digits that stand for a text in the log of one run of the server, and say nothing about it."""
    return hashlib.blake2b(text.encode(), digest_size=4, key=_SALT).hexdigest()
