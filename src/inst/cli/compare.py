"""`inst compare`: methods side by side: pictures, figures, sheets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.evaluate import ClipOption, MetricsOption, check_clip, judge, metric_names
from inst.cli.learn import LEARN
from inst.cli.pictures import TRANSFER, StrengthOption, ToneOption
from inst.cli.places import OUTPUTS
from inst.cli.session import SeedOption, Session, with_session
from inst.errors import InstError, UsageError
from inst.evaluation.methods.names import METHODS
from inst.files.listing import pictures_in, pictures_of

if TYPE_CHECKING:
    from inst.evaluation.compare import Compared
    from inst.evaluation.methods.method import Method

PhotosArgument = Annotated[list[Path], typer.Option("--photos", help="Photos, or folders of them.", show_default=False)]
PaintingsArgument = Annotated[
    list[Path], typer.Option("--paintings", help="Paintings, or folders of them.", show_default=False)
]
LearningSteps = Annotated[int, typer.Option("--learning-steps", help="Steps of each learning, at most.")]
FiguresOption = Annotated[bool, typer.Option("--figures/--no-figures", help="Judge the pictures afterwards.")]


@with_session
def compare(
    session: Session,
    photos: PhotosArgument,
    paintings: PaintingsArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The folder to write to; what is there already is not made again.")
    ] = OUTPUTS / "compare",
    methods: Annotated[
        str,
        typer.Option("--methods", help="With commas between them. On a CPU gatys takes minutes for each picture."),
    ] = ",".join(METHODS),
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            "--outputs", help="NAME=FOLDER: another system's pictures, named PHOTO__PAINTING.png, as a method."
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option("--captions", help="For sdm: lines of PAINTING, a tab and its caption; or JSON."),
    ] = None,
    strength: StrengthOption = TRANSFER["strength"],
    tone: ToneOption = TRANSFER["tone"],
    learning_steps: LearningSteps = LEARN["steps"],
    seed: SeedOption = TRANSFER["seed"],
    figures: FiguresOption = True,
    metrics: MetricsOption = None,
    clip: ClipOption = None,
) -> None:
    """Compare methods: photos x paintings x methods, with figures and sheets.

    Exit code 1 says that something was left out; the rest was made.
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise UsageError(
            f'The method "{unknown[0]}" is unknown',
            f"use some of {', '.join(METHODS)}; give another system's pictures with --outputs NAME=FOLDER",
        )
    if captions is not None and "sdm" not in names:
        raise UsageError("--captions is for the method sdm, which is not among --methods", "add it, or leave it out")
    transfer = {"strength": strength, "tone": tone, "seed": seed}
    learning = {"steps": learning_steps, "seed": seed}
    folders, empty = _folders(outputs or [])

    def made() -> tuple[list[Method], list[str]]:
        built, missing = _built_in(session, names, transfer, learning, captions)
        missing += empty
        if missing and not built and not folders:
            raise InstError(missing[0])
        return [*built, *folders], missing

    run_comparison(session, made, photos, paintings, out, figures, metrics, clip, seed)


def _built_in(
    session: Session, names: Sequence[str], transfer: dict[str, Any], learning: dict[str, Any], captions: Path | None
) -> tuple[list[Method], list[str]]:
    from inst.backbone.devices import choose_device
    from inst.evaluation.collection import read_prompts
    from inst.evaluation.methods.built_in import built_in

    return built_in(
        names,
        session.load,
        choose_device(session.device),
        learning=learning,
        transfer=transfer,
        captions={} if captions is None else read_prompts(captions),
    )


def _folders(outputs: Sequence[str]) -> tuple[list[Method], list[str]]:
    """The methods of `--outputs`, and why some are left out: folders without a picture."""
    from inst.evaluation.methods.folder import FolderMethod

    found: list[Method] = []
    empty: list[str] = []
    for text in outputs:
        name, equals, folder = text.partition("=")
        if not equals or not name or not Path(folder).is_dir():
            raise UsageError(f'"{text}" is not NAME=FOLDER with a folder that is there', "give --outputs stytr2=FOLDER")
        if pictures_in(Path(folder)):
            found.append(FolderMethod(name, Path(folder)))
        else:
            empty.append(f"{name} is left out: {folder} holds no picture PHOTO__PAINTING.png")
    return found, empty


def sources_of(places: Sequence[Path], problems: list[str]) -> list[Path]:
    """The pictures of files and folders; what is wrong with folders that have none is added to the problems.

    Raises:
        InstError: there is no picture at all.
    """
    files: list[Path] = []
    for place in places:
        try:
            files += pictures_of([place])
        except InstError as error:
            problems.append(str(error))
    if places and not files:
        raise InstError(problems[-1])
    return files


def run_comparison(
    session: Session,
    make_methods: Callable[[], tuple[Sequence[Method], Sequence[str]]],
    photos: Sequence[Path],
    paintings: Sequence[Path],
    out: Path,
    figures: bool,
    metrics: str | None,
    clip: str | None,
    seed: int,
) -> None:
    """Make the pictures and the sheets, judge them, and report.

    `make_methods` gives the methods, and why others are left out; it is called after everything else was checked.
    """
    from inst.evaluation.collection import SEPARATOR, collect
    from inst.evaluation.compare import compare, write_sheets
    from inst.runs import complete

    for option, value in (("--clip", clip), ("--metrics", metrics)):
        if value is not None and not figures:
            raise UsageError(f"{option} is for the figures, which --no-figures leaves out", "give one of the two")
    left_out: list[str] = []
    contents, sources, names = sources_of(photos, left_out), sources_of(paintings, left_out), metric_names(metrics)
    if figures:
        check_clip(session, clip, names)  # and not after every picture was made
    methods, missing = make_methods()
    latest = (0, len(methods) * len(contents) * len(sources))
    with session.progress("painting") as move:

        def preparing(step: int, total: int) -> None:
            move(*latest, f"step {step}/{total}")

        def done(one: Compared) -> None:
            nonlocal latest
            latest = (one.index + 1, one.total)
            move(*latest, f"{one.method}: {one.painting}")

        problems = complete(compare(methods, contents, sources, out, preparing), done)
    sheets = write_sheets(out, {method.name: method.settings for method in methods}, contents, sources)
    left_out += [*missing, *(f"{one.method}/{one.path.name}: {one.problem}" for one in problems)]
    for line in left_out:
        session.left_out(line)
    lines, facts = [f"{sheet}   a sheet: look at it" for sheet in sheets], {"sheets": [str(sheet) for sheet in sheets]}
    if figures:
        # What could not be made was named above with the reason: that the picture is missing is no news.
        said = {f"{one.method}: there is no picture {one.photo}{SEPARATOR}{one.painting}" for one in problems}
        judged = judge(session, collect(out), out / "figures", metrics=names, clip=clip, seed=seed, said=said)
        lines, facts = [*judged.lines, *lines], {**judged.facts, **facts}
        left_out += judged.problems
    session.report(lines, **facts, left_out=left_out)
    if left_out:
        raise typer.Exit(InstError.exit_code)
