"""The command `inst ablate`, which compares settings of InST and draws learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.compare import (
    FiguresOption,
    LearningSteps,
    PaintingsArgument,
    PhotosArgument,
    run_comparison,
    source_files,
)
from inst.cli.evaluate import ClipOption, MetricsOption, load_encoder, note_left_out
from inst.cli.learn import LEARN
from inst.cli.pictures import TRANSFER, StrengthOption, StyleAttentionOption, StyleScaleOption, ToneOption
from inst.cli.places import OUTPUTS
from inst.cli.session import SeedOption, Session, with_session
from inst.defaults import defaults_of
from inst.errors import InstError, UsageError
from inst.files.provenance import FORMAT
from inst.texts import cut

if TYPE_CHECKING:
    from inst.evaluation.methods.method import Method
    from inst.pictures.reading import Photo

_CURVES = defaults_of("inst.evaluation.learning_curves.measure", "learning_curves")


@with_session
def ablate(
    session: Session,
    what: Annotated[
        str,
        typer.Argument(
            help="What to vary: stochastic, strength, attention, layers, dropout, instant, vectors, steps or "
            "convergence.",
            metavar="WHAT",
            show_default=False,
        ),
    ],
    photos: PhotosArgument,
    paintings: PaintingsArgument,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the results. By default outputs/ablate-WHAT.")
    ] = None,
    strength: StrengthOption = TRANSFER["strength"],
    tone: ToneOption = "none",
    style_attention: StyleAttentionOption = 0.0,
    style_scale: StyleScaleOption = TRANSFER["style_scale"],
    learning_steps: LearningSteps = LEARN["steps"],
    every: Annotated[
        int | None,
        typer.Option(
            "--every",
            min=1,
            help="For convergence: learning steps between two points of a curve.",
            show_default=str(_CURVES["every"]),
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, help="For convergence: number of seeds for each variant.", show_default="1"),
    ] = None,
    seed: SeedOption = TRANSFER["seed"],
    figures: FiguresOption = True,
    metrics: MetricsOption = None,
    clip: ClipOption = None,
) -> None:
    """Measure the effect of one setting: vary it and keep the others.

    The defaults of --tone and --style-attention are none and 0 here: both take from the painting itself, which would
    hide differences between styles.

    Exit code 1 means that something was left out. The other results were written.
    """
    from inst.evaluation.methods.ablations import ABLATIONS

    folder = OUTPUTS / f"ablate-{what}" if out is None else out
    transfer = {
        "strength": strength,
        "tone": tone,
        "style_attention": style_attention,
        "style_scale": style_scale,
        "seed": seed,
    }
    if what == "convergence":
        if metrics is not None or not figures:
            raise UsageError(
                "--metrics and --no-figures do not apply to convergence, which always measures Gram distance and image "
                "similarity",
                "leave them out",
            )
        interval = _CURVES["every"] if every is None else every
        all_seeds = range(seed, seed + (seeds or 1))
        _run_convergence(session, photos, paintings, folder, learning_steps, interval, all_seeds, transfer, clip)
        return
    if what not in ABLATIONS:
        raise UsageError(
            f'The ablation "{cut(what, 60)}" is unknown', f"use one of {', '.join(ABLATIONS)} or convergence"
        )
    for option, value in (("--every", every), ("--seeds", seeds)):
        if value is not None:
            raise UsageError(f"{option} is only for the ablation convergence", f"leave out {option}")

    def make_methods() -> tuple[list[Method], list[str]]:
        session.note(ABLATIONS[what].question)
        return [*ABLATIONS[what].methods(session.load(), {"steps": learning_steps, "seed": seed}, transfer)], []

    run_comparison(session, make_methods, photos, paintings, folder, figures, metrics, clip, seed)


def _run_convergence(
    session: Session,
    photos: Sequence[Path],
    paintings: Sequence[Path],
    out: Path,
    steps: int,
    every: int,
    seeds: Sequence[int],
    transfer: dict[str, Any],
    clip: str | None,
) -> None:
    from inst.evaluation.compare import PAINTING_SIDE, write_sheets
    from inst.evaluation.learning_curves.folder import Curves, learning_name
    from inst.evaluation.learning_curves.measure import VARIANTS, check_curves, curve_controls, learning_curves
    from inst.evaluation.methods.method import backbone_mark
    from inst.evaluation.metrics.gram import GramDistance
    from inst.evaluation.output import folder_held
    from inst.pictures.reading import reading_size

    problems: list[str] = []
    photo_files = _read_photos(source_files(photos, problems), problems, reading_size(None))
    painting_files = _read_photos(source_files(paintings, problems), problems, PAINTING_SIDE)
    contents, sources = list(photo_files.values()), list(painting_files.values())
    backbone = session.load()
    # Checked before --clip is loaded: if the backbone has no image encoder, --clip does not help.
    check_curves(backbone, sources, contents, transfer, steps=steps, every=every, seeds=seeds)
    encoder = load_encoder(session, clip)
    settings = {
        "steps": steps,
        "every": every,
        "short_side": _CURVES["size"],
        "transfer": transfer,
        "format": FORMAT,  # of the records: arguments that are left out have the defaults of this version
        "backbone": backbone_mark(backbone),
        "photos": [photo.sha256 for photo in contents],
        "similarity": encoder.name if encoder.name == encoder.source else f"{encoder.name} {encoder.source}",
    }
    with folder_held(out):
        curves = Curves.open(out, settings, sources, contents)
        # Printed before the long work, so that the user can stop and repair it.
        note_left_out(session, problems, "listed by --json")
        distance = GramDistance.load().to(backbone.device)
        for source in sources:
            if not curves.has_controls(source.name):
                for control in curve_controls(backbone, source, contents, distance, encoder, _CURVES["size"]):
                    curves.add(control)
        with session.progress("learning") as update:
            run = learning_curves(
                backbone,
                sources,
                contents,
                distance,
                steps=steps,
                every=every,
                seeds=seeds,
                size=_CURVES["size"],
                transferred=transfer,
                encoder=encoder,
                done=curves.has,
                keep=curves.save,
            )
            for point in run:
                curves.add(point)
                update(point.step, steps, f"{point.painting}, {point.variant}")
        files = curves.write()
        lines = [*files[0].read_text(encoding="utf-8").splitlines(), ""]
        names = [name for variant in VARIANTS if (out / (name := learning_name(variant, seeds[0]))).is_dir()]
        files += write_sheets(out, dict.fromkeys(names, settings), [*photo_files], [*painting_files])
        lines += map(str, files)
    session.report(lines, files=[str(file) for file in files], left_out=problems)
    if problems:
        raise typer.Exit(InstError.exit_code)


def _read_photos(files: Sequence[Path], problems: list[str], reduce_to: int) -> dict[Path, Photo]:
    """Read photos or paintings, by file. The error of a broken file is added to `problems`.

    `reduce_to` is as for `inst.read_photo`.

    Raises:
        InstError: a file does not exist, or no file can be read.
    """
    from inst.pictures.reading import read_photo

    read: dict[Path, Photo] = {}
    for file in files:
        try:
            read[file] = read_photo(file, flattened=True, reduce_to=reduce_to)
        except InstError as error:
            if not file.is_file():
                raise
            problems.append(str(error))
    if not read:
        raise InstError(problems[-1])
    return read
