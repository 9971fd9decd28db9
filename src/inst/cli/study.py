"""The command `inst study`, which asks people which results they prefer: create, serve, report and simulate a study."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inst.cli.places import OUTPUTS, Output, checks_paths, new_file, output_option
from inst.cli.session import JsonOption, QuietOption, SeedOption, Session
from inst.defaults import defaults_of
from inst.errors import InstError, UsageError
from inst.files.claiming import held
from inst.files.holding import temporary_folder
from inst.files.reading import read_text
from inst.files.writing import cannot_write, folder_of, make_folder, replace_when_finished
from inst.texts import one_line

if TYPE_CHECKING:
    from inst.study.database import Database

app = typer.Typer(help="Ask people which results they prefer and which factors matter to them.", no_args_is_help=True)

_CREATE = defaults_of("inst.study.creation", "create_study")
_SERVE = defaults_of("inst.study.server", "serve")
_REPORT = defaults_of("inst.study.report", "make_report")
_SIMULATE = defaults_of("inst.study.simulation", "simulate")

_CONSENT_BYTES = 2**20

StudyArgument = Annotated[Path, typer.Argument(help="The study file.", show_default=False)]


@app.command()
@checks_paths
def create(
    folder: Annotated[
        Path,
        typer.Option(
            "--from", help="Folder written by inst compare, with photos/, paintings/ and one folder for each method."
        ),
    ],
    out: Annotated[Output, output_option("Study file to write. It must not exist yet.")],
    ours: Annotated[str, typer.Option("--ours", help="Method that all other methods are compared with.")] = _CREATE[
        "ours"
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", help="Another method to compare. Repeat it for more. By default all methods."),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", help="Number of pairs for each participant.")] = _CREATE["trials"],
    checks: Annotated[
        int,
        typer.Option(
            "--checks",
            help="Number of additional attention checks, where one result belongs to another photo and painting.",
        ),
    ] = _CREATE["checks"],
    combinations: Annotated[
        int | None,
        typer.Option(
            "--combinations",
            help="Use only this number of (photo, painting) combinations, chosen at random. By default all.",
        ),
    ] = None,
    side: Annotated[
        int, typer.Option("--side", help="Longest side of the stored pictures in pixels. Larger pictures are reduced.")
    ] = _CREATE["side"],
    title: Annotated[
        str, typer.Option("--title", help="Heading of the first page. By default a standard heading.")
    ] = "",
    question: Annotated[
        str, typer.Option("--question", help="The question to participants. By default a standard question.")
    ] = "",
    contact: Annotated[
        str, typer.Option("--contact", help="Contact for participants who have questions. By default none.")
    ] = "",
    consent: Annotated[
        Path | None, typer.Option("--consent", help="Text file for the first page. By default a standard text.")
    ] = None,
    seed: SeedOption = _CREATE["seed"],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Create a study from compared pictures. One file contains everything."""
    from inst.study.creation import create_study

    session = Session(quiet=quiet, as_json=as_json)
    file = new_file(out)
    steps = create_study(
        folder,
        file,
        ours=ours,
        methods=methods,
        trials=trials,
        checks=checks,
        combinations=combinations,
        side=side,
        title=title,
        question=question,
        contact=contact,
        consent="" if consent is None else read_text(consent, _CONSENT_BYTES).strip(),
        seed=seed,
    )
    with session.progress("pictures") as update:
        for creation in steps:
            update(creation.done, creation.total, "")
    pairs = sum(creation.pairs.values())
    if pairs < trials:
        count = "is only 1 pair" if pairs == 1 else f"are only {pairs} pairs"
        session.note(f"There {count}: each participant sees all of them, not {trials}.")
    session.report(
        [
            f"{file}",
            f"{pairs} pair{'' if pairs == 1 else 's'}: "
            + ", ".join(f"{count} {one_line(f'{ours} / {method}')}" for method, count in creation.pairs.items())
            + f"; {creation.bytes / 1e6:.1f} MB of pictures.",
            f"Next: inst study serve {shlex.quote(str(file))}",
        ],
        study=str(file),
        pairs=creation.pairs,
        checks=creation.checks,
        left_out=creation.left_out,
    )
    if creation.left_out:
        for line in creation.left_out:
            session.note_left_out(line)
        raise InstError("The study was created, but something was left out")


@app.command()
@checks_paths
def serve(
    study: StudyArgument,
    host: Annotated[
        str, typer.Option("--host", help="Network address to listen on. 0.0.0.0 allows other computers and phones.")
    ] = _SERVE["host"],
    port: Annotated[int, typer.Option("--port", help="Network port. 0 chooses a free port.")] = _SERVE["port"],
    as_json: JsonOption = False,
) -> None:
    """Serve the study to participants until Ctrl-C. No answer is lost if it is stopped and started again."""
    session = Session(as_json=as_json)
    try:
        from inst.study.server import serve as serve_study
    except ModuleNotFoundError as error:
        raise _missing_library(error) from None
    with _open(study) as database:
        token = database.settings().admin_token

        def report_ready(page: str) -> None:
            admin = f"{page}admin#{token}"
            session.report(
                [f"Participants: {page}", f"Admin:        {admin}", "Stop with Ctrl-C."], page=page, admin=admin
            )

        try:
            serve_study(database, report_ready, host=host, port=port)
        except KeyboardInterrupt:
            session.note("Stopped. All answers are in the file.")


