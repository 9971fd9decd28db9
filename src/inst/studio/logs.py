"""The log of the studio: one line an event, as text or JSON. Neither has tokens, prompts or names of files.

Loggers give an event its fields as `extra`. Addresses are in the text only, for whoever runs the studio for themselves.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Literal

from inst.serving import WEB_LOGS, write_logs
from inst.studio.guard import hidden
from inst.studio.job_store import Job

LogFormat = Literal["text", "json"]

_FIELDS = ("job", "kind", "state", "person", "reason", "method", "route", "status", "seconds")
_log = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, event, and the event's fields."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        time_of_day = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        line = {"time": f"{time_of_day}.{record.msecs:03.0f}Z", "level": record.levelname.lower()}
        line["event"] = record.getMessage()
        line |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """A line for people: time of day, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        fields = [f"{name}={getattr(record, name)}" for name in (*_FIELDS, "address") if hasattr(record, name)]
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        line = " ".join([self.formatTime(record, "%H:%M:%S"), f"{level}{record.getMessage()}", *fields])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up_logs(form: LogFormat, *, quiet: bool = False) -> None:
    """Write the log of the studio and of its web server on the standard error. `quiet` leaves warnings and errors."""
    levels = {"inst.studio": logging.INFO} | WEB_LOGS
    if quiet:
        levels["inst.studio"] = logging.WARNING
    write_logs(levels, JsonLines() if form == "json" else TextLines())


def log_job(job: Job) -> None:
    """Write the new state of a job into the log."""
    _log.info(
        "job",
        extra={
            "job": job.id,
            "kind": job.kind,
            "state": job.state.value,
            "person": hidden(job.person),
            "seconds": round(job.seconds, 3),
        },
    )
