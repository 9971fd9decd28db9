"""`inst study`: which results people prefer. Make a study, serve it to participants, report what they said."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inst.cli.defaults import defaults_of
from inst.cli.places import OUTPUTS
from inst.cli.session import JsonOption, QuietOption, SeedOption, Session
from inst.errors import InstError, UsageError
from inst.files.writing import make_folder

if TYPE_CHECKING:
    from inst.study.database import Database

app = typer.Typer(help="Ask people which results they prefer, and what matters to them.", no_args_is_help=True)

_CREATE = defaults_of("inst.study.creation", "create_study")
_SERVE = defaults_of("inst.study.server", "serve")
_REPORT = defaults_of("inst.study.report", "make_report")
_SIMULATE = defaults_of("inst.study.simulation", "simulate")

StudyArgument = Annotated[Path, typer.Argument(help="The study's file.", show_default=False)]


@app.command()
def create(
    folder: Annotated[
        Path,
        typer.Option("--from", help="The folder of inst compare: photos/, paintings/, and one for each method."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The study's file to make.")],
    ours: Annotated[str, typer.Option("--ours", help="The method that the others are compared with.")] = _CREATE[
        "ours"
    ],
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="One of the others; repeat it. By default all.")
    ] = None,
    trials: Annotated[int, typer.Option("--trials", help="Pairs that each participant is shown.")] = _CREATE["trials"],
    checks: Annotated[
        int, typer.Option("--checks", help="Attention checks besides: one result belongs to other pictures.")
    ] = _CREATE["checks"],
    combinations: Annotated[
        int | None, typer.Option("--combinations", help="Use so many (photo, painting) only, chosen at random.")
    ] = None,
    side: Annotated[int, typer.Option("--side", help="Longest side in pixels; larger ones are reduced.")] = _CREATE[
        "side"
    ],
    title: Annotated[str, typer.Option("--title", help="Heading of the first page.")] = "",
    question: Annotated[str, typer.Option("--question", help="In place of the usual question.")] = "",
    contact: Annotated[str, typer.Option("--contact", help="Who asks, for participants' questions.")] = "",
    consent: Annotated[
        Path | None, typer.Option("--consent", help="A text file in place of the usual text of the first page.")
    ] = None,
    seed: SeedOption = _CREATE["seed"],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a study of compared pictures: one file that holds everything."""
    from inst.study.creation import create_study

    session = Session(quiet=quiet, as_json=as_json)
    steps = create_study(
        folder,
        out,
        ours=ours,
        methods=methods,
        trials=trials,
        checks=checks,
        combinations=combinations,
        side=side,
        title=title,
        question=question,
        contact=contact,
        consent="" if consent is None else _read_text(consent),
        seed=seed,
    )
    with session.progress("pictures") as move:
        for made in steps:
            move(made.done, made.total, "")
    pairs = sum(made.pairs.values())
    if pairs < trials:
        session.note(f"There are {pairs} pairs: each participant is shown all of them, not {trials}.")
    session.report(
        [
            f"{out}",
            f"{pairs} pairs: "
            + ", ".join(f"{count} {ours} / {method}" for method, count in made.pairs.items())
            + f"; {made.bytes / 1e6:.1f} MB of pictures.",
            f"Next: inst study serve {shlex.quote(str(out))}",
        ],
        study=str(out),
        pairs=made.pairs,
        checks=made.checks,
        left_out=made.left_out,
    )
    if made.left_out:
        listed = "".join(f"\n  {line}" for line in made.left_out)
        raise InstError(f"The study is made, but something was left out:{listed}")


@app.command()
def serve(
    study: StudyArgument,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 0.0.0.0 lets other computers and phones in.")
    ] = _SERVE["host"],
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = _SERVE["port"],
    as_json: JsonOption = False,
) -> None:
    """Show the study to participants until Ctrl-C. It can be stopped, killed and started again at any time."""
    session = Session(as_json=as_json)
    try:
        from inst.study.server import serve as serve_study
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    with _open(study) as database:
        token = database.settings().admin_token

        def ready(page: str) -> None:
            admin = f"{page}admin#{token}"
            session.report(
                [f"Participants: {page}", f"Admin:        {admin}", "Stop with Ctrl-C."], page=page, admin=admin
            )

        try:
            serve_study(database, ready, host=host, port=port)
        except KeyboardInterrupt:
            session.note("Stopped. Every answer is in the file.")


