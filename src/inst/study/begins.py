"""How many sessions may begin: a program that begins for ever must not fill the file or take the places of people."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time

PERIOD = 3600.0
"""Seconds after which a session that was not finished counts no longer: the participant has probably left."""
MOST_OF_ADDRESS = 300
"""Sessions of one address that were begun in this period and are not finished: a lecture behind one address of a
school can take part."""
MOST_OF_ALL = 3000
"""The same of all addresses together. They are counted in the file, so that a restart does not forget them."""
MOST_PARTICIPANTS = 100_000
"""Participants of one study."""


class Begins:
    """The unfinished sessions of each address. Addresses are kept in memory only, as hashes with a random key.

    Its methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key = secrets.token_bytes(16)
        self._open: dict[bytes, dict[str, float]] = {}  # hash of an address -> token -> when its session was begun

    def may_begin(self, address: str) -> bool:
        """Whether one more session may begin at an address."""
        with self._lock:
            self._forget_old()
            return len(self._open.get(self._hash(address), ())) < MOST_OF_ADDRESS

    def begun(self, address: str, token: str) -> None:
        """Note that a session was begun."""
        with self._lock:
            self._open.setdefault(self._hash(address), {})[token] = time.monotonic()

    def finished(self, token: str) -> None:
        """Note that a session is finished, wherever it was begun."""
        with self._lock:
            for sessions in self._open.values():
                sessions.pop(token, None)

    def _forget_old(self) -> None:
        old = time.monotonic() - PERIOD
        for address, sessions in list(self._open.items()):
            for token in [token for token, begin in sessions.items() if begin < old]:
                del sessions[token]
            if not sessions:
                del self._open[address]

    def _hash(self, address: str) -> bytes:
        # Of an IPv6 address, the network: one computer has many addresses in it.
        network = ":".join(address.split(":")[:4]) if ":" in address else address
        return hashlib.blake2b(network.encode(), key=self._key, digest_size=16).digest()