@app.command()
@checks_paths
def report(
    study: StudyArgument,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the report. By default a folder in outputs/.")
    ] = None,
    too_fast: Annotated[
        float,
        typer.Option(
            "--too-fast",
            help="Exclude participants whose median time is below this number of seconds. 0 excludes nobody.",
        ),
    ] = _REPORT["too_fast"],
    one_side: Annotated[
        float,
        typer.Option(
            "--one-side",
            help="Exclude participants whose choice of sides has a smaller probability by chance. 0 excludes nobody.",
        ),
    ] = _REPORT["one_side"],
    failed_checks: Annotated[
        int,
        typer.Option(
            "--failed-checks",
            help="Exclude participants who fail this number of attention checks or more. 0 excludes nobody.",
        ),
    ] = _REPORT["failed_checks"],
    few_answers: Annotated[
        float,
        typer.Option(
            "--few-answers",
            help="Exclude participants who answer less than this share of the pairs, from 0 to 1. 0 excludes nobody.",
        ),
    ] = _REPORT["few_answers"],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Report votes with intervals and tests, agreement, time and factor scores, as Markdown, JSON, CSV and plots."""
    with _open(study) as database:
        try:
            from inst.study.report import make_report
            from inst.study.report_files import summary, write_report
        except ModuleNotFoundError as error:
            raise _missing_library(error) from None
        result = make_report(
            database, too_fast=too_fast, one_side=one_side, failed_checks=failed_checks, few_answers=few_answers
        )
        folder = make_folder(OUTPUTS / f"{study.stem}-report" if out is None else out)
        with held(folder / "report.md", folder):  # two reports in one folder would mix
            files = write_report(result, database, folder)
    session = Session(quiet=quiet, as_json=as_json)
    facts = result.as_json()
    session.report([*summary(result), f"{folder / 'report.md'}"], **facts, files=[str(file) for file in files])


@app.command()
@checks_paths
def simulate(
    study: StudyArgument,
    participants: Annotated[int, typer.Option("--participants", help="Number of simulated participants.")] = _SIMULATE[
        "participants"
    ],
    at_once: Annotated[int, typer.Option("--at-once", help="Number of participants at the same time.")] = _SIMULATE[
        "at_once"
    ],
    kills: Annotated[int, typer.Option("--kills", help="Number of times that the server is killed.")] = _SIMULATE[
        "kills"
    ],
    preference: Annotated[
        float, typer.Option("--preference", help="Probability of a vote for our method, from 0 to 1.")
    ] = _SIMULATE["preference"],
    out: Annotated[
        Output | None,
        output_option("File for the copy with its votes, to try inst study report. By default it is deleted."),
    ] = None,
    seed: SeedOption = _SIMULATE["seed"],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Test the study on a copy: simulated participants vote through the real server, which is killed meanwhile."""
    kept = None if out is None else new_file(out)
    if kept is not None and kept.exists():
        raise UsageError(f"{kept} exists already", "give another name")
    if kept is not None and not folder_of(kept).is_dir():
        raise InstError(f"{kept} cannot be written: the folder {folder_of(kept)} does not exist", "create it first")
    with _open(study) as database:
        if database.value("SELECT count(*) FROM participants"):
            raise UsageError(f"{study} has participants already", "simulate with a new study")
    try:
        from inst.study import server  # noqa: F401
    except ModuleNotFoundError as error:
        raise _missing_library(error) from None
    from inst.study.simulation import simulate as run

    session = Session(quiet=quiet, as_json=as_json)
    with temporary_folder() as folder, session.waiting("simulated participants are voting"):
        copy = folder / "study.db"
        try:
            shutil.copyfile(study, copy)  # which was readable a moment ago
        except OSError as error:
            raise cannot_write(folder, error) from None
        result = run(copy, participants=participants, at_once=at_once, kills=kills, preference=preference, seed=seed)
        if kept is not None:
            with replace_when_finished(kept, exclusive=True) as unfinished:
                shutil.copyfile(copy, unfinished)
    session.report(
        [
            f"{result.participants} participants, {at_once} at a time, {result.votes} votes in {result.seconds:.1f} s; "
            f"95 % of the requests took less than {1000 * result.slowest:.0f} ms.",
            f"The server was killed {result.kills} times; {result.retries} requests were sent again.",
            f"{result.acknowledged} answers were acknowledged, {result.kept} of them are in the file; "
            f"{result.wrong} votes are wrong.",
        ],
        **asdict(result),
        complete=result.complete,
    )
    if not result.complete:
        raise InstError("Answers were lost or counted twice.")


@contextmanager
def _open(study: Path) -> Iterator[Database]:
    from inst.study.checking import translate_errors
    from inst.study.database import Database

    with Database(study) as database, translate_errors(study):  # the file may be damaged while it is open
        yield database


def _missing_library(error: ModuleNotFoundError) -> InstError:
    return InstError(f"The library {error.name} is missing", 'install it with pip install "inst[eval]"')
