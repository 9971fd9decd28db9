"""The command `inst compare`, which makes the pictures of several methods, and their scores and sheets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.evaluate import ClipOption, MetricsOption, check_clip, metric_names, note_left_out, score_pictures
from inst.cli.learn import LEARN
from inst.cli.pictures import TRANSFER, StrengthOption, StyleAttentionOption, StyleScaleOption, ToneOption
from inst.cli.places import OUTPUTS
from inst.cli.session import SeedOption, Session, with_session
from inst.errors import InstError, InstWarning, UsageError
from inst.evaluation.methods.names import METHODS
from inst.files.listing import pictures_in, pictures_of, plain_name
from inst.texts import cut

if TYPE_CHECKING:
    from inst.evaluation.compare import ComparisonResult
    from inst.evaluation.methods.method import Method

PhotosArgument = Annotated[
    list[Path], typer.Option("--photos", help="A photo or a folder of photos. Repeat it for more.", show_default=False)
]
PaintingsArgument = Annotated[
    list[Path],
    typer.Option("--paintings", help="A painting or a folder of paintings. Repeat it for more.", show_default=False),
]
LearningSteps = Annotated[int, typer.Option("--learning-steps", help="Largest number of steps for each learned style.")]
FiguresOption = Annotated[bool, typer.Option("--figures/--no-figures", help="Compute the scores of the pictures.")]


@with_session
def compare(
    session: Session,
    photos: PhotosArgument,
    paintings: PaintingsArgument,
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="Folder for the results. Pictures that it already contains are not made again."
        ),
    ] = OUTPUTS / "compare",
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="Methods, separated by commas. On a CPU, styleid and gatys take minutes for each picture.",
        ),
    ] = ",".join(METHODS),
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            "--outputs",
            help="NAME=FOLDER: one more method, with pictures of another program named PHOTO__PAINTING.png. Repeat it "
            "for more.",
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            help="File with the captions of the paintings for sdm: lines of PAINTING, a tab and the caption; or JSON.",
        ),
    ] = None,
    strength: StrengthOption = TRANSFER["strength"],
    tone: ToneOption = TRANSFER["tone"],
    style_attention: StyleAttentionOption = TRANSFER["style_attention"],
    style_scale: StyleScaleOption = TRANSFER["style_scale"],
    learning_steps: LearningSteps = LEARN["steps"],
    seed: SeedOption = TRANSFER["seed"],
    figures: FiguresOption = True,
    metrics: MetricsOption = None,
    clip: ClipOption = None,
) -> None:
    """Compare methods: make a picture for every photo, painting and method, and write scores and sheets.

    Exit code 1 means that something was left out. The other results were written.
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise UsageError(
            f'The method "{cut(unknown[0], 60)}" is unknown',
            f"use some of {', '.join(METHODS)}; for pictures of another program, use --outputs NAME=FOLDER",
        )
    if captions is not None and "sdm" not in names:
        raise UsageError(
            "--captions is for the method sdm, which is not in --methods", "add sdm, or leave out --captions"
        )
    transfer = {
        "strength": strength,
        "tone": tone,
        "style_attention": style_attention,
        "style_scale": style_scale,
        "seed": seed,
    }
    learning = {"steps": learning_steps, "seed": seed}
    folders, empty = _folders(outputs or [])

    def make_methods() -> tuple[list[Method], list[str]]:
        written = {} if captions is None else _read_captions(captions, source_files(paintings, []))
        built, missing = _built_in(session, names, transfer, learning, written)
        missing += empty
        if missing and not built and not folders:
            raise InstError(missing[0])
        return [*built, *folders], missing

    run_comparison(session, make_methods, photos, paintings, out, figures, metrics, clip, seed)


def _built_in(
    session: Session,
    names: Sequence[str],
    transfer: dict[str, Any],
    learning: dict[str, Any],
    captions: Mapping[str, str],
) -> tuple[list[Method], list[str]]:
    from inst.backbone.devices import choose_device
    from inst.evaluation.methods.built_in import built_in

    return built_in(
        names,
        session.load,
        choose_device(session.device),
        learning=learning,
        transfer=transfer,
        captions=captions,
    )


