"""How many event streams are open at once."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from inst.studio.answers import problem

_log = logging.getLogger(__name__)

_OF_PERSON, _OF_ALL = 8, 200
_STREAM = re.compile(r"/api/jobs/[^/]+/events|/(en|zh)/gradio_api/(queue/data|upload_progress|call/\w+/\w+)/?")
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
            await self._app(scope, receive, send)
        finally:
            self._open.subtract((own, all))
            self._open += Counter()  # forgets who has none


def _kind_of(scope: Scope) -> str | None:
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    if _STREAM.fullmatch(scope["path"]):
        return "events"
    return "heartbeat" if _HEARTBEAT.fullmatch(scope["path"]) else None
