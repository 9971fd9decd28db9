"""Whose uploads are whose: an empty file for each upload of a person, which survives a restart."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path


class Owners:
    """A folder with one folder a person. The same content belongs to everybody who uploaded it.

    Its methods may be called from any thread. Neither names nor addresses of people are in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, key: str, person: str) -> None:
        """Note that an upload is a person's. Raises OSError if the disk does not take it."""
        note = self._note(key, person)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()

    def has(self, key: str, person: str) -> bool:
        """Whether an upload is a person's; the note of that then stays for a while. The key is one by its form."""
        note = self._note(key, person)
        if not note.exists():
            return False
        with contextlib.suppress(OSError):
            os.utime(note)
        return True

    def remove_older(self, before: float) -> None:
        """Forget what was last used before a Unix time."""
        for folder in self._folder.glob("*"):
            with contextlib.suppress(OSError):
                for note in folder.iterdir():
                    if note.stat().st_mtime < before:
                        note.unlink()
                folder.rmdir()  # fails if a note is left

    def _note(self, key: str, person: str) -> Path:
        return self._folder / hashlib.sha256(person.encode()).hexdigest()[:32] / key