def _read_captions(file: Path, paintings: Sequence[Path]) -> Mapping[str, str]:
    """Return the captions of these paintings. Warns if the file has a caption for none of them."""
    from inst.evaluation.collection import read_prompts

    captions = read_prompts(file)
    known = {"", *(plain_name(painting.name) for painting in paintings)}
    if others := sorted(captions.keys() - known):
        more = f" and {len(others) - 1} more" if others[1:] else ""
        warnings.warn(
            InstWarning(f'{file}: no painting is named "{cut(others[0], 60)}"{more}', "correct the name"), stacklevel=2
        )
    return {name: caption for name, caption in captions.items() if name in known}


def _folders(outputs: Sequence[str]) -> tuple[list[Method], list[str]]:
    """Return the methods of `--outputs`, and a line for each folder that is left out because it has no picture."""
    from inst.evaluation.methods.folder import FolderMethod

    found: list[Method] = []
    empty: list[str] = []
    for text in outputs:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder or not Path(folder).is_dir():
            raise UsageError(
                f'"{cut(text, 60)}" is not NAME=FOLDER with an existing folder',
                "give --outputs NAME=FOLDER, such as stytr2=made/stytr2",
            )
        if pictures_in(Path(folder)):
            found.append(FolderMethod(name, Path(folder)))
        else:
            empty.append(f"{name} is left out: {folder} contains no picture PHOTO__PAINTING.png")
    return found, empty


def source_files(paths: Sequence[Path], problems: list[str]) -> list[Path]:
    """Return the picture files of files and folders. The error of a folder without pictures is added to `problems`.

    Raises:
        InstError: there is no picture at all.
    """
    files: list[Path] = []
    for path in paths:
        try:
            files += pictures_of([path])
        except InstError as error:
            problems.append(str(error))
    if paths and not files:
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
    """Make the pictures and the sheets, compute the scores, and report.

    `make_methods` returns the methods, and a line for each one that is left out. It is called after all other checks.
    """
    from inst.evaluation.collection import SEPARATOR, collect
    from inst.evaluation.compare import compare, write_sheets
    from inst.evaluation.evaluate import check_settings
    from inst.evaluation.output import folder_held
    from inst.runs import complete

    for option, value in (("--clip", clip), ("--metrics", metrics)):
        if value is not None and not figures:
            raise UsageError(
                f"{option} is for the scores, but --no-figures turns them off", f"give {option} or --no-figures"
            )
    problems: list[str] = []
    names = metric_names(metrics)
    check_settings(seed=seed)
    photo_files, painting_files = source_files(photos, problems), source_files(paintings, problems)
    if figures:
        check_clip(session, clip, names)  # checked here, because making the pictures takes long
    with folder_held(out):
        methods, missing = make_methods()
        latest = (0, len(methods) * len(photo_files) * len(painting_files))
        with session.progress("painting") as update:

            def show_preparation(step: int, total: int) -> None:
                update(*latest, f"step {step}/{total}")

            def show_result(result: ComparisonResult) -> None:
                nonlocal latest
                latest = (result.index + 1, result.total)
                update(*latest, f"{result.method}: {result.painting}")

            failed = complete(compare(methods, photo_files, painting_files, out, show_preparation), show_result)
        sheets = write_sheets(out, {method.name: method.settings for method in methods}, photo_files, painting_files)
        problems += [*missing, *(f"{result.method}/{result.path.name}: {result.problem}" for result in failed)]
        note_left_out(session, problems, "listed by --json")
        lines = [f"{sheet}   a sheet of results" for sheet in sheets]
        facts: dict[str, Any] = {"sheets": [str(sheet) for sheet in sheets]}
        if figures:
            # The reason for each missing picture was noted above, so the message that it is missing is not repeated.
            known = {
                f"{result.method}: there is no picture {result.photo}{SEPARATOR}{result.painting}" for result in failed
            }
            scores = score_pictures(
                session, collect(out), out / "figures", metrics=names, clip=clip, seed=seed, known_problems=known
            )
            lines, facts = [*scores.lines, *lines], {**scores.facts, **facts}
            problems += scores.problems
    session.report(lines, **facts, left_out=problems)
    if problems:
        raise typer.Exit(InstError.exit_code)
