"""Serve the studio until a signal stops it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fastapi import FastAPI

from inst.errors import Argument, UsageError
from inst.listening import is_loopback
from inst.serving import Server
from inst.studio.guard import SHORTEST_TOKEN
from inst.studio.jobs import JobRunner

_SWITCH_SECONDS = 0.0005
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def check_token(host: str, token: str | None) -> None:
    """Raise UsageError if the token is too short, or if other computers could use the studio without one."""
    if token is None and not is_loopback(host):
        raise UsageError(
            f"Other computers can reach {host}, and nothing would keep them out", "give a ", Argument("token")
        )
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UsageError("The token cannot be used", f"give at least {SHORTEST_TOKEN} letters and digits")


def run_server(
    app: FastAPI,
    listener: socket.socket,
    jobs: JobRunner,
    ready: Callable[[], None],
    stop: threading.Event,
    *,
    behind_proxy: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM, or until `stop` is set. A second signal ends the process at once.

    Args:
        app: the service.
        listener: a socket that listens.
        jobs: they are told to stop with the first signal, and may still be working when this returns.
        ready: called when requests are answered.
        stop: another thread may set it.
        behind_proxy: believe the headers X-Forwarded-For and X-Forwarded-Proto of a proxy on this computer. Without
            one, anybody here could choose whose address they have.
    """
    # The thread of the jobs asks for Python's lock after every operation of PyTorch. With the usual 5 ms, each piece of
    # the page's work would keep it waiting: a picture at 512 px took a tenth longer on two cores.
    sys.setswitchinterval(_SWITCH_SECONDS)
    _Server(app, jobs, ready, stop, behind_proxy).run(sockets=[listener])


class _Server(Server):
    def __init__(
        self, app: FastAPI, jobs: JobRunner, ready: Callable[[], None], stop: threading.Event, behind_proxy: bool
    ) -> None:
        super().__init__(app, proxy_headers=behind_proxy)
        self._jobs = jobs
        self._ready = ready
        self._stop = stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._stop.is_set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._jobs.stop()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # They stay after the server has stopped: the jobs save what they have, and a second signal must end that.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
