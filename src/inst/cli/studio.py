"""The command `inst studio`: the page and the HTTP service."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from inst.cli.session import Session, with_session
from inst.errors import InstError, UsageError
from inst.files.reading import read_text
from inst.listening import listen, page_address
from inst.studio.limits import Limits

_LIMITS = Limits()
_PANEL = "Limits"
_TOKEN_BYTES = 64 * 1024


def _option(
    name: str, text: str, *, panel: str | None = None, low: float | None = None, high: float | None = None
) -> typer.models.OptionInfo:
    """Return an option that can be given in the environment as well: --keep-days as INST_STUDIO_KEEP_DAYS."""
    variable = f"INST_STUDIO_{name.removeprefix('--').replace('-', '_').upper()}"
    option = typer.Option(name, help=text, envvar=variable, show_envvar=False, rich_help_panel=panel, min=low, max=high)
    assert isinstance(option, typer.models.OptionInfo)
    return option


def default_folder() -> Path:
    """Return the data folder if none is given. It does not depend on the current folder: the library stays the same.

    Raises InstError if there is no home folder.
    """
    home = os.environ.get("XDG_DATA_HOME")
    try:
        return (Path(home) if home else Path.home() / ".local" / "share") / "inst-studio"
    except RuntimeError:
        raise InstError("There is no home folder for the studio", "name a folder with --data") from None


@with_session
def studio(
    session: Session,
    data: Annotated[
        Path | None,
        _option(
            "--data",
            "Folder for everything that the studio keeps: styles, jobs with their pictures, uploads. By default "
            "~/.local/share/inst-studio.",
        ),
    ] = None,
    host: Annotated[
        str,
        _option("--host", "Network address to listen on. 0.0.0.0 allows other computers, which need the token."),
    ] = "127.0.0.1",
    port: Annotated[int, _option("--port", "Network port. 0 chooses a free port.")] = 7860,
    token: Annotated[
        str | None,
        _option("--token", "What visitors must know. Better in the environment (INST_STUDIO_TOKEN) or in a file."),
    ] = None,
    token_file: Annotated[Path | None, _option("--token-file", "File that holds the token.")] = None,
    behind_proxy: Annotated[
        bool,
        _option(
            "--behind-proxy",
            "A proxy on this computer says in X-Forwarded-For and X-Forwarded-Proto who asks, and how.",
        ),
    ] = False,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
    log_format: Annotated[
        str, _option("--log-format", "Format of the log on the standard error: text or json (one object a line).")
    ] = "text",
    max_upload_mb: Annotated[
        float, _option("--max-upload-mb", "Largest uploaded file in MB.", panel=_PANEL, low=0.001, high=1e6)
    ] = _LIMITS.upload_bytes / 2**20,
    max_side: Annotated[
        int, _option("--max-side", "Largest short side of a result in pixels.", panel=_PANEL, low=64, high=16_384)
    ] = _LIMITS.side,
    max_count: Annotated[
        int, _option("--max-count", "Largest number of pictures of one job.", panel=_PANEL, low=1, high=100_000)
    ] = _LIMITS.count,
    queue: Annotated[
        int, _option("--queue", "Number of jobs that may wait.", panel=_PANEL, low=1, high=1_000_000)
    ] = _LIMITS.queue,
    jobs_per_person: Annotated[
        int,
        _option("--jobs-per-person", "Number of unfinished jobs of one person.", panel=_PANEL, low=1, high=1_000_000),
    ] = _LIMITS.jobs_per_person,
    job_minutes: Annotated[
        float,
        _option("--job-minutes", "Time of one job; a learning keeps its best style.", panel=_PANEL, low=0.01, high=1e6),
    ] = _LIMITS.job_seconds / 60,
    keep_days: Annotated[
        float,
        _option(
            "--keep-days",
            "Days until finished jobs and uploads are removed. Styles stay.",
            panel=_PANEL,
            low=0.01,
            high=1e6,
        ),
    ] = _LIMITS.keep_days,
    max_disk_gb: Annotated[
        float,
        _option(
            "--max-disk-gb",
            "Size of the data folder in GB at which uploads and jobs are refused.",
            panel=_PANEL,
            low=0.01,
            high=1e9,
        ),
    ] = _LIMITS.disk_bytes / 2**30,
) -> None:
    """Open the studio: a page on which paintings become styles and photos become paintings, and an HTTP service.

    It runs until Ctrl-C. Jobs that are under way then go on when it is started again.

    Every option of the studio can also be given in the environment: --keep-days as INST_STUDIO_KEEP_DAYS.
    """
    from inst.studio.logs import LogFormat, set_up_logs

    form: LogFormat = "json" if log_format == "json" else "text"
    if log_format != form:
        raise UsageError(f"The log format {log_format} is unknown", "give text or json")
    limits = replace(
        _LIMITS,
        upload_bytes=round(max_upload_mb * 2**20),
        side=max_side,
        count=max_count,
        queue=queue,
        jobs_per_person=jobs_per_person,
        job_seconds=job_minutes * 60,
        keep_days=keep_days,
        disk_bytes=round(max_disk_gb * 2**30),
    )
    folder = (default_folder() if data is None else data).absolute()
    try:
        from inst.studio.gradio_mount import page_files, prepare
        from inst.studio.server import check_token, run_server
        from inst.studio.studio import Studio
    except ModuleNotFoundError as error:
        raise _missing_library(error) from None
    secret = _read_token(token, token_file)
    check_token(host, secret)
    listener = listen(host, port)
    set_up_logs(form, quiet=session.quiet)
    # The studio shows its own state. A spinner of the terminal would stand between the lines of its log.
    loader = replace(session, quiet=True)
    room = Studio(folder, loader.load, limits)
    failures: list[Exception] = []
    stop = threading.Event()

    def fail(error: Exception) -> None:
        failures.append(error)
        stop.set()

    def report_ready() -> None:
        address = page_address(host, listener)
        session.report([f"The studio is at {address} (stop it with Ctrl-C)."], page=address, data=str(folder))
        if open_page:
            webbrowser.open(address)

    try:
        prepare(folder)
        tempfile.tempdir = str(page_files(folder))  # nothing is written outside of the folder
        room.start(fail)  # PyTorch and the model are loaded while the page is made
        try:
            from inst.studio.service import make_app

            app = make_app(room, token=secret)
        except ModuleNotFoundError as error:
            raise _missing_library(error) from None
        run_server(app, listener, room.jobs, report_ready, stop, behind_proxy=behind_proxy)
    finally:
        listener.close()
        room.close()
    if failures:
        raise failures[0]
    if any(thread.name.startswith("inst-studio") for thread in threading.enumerate()):
        # The model is still being loaded, or a step takes long. Python's own end would abort such a thread loudly.
        sys.stdout.flush()
        os._exit(0)


def _read_token(token: str | None, file: Path | None) -> str | None:
    if file is None or token is not None:
        return token
    return read_text(file, _TOKEN_BYTES).strip()


def _missing_library(error: ModuleNotFoundError) -> InstError:
    return InstError(f"The library {error.name} is missing", 'install it with pip install "inst[studio]"')
