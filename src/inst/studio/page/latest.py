"""Which job a browser tab follows: the newest one that it asked for. An older one no longer writes over it."""

from __future__ import annotations

from collections import OrderedDict

import gradio as gr

_MOST = 2000


class Latest:
    """The job that each visit of the page follows, on one tab of the page."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, str] = OrderedDict()

    def follow(self, request: gr.Request, id: str) -> None:
        """Follow a job, and no longer the one before."""
        visit = str(request.session_hash)
        self._jobs[visit] = id
        self._jobs.move_to_end(visit)
        if len(self._jobs) > _MOST:
            self._jobs.popitem(last=False)

    def of(self, request: gr.Request) -> str:
        """Return the id of the job that is followed; empty if there is none."""
        return self._jobs.get(str(request.session_hash), "")