@app.command()
def report(
    study: StudyArgument,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the report; by default in outputs/.")
    ] = None,
    too_fast: Annotated[
        float, typer.Option("--too-fast", help="Leave out whose median is below so many seconds; 0: nobody.")
    ] = _REPORT["too_fast"],
    one_side: Annotated[
        float, typer.Option("--one-side", help="... whose choice of sides is less likely by chance; 0: nobody.")
    ] = _REPORT["one_side"],
    failed_checks: Annotated[
        int, typer.Option("--failed-checks", help="... who fails so many attention checks; 0: nobody.")
    ] = _REPORT["failed_checks"],
    few_answers: Annotated[
        float, typer.Option("--few-answers", help="... who answers less than this share of the pairs; 0: nobody.")
    ] = _REPORT["few_answers"],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Votes with intervals and tests, agreement, time, and scores of factors: Markdown, JSON, CSV and plots."""
    with _open(study) as database:
        try:
            from inst.study.report import make_report
            from inst.study.report_files import summary, write_report
        except ModuleNotFoundError as error:
            raise _missing(error) from None
        found = make_report(
            database, too_fast=too_fast, one_side=one_side, failed_checks=failed_checks, few_answers=few_answers
        )
        folder = make_folder(OUTPUTS / f"{study.stem}-report" if out is None else out)
        files = write_report(found, database, folder)
    session = Session(quiet=quiet, as_json=as_json)
    facts = found.as_json()
    session.report([*summary(found), f"{folder / 'report.md'}"], **facts, files=[str(one) for one in files])


@app.command()
def simulate(
    study: StudyArgument,
    participants: Annotated[int, typer.Option("--participants", help="Simulated people.")] = _SIMULATE["participants"],
    at_once: Annotated[int, typer.Option("--at-once", help="Of them at a time.")] = _SIMULATE["at_once"],
    kills: Annotated[int, typer.Option("--kills", help="How often the server is killed.")] = _SIMULATE["kills"],
    preference: Annotated[float, typer.Option("--preference", help="Probability of a vote for ours.")] = _SIMULATE[
        "preference"
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Keep the copy with its votes, to try inst study report."),
    ] = None,
    seed: SeedOption = _SIMULATE["seed"],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Rehearse the study on a copy: simulated people vote through the real server, which is killed in the middle."""
    for name, number, least in (("participants", participants, 1), ("at-once", at_once, 1), ("kills", kills, 0)):
        if number < least:
            raise UsageError(f"--{name} {number} cannot be used", f"give {least} or more")
    if not 0 <= preference <= 1:
        raise UsageError(f"--preference {preference:g} cannot be used", "give a number from 0 to 1")
    if out is not None and out.exists():
        raise UsageError(f"{out} exists", "give another name to -o")
    if out is not None and not out.parent.is_dir():
        raise InstError(f"{out} cannot be written: the folder {out.parent} does not exist", "make it first")
    with _open(study) as database:
        if database.value("SELECT count(*) FROM participants"):
            raise UsageError(f"{study} has participants already", "rehearse with a new study")
    try:
        from inst.study import server  # noqa: F401
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    from inst.study.simulation import simulate as run

    session = Session(quiet=quiet, as_json=as_json)
    with tempfile.TemporaryDirectory() as folder, session.waiting("simulated people vote"):
        copy = Path(shutil.copyfile(study, Path(folder) / "study.db"))
        found = run(copy, participants=participants, at_once=at_once, kills=kills, preference=preference, seed=seed)
        if out is not None:
            shutil.copyfile(copy, out)
    session.report(
        [
            f"{found.participants} people, {at_once} at a time, {found.votes} votes in {found.seconds:.1f} s; "
            f"95 % of the requests took less than {1000 * found.slowest:.0f} ms.",
            f"The server was killed {found.kills} times; {found.retries} requests were sent again.",
            f"{found.acknowledged} answers were acknowledged, {found.kept} of them are in the file; "
            f"{found.wrong} votes are wrong.",
        ],
        **asdict(found),
        complete=found.complete,
    )
    if not found.complete:
        raise InstError("Answers were lost or counted twice.")


def _open(study: Path) -> Database:
    from inst.study.database import Database

    return Database(study)


def _missing(error: ModuleNotFoundError) -> InstError:
    return InstError(f"The library {error.name} is missing", 'install it with pip install "inst[eval]"')


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InstError(f"{path} cannot be read as text ({error}).") from None
