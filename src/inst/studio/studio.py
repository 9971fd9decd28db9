"""The studio as a whole: the data folder, the backbone, the library, the uploads and the jobs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from inst.errors import InstError
from inst.files.writing import make_folder
from inst.studio.disk import Disk
from inst.studio.entry import StyleEntry
from inst.studio.job_store import Job
from inst.studio.jobs import JobRunner
from inst.studio.library import Library
from inst.studio.limits import Limits
from inst.studio.requests import KINDS, Request
from inst.studio.uploads import Uploads
from inst.studio.work import Workshop

if TYPE_CHECKING:
    from inst.backbone.model import Backbone

_TRASH_DAYS = 30


class Studio:
    """Everything that page and API share. Its methods may be called from any thread.

    The data folder holds styles/ (the library, and its index), uploads/, jobs.sqlite and jobs/. Nothing is written
    anywhere else.

    Args:
        folder: the data folder; it is made if it does not exist.
        load: loads the backbone; called once, in a thread of its own, because it takes seconds.
        limits: see `Limits`.

    Raises:
        InstError: another studio uses the folder, or it cannot be written to.
    """

    def __init__(self, folder: Path, load: Callable[[], Backbone], limits: Limits) -> None:
        self.folder = make_folder(folder)
        self.limits = limits
        self.disk = Disk(self.folder, limits)
        self.uploads = Uploads(folder / "uploads", limits, self.disk)
        self.library = Library(folder / "styles")
        self._load = load
        self._loaded = threading.Event()
        self._backbone: Backbone | None = None
        self._failure: Exception | None = None
        self._workshop = Workshop(self.backbone, self.library, self.uploads, limits)
        self.jobs = JobRunner(folder, self._workshop.works(), limits, tidy=self._tidy)

    def start(self, on_failure: Callable[[Exception], None] | None = None) -> None:
        """Load the backbone in the background, and begin with the jobs when it is there.

        `on_failure` is called with the error if it cannot be loaded.
        """

        def begin() -> None:
            try:
                self._backbone = self._load()
            except Exception as error:
                self._failure = error
                if on_failure is not None:
                    on_failure(error)
            self._loaded.set()
            if self._backbone is not None:
                self._workshop.warm_up()
                self.jobs.start()

        threading.Thread(target=begin, name="inst-studio-backbone", daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Whether the backbone is loaded."""
        return self._backbone is not None

    def backbone(self) -> Backbone:
        """Return the backbone; wait until it is loaded. Raises the error if it cannot be loaded."""
        self._loaded.wait()
        if self._failure is not None:
            raise self._failure
        assert self._backbone is not None
        return self._backbone

    def submit(self, person: str, request: Request, key: str | None = None) -> Job:
        """Accept a job (`JobRunner.submit`), after it was checked whether the person has what the request names.

        Args:
            person: who asks for it; an opaque text.
            request: the request; its class says what kind of job it is (`inst.studio.requests.KINDS`).
            key: see `JobRunner.submit`.

        Raises:
            UsageError: an upload that it names is not here, or is somebody else's.
            UnknownStyle: a style that it names is not in the library.
            Refused: no job is accepted now.
            NoSpace: the disk is full.
        """
        self.disk.check()
        for upload in request.uploads():
            self.uploads.find(upload.upload, person)
        for id in request.style_ids():
            self.library.entry(id)
        return self.jobs.submit(person, request.kind, request.model_dump(mode="json"), key)

    def nearest(self, person: str, upload: str, count: int = 12) -> list[tuple[StyleEntry, float]]:
        """Find the styles whose first painting looks most like a person's upload, with their cosine similarities.

        Raises:
            UsageError: the person has no such upload.
            InstError: the backbone is not there yet, or has no image encoder; or the picture cannot be read.
        """
        if not self.is_ready:
            raise InstError("The model is being loaded", "try again in some seconds")
        backbone = self.backbone()
        vector = self.library.embed_picture(backbone, self.uploads.find(upload, person))
        for _ in self.library.embed_missing(backbone):
            pass
        return self.library.nearest(vector, self.library.encoder(backbone), count)

    def _tidy(self) -> None:
        """Empty the trash, and remove the uploads, of what is old. What unfinished jobs need stays."""
        before = time.time() - self.limits.keep_days * 86400
        for job in self.jobs.jobs():
            # A job of another version may have another form.
            with contextlib.suppress(KeyError, pydantic.ValidationError):
                for upload in KINDS[job.kind].model_validate(job.request).uploads():
                    with contextlib.suppress(InstError):
                        self.uploads.find(upload.upload)  # which makes it new
        self.uploads.remove_older(before)
        self.library.purge(_TRASH_DAYS)

    def close(self, seconds: float = 30.0) -> None:
        """Stop: a running job saves where it is, and goes on at the next start. Waits `seconds` for its step."""
        self.jobs.close(seconds)
        self.library.close()
