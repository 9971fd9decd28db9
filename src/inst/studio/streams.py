"""How many event streams are open at once, and how one of Gradio's ends whose session is gone."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Container
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inst.studio.answers import problem

_log = logging.getLogger(__name__)

_OF_PERSON, _OF_ALL = 8, 200
_STREAM = re.compile(r"/api/jobs/[^/]+/events|/(en|zh)/gradio_api/(queue/data|upload_progress|call/\w+/\w+)/?")
_CALLS = re.compile(r"/(en|zh)/gradio_api/queue/data/?")
_HEARTBEAT = re.compile(r"/(en|zh)/gradio_api/heartbeat/\w+")  # one of each open page, besides its events


class Streams:
    """ASGI middleware that answers 429 to an event stream of somebody who follows many already.

    Args:
        app: what it guards.
        refused: called with the reason "streams" of each refusal.
    """

    def __init__(self, app: ASGIApp, refused: Callable[[str], None]) -> None:
        self._app = app
        self._refused = refused
        self._open: Counter[tuple[str, str | None]] = Counter()  # kind and person; None for all of them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = _kind_of(scope)
        if kind is None:
            await self._app(scope, receive, send)
            return
        own, all = (kind, scope["state"]["person"]), (kind, None)
        if self._open[own] >= _OF_PERSON or self._open[all] >= _OF_ALL:
            self._refused("streams")
            _log.warning("request refused", extra={"reason": "streams", "status": 429})
            line = "Too many event streams are open: close some of them."
            await problem(429, line, {"Retry-After": "10"})(scope, receive, send)
            return
        self._open.update((own, all))
        try:
            await self._follow(scope, receive, send)
        finally:
            self._open.subtract((own, all))
            self._open += Counter()  # forgets who has none

    async def _follow(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Go on, and end a stream of Gradio's whose session is gone: Gradio tells the page, and then fails."""
        calls = _calls_of(scope)
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except (RuntimeError, KeyError):
            if not started or calls is None or calls[0] in calls[1]:
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _calls_of(scope: Scope) -> tuple[str | None, Container[str]] | None:
    """Return the session of one of Gradio's streams, and the sessions of which Gradio knows calls."""
    found = _CALLS.fullmatch(scope["path"])
    if found is None:
        return None
    given = dict(parse_qsl(scope["query_string"].decode("latin-1")))
    return given.get("session_hash"), scope["app"].state.pages[found[1]]._queue.pending_messages_per_session


def _kind_of(scope: Scope) -> str | None:
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    if _STREAM.fullmatch(scope["path"]):
        return "events"
    return "heartbeat" if _HEARTBEAT.fullmatch(scope["path"]) else None
